"""Huge pages for large tables, where the system has them on offer.

The touched rows of an embedding are spread over its whole table, so that nearly each of
them is a page of its own, and finding a page takes as long as reading the row. Pages of
2 MiB instead of 4 KiB bring the search down to a few entries that stay in the cache.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import Any

import torch

__all__ = ["prefer_huge_pages"]

_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)
"""None on systems that have no such thing."""
_HUGE_PAGE = 2 << 20
_LEAST_BYTES = 32 << 20
"""From here on every C library gives a block its own mapping, which ends with it."""


def prefer_huge_pages(tensor: torch.Tensor) -> bool:
    """Ask the system to keep a large tensor on huge pages; its values stay.

    Pages that are written for the first time afterwards are huge at once, others
    become so in the background. It is a hint: where the system refuses, or has huge
    pages switched off, nothing happens.

    Args:
        tensor: A tensor; one that is small, or not on the CPU, is left alone.

    Returns:
        Whether the system took the hint.

    Example:
        >>> prefer_huge_pages(torch.zeros(8))
        False
    """
    is_plain = type(tensor.data) is torch.Tensor and tensor.layout == torch.strided
    if _ADVICE is None or not tensor.is_cpu or not is_plain:
        return False
    storage = tensor.untyped_storage()
    if storage.nbytes() < _LEAST_BYTES:
        return False
    address = storage.data_ptr()
    first = -(-address // _HUGE_PAGE) * _HUGE_PAGE
    stop = (address + storage.nbytes()) // _HUGE_PAGE * _HUGE_PAGE
    return _advise()(first, stop - first, _ADVICE) == 0


@cache
def _advise() -> Any:
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
