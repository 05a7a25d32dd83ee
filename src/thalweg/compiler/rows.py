"""Work items for touched rows: in ascending order, the gradients of each as they came.

Rows lie in memory by their index, so ascending ones are found fastest. The gradients of
one row keep their order, because it decides the bits of their sum.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.compiler.build import build
from thalweg.errors import describe, message

__all__ = ["RowTables"]

_ITEM_COLUMNS = 5
_MOST_BITS = 64
"""Of an index and its position together, for the compiled grouping."""


class RowTables:
    """The items, starts and sources of a row kernel, filled anew in each step.

    The tables grow when they must and are reused otherwise.

    Attributes:
        num_items: Touched rows.
        num_elements: Elements of all gradients.

    Example:
        >>> rows = RowTables()
        >>> rows.append(torch.tensor([7, 2, 7]), num_rows=10, width=4, variable=0)
        >>> rows.items[:, 1].tolist(), rows.starts.tolist(), rows.sources.tolist()
        ([8, 28], [0, 1, 3], [1, 0, 2])
    """

    def __init__(self) -> None:
        self.num_items = 0
        self.num_elements = 0
        self._num_sources = 0
        self._items = torch.empty((0, _ITEM_COLUMNS), dtype=torch.int64)
        self._starts = torch.zeros(1, dtype=torch.int64)
        self._sources = torch.empty(0, dtype=torch.int64)
        self._numbers = torch.empty(0, dtype=torch.int64)
        self._room = 0
        self._addresses = self._locate()

    @property
    def items(self) -> Tensor:
        """Shape (n, 5): variable, offset, gradient offset, width, scalar row."""
        return self._items[: self.num_items]

    @property
    def starts(self) -> Tensor:
        """Shape (n + 1,): where the sources of each item begin."""
        return self._starts[: self.num_items + 1]

    @property
    def sources(self) -> Tensor:
        """Positions in the list of indices, grouped by item."""
        return self._sources[: self._num_sources]

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Of items, starts and sources; another step may move them."""
        return self._addresses[:3]

    def clear(self) -> None:
        """Start a new step."""
        self.num_items = self.num_elements = self._num_sources = 0

    def append(
        self,
        indices: Tensor,
        *,
        num_rows: int,
        width: int,
        variable: int,
        scalar_row: int = 0,
        gradient_offset: int = 0,
    ) -> None:
        """Add the touched rows of one variable.

        Args:
            indices: Shape (N,), int32 or int64, on the CPU.
            num_rows: Rows of the variable.
            width: Elements of a row.
            variable: Row of the pointer table.
            scalar_row: Row of the scalar table.
            gradient_offset: Where row 0 of the gradient begins.

        Raises:
            TypeError: If the indices are not integers.
            IndexError: If an index is negative or not below `num_rows`; then nothing
                was added.
        """
        if indices.dtype not in (torch.int32, torch.int64) or indices.dim() != 1:
            raise TypeError(
                message(
                    "rows",
                    "a vector of int32 or int64 indices",
                    describe(indices),
                    "Convert the indices.",
                )
            )
        count = indices.numel()
        if count == 0:
            return
        if self._num_sources + count > self._room:
            self._reserve(self._num_sources + count)
        item = (variable, gradient_offset, scalar_row)
        functions = _functions()
        if functions and _bits(num_rows) + _bits(count) <= _MOST_BITS:
            function = functions[indices.dtype]
            indices = indices.contiguous()
            unique = self._group_in_c(function, indices, num_rows, width, item)
        else:
            unique = self._group_by_numpy(indices, num_rows, width, item)
        if unique < 0:
            position = -1 - unique
            raise IndexError(
                message(
                    "rows",
                    f"indices from 0 to {num_rows - 1}",
                    f"{int(indices[position])} at position {position}",
                    "Check the indices of the gradient.",
                )
            )
        self.num_items += unique
        self.num_elements += count * width
        self._num_sources += count

    def _reserve(self, count: int) -> None:
        """Make room for so many indices, of which each may be another row."""
        self._room = max(count, 2 * self._room)
        self._items = _grown(self._items, self._room)
        self._starts = _grown(self._starts, self._room + 1)
        self._sources = _grown(self._sources, self._room)
        self._numbers = _grown(self._numbers, 2 * self._room)
        self._addresses = self._locate()

    def _locate(self) -> tuple[int, int, int, int]:
        items, starts = self._items.data_ptr(), self._starts.data_ptr()
        return items, starts, self._sources.data_ptr(), self._numbers.data_ptr()

    def _group_in_c(
        self,
        function: Any,
        indices: Tensor,
        num_rows: int,
        width: int,
        item: tuple[int, int, int],
    ) -> int:
        """Run the compiled grouping; see `rows.c`."""
        number, base = self.num_items, self._num_sources
        items, starts, sources, numbers = self._addresses
        return function(
            indices.numel(),
            indices.data_ptr(),
            num_rows,
            width,
            *item,
            base,
            numbers,
            items + number * _ITEM_COLUMNS * 8,
            starts + number * 8,
            sources + base * 8,
        )

    def _group_by_numpy(
        self, indices: Tensor, num_rows: int, width: int, item: tuple[int, int, int]
    ) -> int:
        """The same without a compiler."""
        values = indices.numpy().astype(np.int64)
        wrong = np.flatnonzero((values < 0) | (values >= num_rows))
        if wrong.size:
            return -1 - int(wrong[0])
        sources = np.argsort(values, kind="stable")
        unique, first = np.unique(values[sources], return_index=True)
        number, base = self.num_items, self._num_sources
        items = self._items[number : number + unique.size].numpy()
        items[:, 0], items[:, 2], items[:, 4] = item
        items[:, 1], items[:, 3] = unique * width, width
        starts = self._starts[number : number + unique.size + 1].numpy()
        starts[:-1], starts[-1] = base + first, base + values.size
        self._sources[base : base + values.size].numpy()[:] = sources
        return int(unique.size)


@cache
def _functions() -> dict[torch.dtype, Any]:
    """The compiled grouping for each dtype of indices; none without a compiler."""
    source = resources.files("thalweg.compiler").joinpath("rows.c")
    library = build(source.read_text("utf-8"))
    if library is None:
        return {}
    count, address = ctypes.c_int64, ctypes.c_void_p
    found: dict[torch.dtype, Any] = {}
    for dtype, kind in ((torch.int32, "int32"), (torch.int64, "int64")):
        function = found[dtype] = library.short[f"thalweg_group_{kind}"]
        function.restype = count
        function.argtypes = [count, address, *[count] * 6, *[address] * 4]
    return found


def _bits(count: int) -> int:
    return (count - 1).bit_length()


def _grown(table: Tensor, length: int) -> Tensor:
    """A longer table with the same content."""
    longer = table.new_empty((length, *table.shape[1:]))
    longer[: table.shape[0]] = table
    return longer
