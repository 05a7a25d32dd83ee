"""Which saved value goes where, decided completely before anything is written."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.nn.parameter import is_lazy

from thalweg.checkpoint.encoding import tensor_keys
from thalweg.checkpoint.graph import Graph, pending_slots
from thalweg.checkpoint.hyperparameters import HyperPolicy, match_hyperparameters
from thalweg.checkpoint.keys import (
    RANK,
    SlotKey,
    parse_rank_key,
    parse_slot_key,
    rank_key,
)
from thalweg.checkpoint.manifest import Manifest, TensorEntry
from thalweg.checkpoint.torch_optimizers import STEP, TorchSlots
from thalweg.checkpoint.values import PartsOfRanks, parts_key
from thalweg.distribute.collectives import rank


class Copy(NamedTuple):
    """A saved tensor and the existing one that takes its value."""

    saved: str
    key: str
    target: torch.Tensor


class Creation(NamedTuple):
    """A saved slot that its optimizer has not made yet.

    Attributes:
        owner: Key of the optimizer.
        slot: Name of the slot.
        variable: The variable.
        keys: Where it is saved: by rank if ranks had one each, else one key by 0.
        parts: What those of several ranks make together.
    """

    owner: str
    slot: str
    variable: torch.Tensor
    keys: Mapping[int, str]
    parts: PartsOfRanks = PartsOfRanks()


@dataclass
class Match:
    """The outcome of matching a graph with a manifest.

    `missing`, `unexpected` and `mismatched` are as in `RestoreStatus`, `reasons` are
    sentences about them; the other fields say what is to be done. `values` is saved
    key to key, `owners` are those whose hyperparameters are restored.
    """

    copies: list[Copy] = field(default_factory=list)
    creations: list[Creation] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    owners: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    hyper_differences: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def restored(self) -> list[str]:
        """Keys in the checkpoint of all that is taken from it."""
        copied = [copy.saved for copy in self.copies]
        made = [key for creation in self.creations for key in creation.keys.values()]
        return [*copied, *self.values, *made]


def match(
    graph: Graph,
    manifest: Manifest,
    hyper: HyperPolicy,
    taken: Collection[str] = (),
) -> Match:
    """Match the objects' parts with the saved ones by key.

    Args:
        graph: The objects as they are.
        manifest: What the checkpoint holds.
        hyper: With "keep", hyperparameters are not looked at.
        taken: What has found its place before: keys of tensors and values, and of
            optimizers with hyperparameters, after `HYPER`.
    """
    return _Matcher(graph, manifest, hyper, taken).run()


class _Matcher:
    def __init__(
        self,
        graph: Graph,
        manifest: Manifest,
        hyper: HyperPolicy,
        taken: Collection[str],
    ) -> None:
        self._taken = frozenset(taken)
        self._graph = graph
        self._manifest = manifest
        self._hyper: HyperPolicy = hyper
        self._used: set[str] = set()
        self._owners_of_parts: set[str] = set()
        self._variables: dict[str, torch.Tensor] = {}
        self._result = Match()

    def run(self) -> Match:
        self._match_tensors()
        self._match_values()
        self._match_slots()
        self._match_hyperparameters()
        leftover = (key for key in self._manifest.tensors if key not in self._used)
        self._result.unexpected.extend(leftover)
        return self._result

    def _match_tensors(self) -> None:
        further: dict[str, list[str]] = {}
        for alias, key in self._graph.aliases.items():
            further.setdefault(key, []).append(alias)
        for key, tensor in self._graph.tensors.items():
            names = (key, *further.get(key, ()))
            saved = next(filter(None, map(self._manifest.resolve, names)), None)
            if saved is None:
                self._result.missing.append(key)
            else:
                self._variables[saved] = tensor
                self._add_copy(saved, key, tensor)

    def _add_copy(
        self, saved: str, key: str, target: torch.Tensor, is_number: bool = False
    ) -> None:
        self._used.add(saved)
        if saved in self._taken:
            return
        difference = _difference(self._manifest.tensors[saved], target, is_number)
        if difference:
            self._result.mismatched.append(f"{key}: {difference}")
        else:
            self._result.copies.append(Copy(saved, key, target))

    def _match_values(self) -> None:
        saved = self._manifest.values
        found = self._own_and_others()
        for key, value in self._graph.values.items():
            place = found.get(key, key)
            if place is None:
                continue
            if place not in saved:
                self._result.missing.append(key)
            elif place in self._taken:
                continue
            elif tensor_keys(saved[place]) and not value.holds_tensors:
                self._result.mismatched.append(
                    f"{key}: a state with tensors in the checkpoint, a plain value"
                )
            else:
                self._result.values[place] = key
        # These go with slots, which know whether they are taken.
        of_parts = set(map(parts_key, self._graph.owners))
        for key, content in saved.items():
            self._used.update(tensor_keys(content))
            if key in of_parts:
                continue
            if parse_rank_key(key) not in found and key not in self._graph.values:
                self._result.unexpected.append(key)

    def _own_and_others(self) -> dict[str, str | None]:
        """Where this rank's part of each value lies that every rank has for itself.

        None where other ranks than this one were saved: there are more ranks now, and
        the new ones keep what they have.
        """
        found: dict[str, str | None] = {}
        for key, value in self._graph.values.items():
            if value.is_per_rank:
                own = rank_key(key, rank())
                parts = [k for k in self._manifest.values if parse_rank_key(k) == key]
                if own in parts:
                    found[key] = own
                elif key in self._manifest.values:
                    found[key] = key if rank() == 0 else None
                elif parts:
                    found[key] = None
        return found

    def _match_slots(self) -> None:
        existing = {
            (slot.owner, id(slot.variable), slot.name): key
            for key, slot in self._graph.slots.items()
            if slot.name not in pending_slots(self._graph.owners[slot.owner])
        }
        for saved, keys in self._saved_slots().items():
            parts = parse_slot_key(saved)
            if parts is None or parts.owner not in self._graph.owners:
                continue
            variable = self._variable_of(parts)
            if variable is None:
                continue
            key = existing.pop((parts.owner, id(variable), parts.slot), None)
            if key is None:
                self._match_new_slot(parts, variable, keys)
                continue
            slot = self._graph.slots[key]
            is_number = isinstance(self._graph.owners[slot.owner], TorchSlots)
            is_number &= slot.name == STEP or slot.variable.dim() > 0
            self._add_copy(saved, key, slot.tensor, is_number)
        self._result.missing.extend(existing.values())
        self._result.unexpected.extend(
            key
            for owner in self._graph.owners
            if (key := parts_key(owner)) in self._manifest.values
            and owner not in self._owners_of_parts
        )

    def _saved_slots(self) -> dict[str, dict[int | None, str]]:
        """Keys of what may be slots: by slot, then by rank; None if all share it."""
        found: dict[str, dict[int | None, str]] = {}
        for saved in self._manifest.tensors:
            if saved not in self._used:
                slot, number = _split_rank(saved)
                found.setdefault(slot, {})[number] = saved
        return found

    def _match_new_slot(
        self,
        slot: SlotKey,
        variable: torch.Tensor,
        saved: Mapping[int | None, str],
    ) -> None:
        """Plan to make a slot, if its optimizer knows such and its parts are clear."""
        owner = self._graph.owners[slot.owner]
        parts, keys = PartsOfRanks(), {0: saved[None]} if None in saved else {}
        if None not in saved and slot.slot in pending_slots(owner):
            content = self._manifest.values.get(parts_key(slot.owner))
            parts = PartsOfRanks.read(content) or parts
            keys = {n: k for n, k in saved.items() if n is not None and n < parts.ranks}
            keys = keys if parts.ranks > 1 else {}
        if not keys or self._lacks_option(slot, owner):
            return
        self._used.update(keys.values())
        if parts.ranks > 1:
            self._owners_of_parts.add(slot.owner)
        elif not self._fits_rule(slot, owner, variable, keys[0]):
            return
        if self._taken.isdisjoint(keys.values()):
            creation = Creation(slot.owner, slot.slot, variable, keys, parts)
            self._result.creations.append(creation)

    def _fits_rule(
        self, slot: SlotKey, owner: object, variable: torch.Tensor, saved: str
    ) -> bool:
        """Whether a slot has the shape that its optimizer's rule needs."""
        ask, entry = getattr(owner, "slot_shape", None), self._manifest.tensors[saved]
        if ask is None or is_lazy(variable):
            return True
        needed = ask(slot.slot, variable)
        if needed is None:
            return True
        if needed == entry.shape and entry.dtype.is_floating_point:
            return True
        dtype = str(entry.dtype).removeprefix("torch.")
        self._result.mismatched.append(
            f"{saved}: {dtype} of shape {entry.shape} in the checkpoint, a slot of "
            f"shape {needed} in the object"
        )
        return False

    def _lacks_option(self, slot: SlotKey, owner: object) -> bool:
        """Whether an optimizer was made without what gives it such a slot."""
        ask = getattr(owner, "lacking_option", None)
        saved = self._manifest.hyperparameters.get(slot.owner, {})
        option = ask(slot.slot, {} if self._hyper == "keep" else saved) if ask else ""
        if option:
            reason = (
                f"'{slot.owner}' was made without {option}, so it has no slot "
                f"{slot.slot!r}; what was saved of it is left aside."
            )
            if reason not in self._result.reasons:
                self._result.reasons.append(reason)
        return bool(option)

    def _variable_of(self, parts: SlotKey) -> torch.Tensor | None:
        known = self._variables.get(parts.variable)
        return self._graph.variable(parts.variable) if known is None else known

    def _match_hyperparameters(self) -> None:
        found = match_hyperparameters(
            self._graph.owners, self._manifest.hyperparameters, self._hyper, self._taken
        )
        self._result.owners.extend(found.owners)
        self._result.missing.extend(found.missing)
        self._result.unexpected.extend(found.unexpected)
        self._result.mismatched.extend(found.mismatched)
        self._result.hyper_differences.extend(found.differences)


def _split_rank(key: str) -> tuple[str, int | None]:
    """A key without the number of a rank, and that number."""
    slot, _, number = key.partition(f"/{RANK}/")
    is_number = number.isascii() and number.isdecimal() and len(number) < 10
    return (slot, int(number)) if is_number else (key, None)


def _difference(entry: TensorEntry, target: torch.Tensor, is_number: bool) -> str:
    if is_lazy(target):
        return ""  # it takes any shape
    if target.device.type == "meta":
        return "it lies on the meta device, which holds no numbers"
    if entry.shape == tuple(target.shape) and entry.dtype == target.dtype:
        return ""
    if is_number and entry.shape == tuple(target.shape) == ():
        return ""  # torch counts in float32, others count further; restoring compares
    return (
        f"{_kind(entry.dtype, entry.shape)} in the checkpoint, "
        f"{_kind(target.dtype, tuple(target.shape))} in the object"
    )


def _kind(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} of shape {shape}"
