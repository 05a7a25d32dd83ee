"""Arrays over the memory that items of a launch lie in, kept from launch to launch."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.compiler.array_ops import Array, tensor_over

__all__ = ["ARRAYS", "ItemViews", "Memory", "tensor_of", "view_memory"]

Memory = Array | Tensor
"""Memory of float32 or float64 as an array, of a half as a tensor."""

ARRAYS = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
"""What NumPy calls the dtypes it knows."""
_BITS = np.dtype(np.int16)
# An array at any address is a view of this window: it is made in a third of the time
# that a buffer of its own takes. NumPy takes no window that begins at 0.
_WINDOW: Any = (ctypes.c_char * (sys.maxsize - 1)).from_address(1)


def view_memory(address: int, length: int, dtype: torch.dtype) -> Memory:
    """A flat array over memory that somebody else owns.

    Args:
        address: Of the first element.
        length: Number of elements.
        dtype: Their dtype.

    Returns:
        An array, or a tensor for a half, of which NumPy does not know all. It is valid
        as long as the memory is.
    """
    kind = ARRAYS.get(dtype)
    if kind is not None:
        if length == 0:
            return np.empty(0, kind)
        return np.ndarray(length, kind, _WINDOW, address - 1)
    with torch.inference_mode(False):  # it is kept for steps outside of that mode
        if length == 0:
            return torch.empty(0, dtype=dtype, device="cpu")
        bits = np.ndarray(length, _BITS, _WINDOW, address - 1)
        return tensor_over(bits).view(dtype)


def tensor_of(memory: Memory) -> Tensor:
    """The same memory as a tensor."""
    return tensor_over(memory) if isinstance(memory, np.ndarray) else memory


class ItemViews:
    """The memory of variable, slots and gradient of some items.

    Args:
        dtypes: Their dtypes.
        items: Shape (n, 5): variable, offset, gradient offset, length, scalar row.
        pointers: Shape (variables, tensors): addresses.

    Attributes:
        memory: For each item a view of each tensor.
    """

    def __init__(
        self, dtypes: Sequence[torch.dtype], items: Array, pointers: Array
    ) -> None:
        self._dtypes = tuple(dtypes)
        self._variables = items[:, 0].copy()
        self._lengths: list[int] = items[:, 3].tolist()
        offsets = np.repeat(items[:, 1:2], len(dtypes), axis=1)
        offsets[:, -1] = items[:, 2]
        self._offsets = offsets * np.array([dtype.itemsize for dtype in dtypes])
        self._addresses = self._addresses_in(pointers)
        self._shared = self._find_shared()
        self.memory: list[list[Memory]] = [
            [
                view_memory(address, length, dtype)
                for address, dtype in zip(addresses, dtypes, strict=True)
            ]
            for addresses, length in zip(
                self._addresses.tolist(), self._lengths, strict=True
            )
        ]

    def move(self, pointers: Array) -> None:
        """Make views of what lies elsewhere now; the lists stay the same."""
        addresses = self._addresses_in(pointers)
        is_other = addresses != self._addresses
        is_other[self._shared, -1] = True  # `part` has put a copy there
        for number, position in np.argwhere(is_other).tolist():
            self.memory[number][position] = view_memory(
                int(addresses[number, position]),
                self._lengths[number],
                self._dtypes[position],
            )
        self._addresses = addresses
        self._shared = self._find_shared()

    def part(self) -> bool:
        """Copy gradients that are a variable or slot, which change under way.

        Returns:
            Whether there was one.
        """
        for number in self._shared:
            address, dtype = int(self._addresses[number, -1]), self._dtypes[-1]
            view = view_memory(address, self._lengths[number], dtype)
            own = view.copy() if isinstance(view, np.ndarray) else view.clone()
            self.memory[number][-1] = own
        return bool(self._shared)

    def _addresses_in(self, pointers: Array) -> Array:
        return pointers[self._variables] + self._offsets

    def _find_shared(self) -> list[int]:
        written, read = self._addresses[:, :-1], self._addresses[:, -1:]
        return np.flatnonzero((written == read).any(axis=1)).tolist()
