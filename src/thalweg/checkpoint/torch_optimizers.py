"""Optimizers of torch as owners of slots: their state is found by variable, not number.

`torch.optim`'s own `load_state_dict` matches by position and casts what it loads to
the parameter's dtype. Here a tensor of the state is a slot: it is stored under its
variable's name and keeps its dtype, and a sharded one is sharded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from thalweg.checkpoint.values import Value
from thalweg.errors import message
from thalweg.state import handle_of

__all__ = ["STEP", "TorchSlots", "other_state", "slots_of_torch"]

_NO_HYPERPARAMETERS = frozenset({"params", "param_names"})
STEP = "step"


class TorchSlots:
    """A `torch.optim.Optimizer` in the shape of a `SlotOwner`.

    Args:
        optimizer: One that keeps its state as torch's base class does.
    """

    takes_new_hyperparameters = True

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def iterations(self) -> int | None:
        """The largest step count of a parameter; None before the first step."""
        counts = [
            int(slots[STEP])
            for slots in self.optimizer.state.values()
            if isinstance(slots, dict) and STEP in slots
        ]
        return max(counts, default=None)

    def slot_variables(self) -> Iterator[tuple[torch.Tensor, str, Any]]:
        """Yield (parameter, name, tensor) for every tensor of the state.

        Raises:
            RuntimeError: If parameters hold something else than was trained.
        """
        getattr(self.optimizer, "check_trained", _nothing)()
        for parameter in self.parameters():
            for name, item in self.optimizer.state.get(parameter, {}).items():
                if isinstance(item, torch.Tensor) and isinstance(name, str):
                    yield parameter, name, item

    def restore_slot_variable(
        self, slot_name: str, variable: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Put a tensor into the state of a parameter, on its device."""
        group = self._group_of(variable)
        on_device = group.get("capturable") or group.get("fused")
        if slot_name != STEP or on_device:
            value = value.to(variable.device)
        self.optimizer.state[variable][slot_name] = value

    def hyperparameters(self) -> dict[str, Any]:
        """What the parameter groups hold besides parameters, by group and name."""
        return {
            f"{number}.{name}": _plain(value)
            for number, group in enumerate(self.optimizer.param_groups)
            for name, value in group.items()
            if name not in _NO_HYPERPARAMETERS
        }

    def restore_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Set entries of the parameter groups; a tensor stays the same object.

        Raises:
            ValueError: If there is no such group; nothing is changed then.
        """
        groups = self.optimizer.param_groups
        places = [(*key.split(".", 1), value) for key, value in values.items()]
        if any(int(number) >= len(groups) for number, _, _ in places):
            raise ValueError(
                message(
                    type(self.optimizer).__name__,
                    f"hyperparameters of {len(groups)} parameter groups",
                    f"{sorted({number for number, _, _ in places})}",
                    "Restore into an optimizer with the same groups.",
                )
            )
        for number, name, value in places:
            group = groups[int(number)]
            if isinstance(group.get(name), torch.Tensor):
                group[name].fill_(value)
            else:
                group[name] = value

    def parameters(self) -> Iterator[torch.Tensor]:
        """The parameters of all groups, in order."""
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def _group_of(self, variable: torch.Tensor) -> dict[str, Any]:
        for group in self.optimizer.param_groups:
            if any(variable is parameter for parameter in group["params"]):
                return group
        raise ValueError(
            message(
                type(self.optimizer).__name__,
                "one of its own parameters",
                f"a variable of shape {tuple(variable.shape)}",
                "Give the parameter to the optimizer before restoring.",
            )
        )


def slots_of_torch(value: object) -> TorchSlots | None:
    """View a torch optimizer as an owner of slots.

    A class that gives and takes its state in a way of its own goes by that way, unless
    its ``keeps_slots`` says that the tensors of its state are slots all the same.
    """
    base = torch.optim.Optimizer
    if not isinstance(value, base):
        return None
    cls = type(value)
    own = cls.state_dict is base.state_dict, cls.load_state_dict is base.load_state_dict
    keeps_slots = all(own) or getattr(cls, "keeps_slots", False)
    return TorchSlots(value) if keeps_slots else None


def other_state(slots: TorchSlots, name_of: Callable[[torch.Tensor], str]) -> Value:
    """What a torch optimizer's state holds besides tensors: numbers, lists, None.

    Args:
        slots: The optimizer.
        name_of: The key of a parameter; asked when the state is read or put.
    """
    state = slots.optimizer.state

    def get() -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for parameter in slots.parameters():
            own = state.get(parameter, {})
            others = {k: v for k, v in own.items() if not isinstance(v, torch.Tensor)}
            if others:
                found[name_of(parameter)] = others
        return found

    def put(new: dict[str, dict[str, Any]]) -> None:
        for parameter in slots.parameters():
            others = new.get(name_of(parameter))
            if others:  # an empty entry would tell torch that there has been a step
                state[parameter].update(others)

    return Value(get, put)


def _nothing() -> None:
    """Most optimizers leave parameters alone between steps."""


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return handle_of(value).item()
    return value
