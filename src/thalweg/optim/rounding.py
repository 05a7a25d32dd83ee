"""Stochastic rounding of parameters: their labels, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from thalweg.errors import message
from thalweg.optim.described import Described
from thalweg.state import canonical_name
from thalweg.step import Rounding
from thalweg.step.rounding import check_roundable, labels_of, rounding_of

__all__ = ["check_counts", "check_group_roundable", "labels_of_groups", "rounding_in"]


def check_counts(optimizer: Described) -> None:
    """Refuse a class whose state does not tell how many steps there were.

    Args:
        optimizer: The optimizer.

    Raises:
        ValueError: If it is of one; a resumed run would round by other chances.
    """
    if not optimizer.counts_in_state:
        where = type(optimizer).__name__
        raise ValueError(
            message(
                f"{where}: stochastic_rounding",
                "a class that keeps a step count for each parameter",
                "one whose state has none, in torch's form",
                f"Use thalweg.optimizers.{where}, which counts its iterations.",
            )
        )


def check_group_roundable(optimizer: Described, group: Mapping[str, Any]) -> None:
    """Refuse a group whose parameters, or the state to be made, cannot be rounded so.

    Args:
        optimizer: The optimizer.
        group: A group with all options.

    Raises:
        ValueError: If one cannot.
    """
    options, keys = optimizer._options, sorted(optimizer.state_keys(group))
    for parameter in group["params"]:
        slots = {key: options.dtype_of(key, parameter.dtype) for key in keys}
        check_roundable(type(optimizer).__name__, parameter, slots)


def labels_of_groups(optimizer: Described) -> list[str]:
    """What parameters are told apart by: names if they have some, else positions.

    Args:
        optimizer: The optimizer.

    Returns:
        For each parameter of all groups one; none if nothing is rounded by chance.
    """
    if not optimizer._options.stochastic_rounding:
        return []
    names: list[str] = []
    for group in optimizer.param_groups:
        unnamed = [""] * len(group["params"])
        names += map(canonical_name, group.get("param_names", unnamed))
    return labels_of(names)


def rounding_in(
    optimizer: Described,
    label: str,
    parameter: torch.Tensor,
    keys: Sequence[str],
    slots: Sequence[torch.Tensor],
) -> Rounding | None:
    """What a parameter and its state are rounded by.

    Args:
        optimizer: The optimizer.
        label: What the parameter is told apart by.
        parameter: The parameter.
        keys: Keys of its state.
        slots: What is under them; it may have been loaded, in any dtype.

    Returns:
        None if nothing is bfloat16.

    Raises:
        ValueError: If something cannot be rounded so.
    """
    dtypes = {key: slot.dtype for key, slot in zip(keys, slots, strict=True)}
    check_roundable(type(optimizer).__name__, parameter, dtypes)
    return rounding_of(optimizer._options.rounding_seed, label, parameter, slots)
