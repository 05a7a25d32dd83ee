"""Which variables have become inf or NaN, and how messages name them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from thalweg.distribute.components import local_tensor

__all__ = ["lost_among", "named_in_short"]

_MAX_NAMED = 5


def lost_among(variables: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of those that have an inf or NaN; it waits for the device.

    Of a sharded one the part that lies in this process is looked at.

    Example:
        >>> lost_among({"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan])})
        ['b']
    """
    with torch.no_grad():
        return [n for n, one in variables.items() if _is_lost(local_tensor(one))]


def _is_lost(variable: torch.Tensor) -> bool:
    # A sum takes a fraction of the time, and is finite only if all of it is.
    if bool(torch.isfinite(variable.sum())):
        return False
    return not bool(torch.isfinite(variable).all())


def named_in_short(names: list[str]) -> str:
    """Name the first few, and say how many more there are.

    Example:
        >>> named_in_short(list("abcdefg")), named_in_short([])
        ('a, b, c, d, e and 2 more', 'none')
    """
    shown = ", ".join(names[:_MAX_NAMED])
    more = f" and {len(names) - _MAX_NAMED} more" if names[_MAX_NAMED:] else ""
    return f"{shown or 'none'}{more}"
