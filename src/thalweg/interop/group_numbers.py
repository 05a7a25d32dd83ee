"""Hyperparameters of an optimizer as entries of torch's parameter groups.

The first group shows the optimizer's own hyperparameters; every further one overrides
them for its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from thalweg.errors import message
from thalweg.optimizers import Optimizer

__all__ = [
    "GroupNumber",
    "entries_of",
    "numbers_of",
    "numbers_shown",
    "plain_number",
]

_TORCH_NAMES = {"learning_rate": "lr", "epsilon": "eps"}
_BETAS = ("beta_1", "beta_2")
_NOT_SHOWN = ("decay",)


class GroupNumber:
    """The number that a further group has in place of the optimizer's.

    Args:
        value: The number.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self) -> float:
        """The number, as an optimizer asks for it in every step."""
        return self.value


def numbers_shown(optimizer: Optimizer) -> dict[str, float]:
    """The hyperparameters that groups show, with the numbers in force."""
    values = optimizer.hyperparameters().items()
    names = [n for n, v in values if not isinstance(v, bool) and n not in _NOT_SHOWN]
    return {name: optimizer.hyper_in_force(name) for name in names}


def entries_of(numbers: Mapping[str, float]) -> dict[str, Any]:
    """Entries of a group, by torch's names.

    Args:
        numbers: Hyperparameters by Keras's names.

    Returns:
        ``lr``, ``betas``, ``eps``; others under their own names.
    """
    entries: dict[str, Any] = {}
    has_betas = all(name in numbers for name in _BETAS)
    for name, number in numbers.items():
        if has_betas and name in _BETAS:
            entries["betas"] = tuple(numbers[n] for n in _BETAS)
        else:
            entries[_TORCH_NAMES.get(name, name)] = number
    return entries


def numbers_of(group: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, float]:
    """The inverse of `entries_of`.

    Args:
        group: A parameter group.
        names: Hyperparameters that are wanted.

    Returns:
        For each name its number.

    Raises:
        TypeError: If an entry is no number.
    """
    return {name: _number(group, name, names) for name in names}


def _number(group: Mapping[str, Any], name: str, names: Mapping[str, Any]) -> float:
    has_betas = all(beta in names for beta in _BETAS)
    entry = _TORCH_NAMES.get(name, name)
    try:
        if has_betas and name in _BETAS:
            entry = "betas"
            value = group[entry][_BETAS.index(name)]
        else:
            value = group[entry]
    except (TypeError, KeyError, IndexError):
        raise _no_number(name, entry, group.get(entry)) from None
    return plain_number(name, value, entry)


def plain_number(name: str, value: Any, entry: str = "") -> float:
    """A number as Python's own.

    Args:
        name: The hyperparameter, for the error text.
        value: A number, or a tensor that holds one.
        entry: Under what a group has it.

    Raises:
        TypeError: If it is no number.
    """
    try:
        return value.item() if isinstance(value, torch.Tensor) else float(value)
    except (TypeError, ValueError, RuntimeError):
        raise _no_number(name, entry or name, value) from None


def _no_number(name: str, entry: str, value: Any) -> TypeError:
    return TypeError(
        message(
            "param_groups",
            f"a number for {name!r} under {entry!r}",
            repr(value),
            "Set it to a float.",
        )
    )
