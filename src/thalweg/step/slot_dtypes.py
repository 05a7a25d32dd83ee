"""Storage dtypes of slots, as constructors are given them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from thalweg.errors import message

__all__ = [
    "DTYPES",
    "SlotDtypes",
    "SlotDtypesGiven",
    "checked_slot_dtypes",
    "dtype_among",
    "dtype_name",
]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What kernels can store."""
SlotDtypes = str | torch.dtype | dict[str, torch.dtype] | None
"""None, ``"variable"``, one dtype of all slots, or one for each slot that is named."""
SlotDtypesGiven = str | torch.dtype | Mapping[str, str | torch.dtype] | None
"""The same with dtypes or their names."""


def checked_slot_dtypes(where: str, given: Any) -> SlotDtypes:
    """Check what was given as ``slot_dtypes``.

    Args:
        where: Name of the optimizer, for messages.
        given: None, ``"variable"``, a dtype, its name, or slot name to one of both.

    Raises:
        TypeError: If it is none of these.
        ValueError: If no slot can be stored in a dtype.

    Example:
        >>> checked_slot_dtypes("Adam", {"m": "bfloat16"})
        {'m': torch.bfloat16}
        >>> checked_slot_dtypes("Adam", "bfloat16")
        torch.bfloat16
    """
    name = f"{where}: slot_dtypes"
    if given is None or given == "variable":
        return given
    if isinstance(given, Mapping):
        table = cast("Mapping[Any, Any]", given)
        return {
            str(slot): dtype_among(DTYPES, f"{name}[{slot!r}]", dtype)
            for slot, dtype in table.items()
        }
    if isinstance(given, (str, torch.dtype)):
        return dtype_among(DTYPES, name, given)
    expected = 'None, "variable", a dtype, or a mapping from slot name to dtype'
    action = 'For example "bfloat16" or {"m": "bfloat16"}.'
    raise TypeError(message(name, expected, repr(given), action))


def dtype_among(known: Sequence[torch.dtype], where: str, given: Any) -> torch.dtype:
    """One of some dtypes, which may be given by name.

    Args:
        known: The dtypes.
        where: Text that begins the message.
        given: A dtype or its name.

    Raises:
        ValueError: If it is another one.
    """
    dtype = getattr(torch, given, None) if isinstance(given, str) else given
    if isinstance(dtype, torch.dtype) and dtype in known:
        return dtype
    names = ", ".join(map(dtype_name, known))
    action = "Pass one of them, as a torch dtype or by its name."
    raise ValueError(message(where, f"a dtype among {names}", repr(given), action))


def dtype_name(dtype: torch.dtype) -> str:
    """The name as configurations have it.

    Example:
        >>> dtype_name(torch.bfloat16)
        'bfloat16'
    """
    return str(dtype).removeprefix("torch.")
