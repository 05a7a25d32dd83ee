"""Hyperparameters of optimizers: as they are saved, and against those that were."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from thalweg.checkpoint.encoding import decode, encode
from thalweg.checkpoint.keys import hyper_key, is_face_key
from thalweg.state import SlotOwner

HyperPolicy = Literal["checkpoint", "keep", "error-if-different"]
HYPER_POLICIES = get_args(HyperPolicy)

Table = Mapping[str, Any]


def takes_new_hyperparameters(owner: object) -> bool:
    """Whether an optimizer takes hyperparameters that it does not have yet."""
    return bool(getattr(owner, "takes_new_hyperparameters", False))


def added_later(owner: object) -> Table:
    """What hyperparameters mean that older checkpoints lack."""
    return getattr(owner, "hyperparameters_added_later", {})


def encode_hyperparameters(key: str, owner: SlotOwner) -> dict[str, Any]:
    """Encode an optimizer's hyperparameters as they are saved.

    Those that stand as they did before there were such are left out: a checkpoint does
    not tell by them which version has saved it.

    Raises:
        CheckpointError: If one is not a plain value.
    """
    older = added_later(owner)
    table = owner.hyperparameters().items()
    return _encoded(key, {n: v for n, v in table if n not in older or v != older[n]})


def _encoded(owner: str, table: Table) -> dict[str, Any]:
    return {name: encode(v, hyper_key(owner, name)) for name, v in table.items()}


@dataclass
class HyperMatch:
    """How hyperparameters go with the saved ones.

    `owners` are keys of optimizers that take what was saved, `differences` sentences
    on values; the others are as in `RestoreStatus`.
    """

    owners: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def match_hyperparameters(
    owners: Mapping[str, SlotOwner],
    saved: Mapping[str, Table],
    hyper: HyperPolicy,
    taken: Collection[str],
) -> HyperMatch:
    """Match the hyperparameters of optimizers with the saved ones by key and name.

    Args:
        owners: Optimizers by key.
        saved: Key to encoded values by name.
        hyper: With "keep", values are not looked at.
        taken: Keys, after `HYPER`, of those that have taken theirs before.
    """
    return _HyperMatcher(owners, hyper, taken).run(saved)


class _HyperMatcher:
    def __init__(
        self,
        owners: Mapping[str, SlotOwner],
        hyper: HyperPolicy,
        taken: Collection[str],
    ) -> None:
        self._owners = owners
        self._hyper = hyper
        self._taken = taken
        self._result = HyperMatch()

    def run(self, saved: Mapping[str, Table]) -> HyperMatch:
        current = {
            key: encode_hyperparameters(key, owner)
            for key, owner in self._owners.items()
        }
        for owner in dict.fromkeys([*current, *saved]):
            here, there = current.get(owner, {}), saved.get(owner, {})
            if owner in current and owner in saved:
                older = _encoded(owner, added_later(self._owners[owner]))
                here, there = {**older, **here}, {**older, **there}
            if is_face_key(owner):
                self._note_differences(owner, here, there)
            else:
                self._match_table(owner, here, there)
            is_new = hyper_key(owner) not in self._taken
            if is_new and owner in current and owner in saved:
                self._result.owners.append(owner)
        return self._result

    def _match_table(self, owner: str, here: Table, there: Table) -> None:
        missing = [name for name in here if name not in there]
        unexpected = [name for name in there if name not in here]
        if missing and unexpected and here and there:
            self._result.mismatched.append(
                f"{hyper_key(owner)}: {', '.join(unexpected)} in the checkpoint, "
                f"{', '.join(missing)} in the object: another kind of optimizer"
            )
        elif self._hyper != "keep":
            if takes_new_hyperparameters(self._owners.get(owner)):
                unexpected = []
            self._result.missing.extend(hyper_key(owner, name) for name in missing)
            self._result.unexpected.extend(hyper_key(owner, n) for n in unexpected)
            self._note_differences(owner, here, there)

    def _note_differences(self, owner: str, here: Table, there: Table) -> None:
        if self._hyper == "keep" or hyper_key(owner) in self._taken:
            return
        self._result.differences.extend(
            f"{hyper_key(owner, name)}: {decode(there[name], owner)!r} in the "
            f"checkpoint, {decode(here[name], owner)!r} in the object"
            for name in here
            if here[name] != there.get(name, here[name])
        )
