"""What a class says of its slots, looked at before one of them is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

import torch

from thalweg.errors import describe, message, nearest
from thalweg.optimizers.declarations import Layout, Slot, plain_number
from thalweg.step.slot_dtypes import DTYPES, dtype_among

__all__ = ["check_slot", "check_slot_names"]


def check_slot(where: str, slot: Slot) -> None:
    """Refuse a shape, dtype or first value that no slot has.

    Args:
        where: Class and name of the slot, for messages.
        slot: The declaration.

    Raises:
        ValueError: If shape or dtype is another one.
        TypeError: If the first value is of another kind.
    """
    shapes = get_args(Layout)
    if slot.shape not in shapes:
        what, got = f"one of {shapes}", repr(slot.shape)
        action = nearest(slot.shape, shapes)
        raise ValueError(message(f"{where}: shape", what, got, action))
    if slot.dtype is not None:
        dtype_among(DTYPES, f"{where}: dtype", slot.dtype)
    initial = plain_number(slot.initial)
    kinds = (int, float, str, torch.Tensor)
    if not isinstance(initial, kinds) and not callable(initial):
        what = "a number, 'var' or the name of a hyperparameter"
        got = describe(initial)
        raise TypeError(message(f"{where}: initial", what, got, "Pass one of these."))


def check_slot_names(optimizer: Any, slots: Mapping[str, Slot]) -> None:
    """Refuse slots that ask for what an optimizer does not have.

    Args:
        optimizer: The optimizer, constructed.
        slots: Its slots by name.

    Raises:
        ValueError: If a first value names no hyperparameter, or ``when`` no attribute.
    """
    for name, slot in slots.items():
        where, initial = f"{type(optimizer).__name__}.{name}", slot.initial
        known = ["var", *optimizer._hyper]
        if isinstance(initial, str) and initial not in known:
            what = "a number, 'var' or the name of a hyperparameter"
            action = nearest(initial, ["var", *optimizer._hypers_declared])
            raise ValueError(message(f"{where}: initial", what, repr(initial), action))
        if slot.when is not None and not hasattr(optimizer, slot.when):
            what, got = "the name of a flag or another attribute", repr(slot.when)
            action = _advice_on_flag(slot.when, dir(optimizer))
            raise ValueError(message(f"{where}: when", what, got, action))


def _advice_on_flag(name: Any, known: Iterable[str]) -> str:
    question = nearest(name, [n for n in known if not n.startswith("_")])
    if question.startswith("Did"):
        return question
    return f"Declare it: {name}: tw.Flag = tw.Flag(default=False)."
