"""Stochastic rounding as optimizers offer it: the options, labels, what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from thalweg.compiler.rounding import rounding_key
from thalweg.distribute.flat_range import first_index
from thalweg.errors import describe, message
from thalweg.state import name_of
from thalweg.step.group import Rounding

__all__ = ["check_roundable", "checked_rounding", "labels_of", "rounding_of"]


def checked_rounding(where: str, is_wanted: Any, seed: Any) -> tuple[bool, int]:
    """Check what was given as ``stochastic_rounding`` and ``rounding_seed``.

    Args:
        where: Name of the optimizer, for messages.
        is_wanted: The first.
        seed: The second; None if it was left out.

    Returns:
        Whether to round by chance, and the seed.

    Raises:
        TypeError: If the first is no bool.
        ValueError: If the second is no whole number >= 0, or stands alone.
    """
    if not isinstance(is_wanted, bool):
        raise TypeError(
            message(
                f"{where}: stochastic_rounding",
                "True or False",
                repr(is_wanted),
                "A seed is given as rounding_seed.",
            )
        )
    if seed is None:
        return is_wanted, 0
    is_seed = isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
    if not (is_seed and is_wanted):
        raise ValueError(
            message(
                f"{where}: rounding_seed",
                "a whole number >= 0, beside stochastic_rounding=True",
                repr(seed) if not is_seed else f"{seed} without it",
                "Pass both, or leave it out.",
            )
        )
    return True, seed


def check_roundable(
    where: str, variable: torch.Tensor, slots: Mapping[str, torch.dtype]
) -> None:
    """Refuse a variable that cannot be rounded so, or one with such a slot.

    Args:
        where: Name of the optimizer, for messages.
        variable: The variable.
        slots: Dtypes of its slots by name, without low-precision copies.

    Raises:
        ValueError: If one of them is float16, or bfloat16 in a shard that is no range
            of elements.
    """
    dtypes = {"the variable itself": variable.dtype}
    dtypes |= {f"slot {name!r}": dtype for name, dtype in slots.items()}
    for what, dtype in dtypes.items():
        if dtype == torch.float16:
            raise ValueError(
                message(
                    f"{where}: stochastic_rounding",
                    "bfloat16, float32 or float64 for "
                    f"{name_of(variable, 'a variable')} and its slots",
                    f"float16 for {what} of a {describe(variable)}",
                    "Use bfloat16, or leave stochastic_rounding out.",
                )
            )
    if torch.bfloat16 in dtypes.values():
        first_index(variable)


def labels_of(names: Iterable[str]) -> list[str]:
    """What variables are told apart by: a name, and how often it came before.

    Args:
        names: Names of all variables in their order; "" for one without.

    Example:
        >>> labels_of(["kernel", "", "", "kernel"])
        ['kernel 0', ' 0', ' 1', 'kernel 1']
    """
    counts: Counter[str] = Counter()
    labels: list[str] = []
    for name in names:
        labels.append(f"{name} {counts[name]}")
        counts[name] += 1
    return labels


def rounding_of(
    seed: int, label: str, variable: torch.Tensor, slots: Iterable[torch.Tensor]
) -> Rounding | None:
    """What a variable is rounded by: the same on every rank, and after a resume.

    Args:
        seed: The seed.
        label: See `labels_of`.
        variable: The variable, or a shard of it.
        slots: Its slots, without low-precision copies.

    Returns:
        None if nothing of it is bfloat16.
    """
    if all(tensor.dtype != torch.bfloat16 for tensor in (variable, *slots)):
        return None
    return Rounding(rounding_key(seed, label), first_index(variable))
