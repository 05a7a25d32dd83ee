"""What only the face of torch asks of an optimizer: group numbers, and forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from thalweg.errors import message
from thalweg.optimizers import Optimizer
from thalweg.optimizers.per_variable import Override

__all__ = ["STEP", "check_slots", "forget", "override_numbers", "restore_slot"]


STEP = "step"
"""Key of the count of applied steps in the state of every parameter."""


def check_slots(optimizer: Optimizer, state: Mapping[Any, Mapping[str, Any]]) -> None:
    """Refuse the state of another kind of optimizer.

    Args:
        optimizer: The optimizer.
        state: Saved state of its parameters.

    Raises:
        ValueError: If there is a key that no slot of the optimizer has.
    """
    known = {STEP, *optimizer.state_variables(), *optimizer.active_slots()}
    known.update(optimizer.get_slot_names())
    strange = {name for own in state.values() for name in own} - known
    if strange and optimizer.active_slots():
        raise ValueError(
            message(
                f"{type(optimizer).__name__}.load_state_dict",
                f"state named {sorted(known)}",
                f"{sorted(strange)}",
                "Load it into an optimizer of the class that it was saved from.",
            )
        )


def override_numbers(
    optimizer: Optimizer, variables: Sequence[torch.Tensor], numbers: Mapping[str, Any]
) -> None:
    """Let callables give the hyperparameters of some variables.

    Args:
        optimizer: The optimizer, built for the variables.
        variables: The variables; those that were not built are left out.
        numbers: Names to callables. ``per_variable`` comes on top of them.
    """
    if not numbers:
        return
    first = tuple(Override(name, value) for name, value in numbers.items())
    table = optimizer._table
    for variable in variables:
        entry = optimizer._entries.get(id(variable))
        if entry is not None:
            setting = list(table._rows)[entry.setting]
            if setting[: len(first)] != first:
                entry.setting = table.row_of(first + setting)
                optimizer._plan = None


def restore_slot(
    optimizer: Optimizer, name: str, variable: torch.Tensor, value: torch.Tensor
) -> None:
    """Give a slot a value, in the value's dtype.

    Args:
        optimizer: The optimizer.
        name: Name of the slot.
        variable: Whose slot it is.
        value: Its value.
    """
    entry = optimizer._entry(variable)
    slot = entry.slots.get(name)
    if slot is value:
        return
    if slot is not None and slot.dtype != value.dtype:
        _drop(optimizer, [entry.slots.pop(name)])
    optimizer.restore_slot_variable(name, variable, value)


def forget(
    optimizer: Optimizer, variables: Sequence[torch.Tensor], *, resets: bool
) -> None:
    """Drop the slots of some variables; the next step makes them anew.

    Args:
        optimizer: The optimizer.
        variables: The variables.
        resets: Whether to begin counting anew, too.
    """
    for variable in variables:
        entry = optimizer._entries.pop(id(variable), None)
        if entry is not None:
            _drop(optimizer, list(entry.slots.values()))
    if resets:
        declared = optimizer._states_declared
        with torch.no_grad():
            optimizer.iterations.zero_()
            for name, number in optimizer.state_variables().items():
                number.fill_(declared[name].initial)


def _drop(optimizer: Optimizer, slots: Sequence[torch.Tensor]) -> None:
    gone = set(map(id, slots))
    optimizer._weights[:] = [w for w in optimizer._weights if id(w) not in gone]
    optimizer._shards.clear()
    optimizer._plan = None
