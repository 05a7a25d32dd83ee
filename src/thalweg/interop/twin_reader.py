"""torch's state dict in the words of a face, checked before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from thalweg.errors import CheckpointError, describe, message
from thalweg.interop.kinds import misfit
from thalweg.interop.twins import Twin

__all__ = ["TwinReader", "refusal"]

_STEP = "step"
_OWN_KEYS = ("params", "param_names")
_MUST_BE = {"maximize": False, "differentiable": False, "dampening": 0}
_OTHER_OPTION = "Make the optimizer as torch's was made, or use thalweg.optim."
_OTHER_KIND = "Make an optimizer of the kind that the state is of."
Group = dict[str, Any]


def refusal(twin: Twin, expected: str, got: str, action: str) -> CheckpointError:
    """The error for a state dict that cannot be read."""
    where = f"load_torch_state: {twin.name} of torch"
    return CheckpointError(message(where, expected, got, action))


class TwinReader:
    """Translates what a state dict of torch says; the dict is left as it is.

    Args:
        twin: The pair of classes.
        owner: The optimizer of `thalweg.optimizers`.
        groups: torch's groups.
        state: torch's state, by the numbers in the groups.
    """

    def __init__(
        self, twin: Twin, owner: Any, groups: list[Group], state: Mapping[Any, Group]
    ) -> None:
        self._twin = twin
        self._owner = owner
        self._groups = groups
        problem = misfit(twin.name, groups, state)
        if problem:
            expected = f"the state of {twin.name}"
            raise refusal(twin, expected, problem, _OTHER_KIND)
        for group in groups:
            self._check_group(group)
        numbers = [number for group in groups for number in group["params"]]
        told = {number: _without_none(state.get(number, {})) for number in numbers}
        self._state = {number: own for number, own in told.items() if own}
        self._keys = {
            key: name
            for key, name in twin.slots.items()
            if name in owner.active_slots()
        }

    def decay(self) -> float:
        """What ``decay`` shall be."""
        if self._twin.decay is None:
            if self._owner.decay != 0:
                raise self._refuse("no decay of the rate", f"{self._owner.decay}")
            return 0.0
        return self._one("lr_decay", [g[self._twin.decay] for g in self._groups])

    def groups(self) -> list[Group]:
        """The groups with entries by the names that a face has for them."""
        return [self._read_group(group) for group in self._groups]

    def state(self) -> dict[Any, Group]:
        """Slots by name, with the counts that all parameters share."""
        expected = {*self._keys, *self._twin.shared}
        expected |= {_STEP} if self._twin.has_step else set()
        for number, own in self._state.items():
            if own.keys() != expected:
                got = f"{sorted(map(str, own))} of {number!r}"
                raise self._refuse(f"the state {sorted(expected)}", got)
        shared = self._read_shared()
        return {
            number: {**self._read_slots(number, own), **shared}
            for number, own in self._state.items()
        }

    # -- groups ---------------------------------------------------------------

    def _check_group(self, group: Group) -> None:
        twin, owner = self._twin, self._owner
        wanted = [*twin.options, *([twin.decay] if twin.decay else [])]
        missing = [name for name in wanted if name not in group]
        if missing:
            raise self._refuse(f"groups with {wanted}", f"none with {missing}")
        for name, value in _MUST_BE.items():
            if group.get(name, value) != value:
                raise self._refuse(f"{name}={value}", repr(group[name]))
        for name in twin.flags:
            if bool(group.get(name)) != getattr(owner, name):
                raise self._refuse(f"{name}={getattr(owner, name)}", f"{group[name]}")
        if "momentum" in twin.options:
            momentum = float(group["momentum"])
            if (momentum > 0) != owner.has_momentum:
                kind = "momentum" if owner.has_momentum else "no momentum"
                raise self._refuse(kind, f"momentum={momentum}")

    def _read_group(self, group: Group) -> Group:
        entries = {entry: group[name] for name, entry in self._twin.options.items()}
        own = {name: group[name] for name in _OWN_KEYS if name in group}
        return {**own, **entries, **self._read_weight_decay(group)}

    def _read_weight_decay(self, group: Group) -> Group:
        share = float(group.get("weight_decay", 0.0))
        shrinks = group.get("decoupled_weight_decay", self._twin.shrinks)
        is_known = "weight_decay" in self._owner.hyperparameters()
        if share and not shrinks:
            raise self._refuse("decoupled weight decay", f"an L2 penalty of {share}")
        if share and not is_known:
            raise self._refuse("no weight decay", f"weight_decay={share}")
        return {"weight_decay": share} if is_known else {}

    # -- state ----------------------------------------------------------------

    def _read_shared(self) -> Group:
        states = self._state.values()
        found: Group = {
            name: self._one(key, [own[key] for own in states])
            for key, name in self._twin.shared.items()
        }
        if self._twin.has_step:
            steps = [_count(own[_STEP]) for own in states]
            if self._twin.follows_step or self.decay():
                self._one(_STEP, steps)
            found[_STEP] = max(steps, default=0)
        return found

    def _one(self, key: str, values: list[Any]) -> float:
        """The number that all of these are."""
        numbers = sorted(map(float, values))
        if numbers and not math.isclose(numbers[0], numbers[-1], rel_tol=1e-6):
            expected = f"the same {key!r} for all parameters, which share one here"
            action = "thalweg.optim counts for each parameter: use it here."
            got = f"from {numbers[0]:g} to {numbers[-1]:g}"
            raise refusal(self._twin, expected, got, action)
        return numbers[0] if numbers else 0.0

    def _read_slots(self, number: Any, own: Group) -> Group:
        slots: Group = {}
        for key, name in self._keys.items():
            value = own[key]
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                got = f"{describe(value)} as {key!r} of {number!r}"
                raise self._refuse("floating tensors", got)
            slots[name] = value.detach()
        return slots

    def _refuse(self, expected: str, got: str) -> CheckpointError:
        return refusal(self._twin, expected, got, _OTHER_OPTION)


def _without_none(own: Group) -> Group:
    """A state without what torch has not made yet."""
    return {key: value for key, value in own.items() if value is not None}


def _count(value: Any) -> int:
    number = float(value)
    if not (number >= 0 and number.is_integer()):
        raise ValueError(f"{number} is no number of steps")
    return int(number)
