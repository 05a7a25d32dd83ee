"""What only the face of torch asks of an optimizer: group numbers, and forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from thalweg.errors import describe, message
from thalweg.optimizers import Optimizer
from thalweg.optimizers.declarations import plain_number
from thalweg.optimizers.per_variable import Override
from thalweg.state import handle_of

__all__ = ["STEP", "check_slots", "forget", "override_numbers", "restore_slot"]


STEP = "step"
"""Key of the count of applied steps in the state of every parameter."""


def check_slots(
    optimizer: Optimizer, state: Mapping[Any, Any], parameters: Mapping[Any, Any]
) -> None:
    """Refuse state that the optimizer cannot have, as that of another kind.

    Args:
        optimizer: The optimizer.
        state: Saved state by id.
        parameters: Its parameters by the same ids.

    Raises:
        ValueError: If state belongs to no parameter, has a key that no slot of the
            optimizer has, or holds what cannot be the slot or number of its name.
    """
    strange = [key for key in state if key not in parameters]
    known = {STEP, *optimizer.state_variables(), *optimizer.active_slots()}
    known.update(optimizer.get_slot_names())
    names = {name for own in state.values() for name in own} - known
    expected, got = "", ""
    if strange:
        expected, got = "state of the parameters in its groups", f"that of {strange}"
    elif names and optimizer.active_slots():
        expected, got = f"state named {sorted(known)}", f"{sorted(names)}"
    elif problems := _misfits(optimizer, state, parameters):
        expected, got = "slots as its rule has them", "; ".join(problems)
    if got:
        where = f"{type(optimizer).__name__}.load_state_dict"
        action = "Load it into an optimizer of the class that it was saved from."
        raise ValueError(message(where, expected, got, action))


def _misfits(
    optimizer: Optimizer, state: Mapping[Any, Any], parameters: Mapping[Any, Any]
) -> list[str]:
    """What of the state of some parameters is no slot or number of its name."""
    numbers = {STEP, *optimizer.state_variables()}
    problems: list[str] = []
    for key, own in state.items():
        variable = handle_of(parameters[key])
        for name, value in own.items():
            is_tensor = isinstance(value, torch.Tensor)
            if name in numbers:
                is_good = value.numel() == 1 if is_tensor else _is_number(value)
            else:
                needed = _shape_needed(optimizer, name, variable)
                is_good = is_tensor and needed in (None, tuple(value.shape))
            if not is_good:
                problems.append(f"{name!r} of {key!r}: {describe(value)}")
    return problems


def _shape_needed(
    optimizer: Optimizer, name: str, variable: torch.Tensor
) -> tuple[int, ...] | None:
    """By declaration, or by the slot that is there; None if both say nothing."""
    entry = optimizer._find(variable)
    slot = None if entry is None else entry.slots.get(name)
    shape = None if slot is None else tuple(slot.shape)
    return shape if (said := optimizer.slot_shape(name, variable)) is None else said


def _is_number(value: Any) -> bool:
    return isinstance(plain_number(value), (int, float))


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
