"""Touched rows: in ascending order, the gradients of each as they came.

Rows lie in memory by their index, so ascending ones are found fastest. The gradients of
one row keep their order, because it decides the bits of their sum.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.compiler.build import Library, build
from thalweg.errors import RowIndexError, describe, message

__all__ = ["RowTables", "RowWalk", "check_indices", "check_range"]

_ITEM_COLUMNS = 5
_ROWS_COLUMNS = 8
"""As `thalweg_rows` in `rows.c`: count, indices, is wide, begin, and the rest."""
_SHORT_ELEMENTS = 1_000_000
"""Up to here a walk keeps the interpreter lock: it takes a millisecond or two."""


class RowTables:
    """The items, starts and sources of a row kernel, filled anew in each step.

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
        self.clear()

    def clear(self) -> None:
        """Start a new step."""
        self.num_items = self.num_elements = 0
        self._items = np.empty((0, _ITEM_COLUMNS), dtype=np.int64)
        self._starts = np.zeros(1, dtype=np.int64)
        self._sources = np.empty(0, dtype=np.int64)

    @property
    def items(self) -> Tensor:
        """Shape (n, 5): variable, offset, gradient offset, width, scalar row."""
        return torch.as_tensor(self._items, device="cpu")

    @property
    def starts(self) -> Tensor:
        """Shape (n + 1,): where the sources of each item begin."""
        return torch.as_tensor(self._starts, device="cpu")

    @property
    def sources(self) -> Tensor:
        """Positions in the list of indices, grouped by item."""
        return torch.as_tensor(self._sources, device="cpu")

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Of items, starts and sources; another step may move them."""
        tables = self._items, self._starts, self._sources
        return tables[0].ctypes.data, tables[1].ctypes.data, tables[2].ctypes.data

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
            RowIndexError: If an index is negative or not below `num_rows`; then nothing
                was added.
        """
        check_indices(indices)
        check_range(indices, num_rows)
        values = indices.numpy().astype(np.int64)
        sources = np.argsort(values, kind="stable")
        unique, first = np.unique(values[sources], return_index=True)
        items = np.empty((unique.size, _ITEM_COLUMNS), dtype=np.int64)
        items[:, 0], items[:, 2], items[:, 4] = variable, gradient_offset, scalar_row
        items[:, 1], items[:, 3] = unique * width, width
        begin = self._sources.size
        ends = begin + np.append(first[1:], values.size)[: unique.size]
        self._items = np.concatenate([self._items, items])
        self._starts = np.concatenate([self._starts, ends])
        self._sources = np.concatenate([self._sources, sources])
        self.num_items += unique.size
        self.num_elements += values.size * width


class RowWalk:
    """A compiled row kernel over the touched rows of some variables.

    Args:
        function: The kernel's function.
        pointers: Its table of addresses.
        scalars: Its table of scalars.

    """

    def __init__(
        self, function: Any, pointers: np.ndarray, scalars: np.ndarray
    ) -> None:
        self._calls: Any = _calls()
        self._variables = array("q")
        self._sources = np.empty(0, dtype=np.int64)
        self._scratch = np.empty(0, dtype=np.int64)
        self._function = ctypes.cast(function, ctypes.c_void_p).value
        self._tables = pointers.ctypes.data, scalars.ctypes.data, len(scalars)
        self._kept = pointers, scalars
        self._indices: Sequence[Tensor] = ()
        self._num_elements = 0

    @classmethod
    def of(
        cls, function: Any, pointers: np.ndarray, scalars: np.ndarray
    ) -> RowWalk | None:
        """The walk of a kernel; None if `rows.c` cannot be compiled."""
        return None if _calls() is None else cls(function, pointers, scalars)

    def bind(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Take variables, each in its row of the tables.

        Args:
            shapes: Rows of each, and elements of a row.
        """
        rows = [[0, 0, 0, 0, *s, n, n] for n, s in enumerate(shapes)]
        self._variables = array("q", [number for row in rows for number in row])
        self._shapes = list(shapes)
        self._arguments = len(rows), self._variables.buffer_info()[0]

    def sort(self, indices: Sequence[Tensor], num_threads: int) -> None:
        """Find the rows of the next walk.

        Args:
            indices: Of each variable, int32 or int64, contiguous, on the CPU.
            num_threads: Threads to use.

        Raises:
            RowIndexError: If an index is negative or names no row.
        """
        self._indices = indices  # read again by the walk
        variables, begin, elements, place = self._variables, 0, 0, 0
        for tensor in indices:
            count = tensor.numel()
            variables[place] = count
            variables[place + 1] = tensor.data_ptr()
            variables[place + 2] = tensor.dtype is torch.int64
            variables[place + 3] = begin
            begin += count
            elements += count * variables[place + 5]
            place += _ROWS_COLUMNS
        if begin > len(self._sources):
            self._reserve(begin)
        self._num_elements = elements
        sort = self._calls.short.thalweg_sort_rows
        if not sort(*self._arguments, *self._addresses, num_threads):
            for tensor, (num_rows, _) in zip(indices, self._shapes, strict=True):
                check_range(tensor, num_rows)

    def _reserve(self, count: int) -> None:
        """Make room for so many sources, and twice as many of half their size."""
        if count > np.iinfo(np.int32).max:
            raise OverflowError("more than two thousand million indices in one step")
        self._sources = np.empty(2 * count, dtype=np.int64)
        self._scratch = np.empty(2 * count, dtype=np.int64)
        self._addresses = self._scratch.ctypes.data, self._sources.ctypes.data

    def __call__(self, num_threads: int) -> None:
        """Update the rows found last; small work uses one thread."""
        is_short = self._num_elements <= _SHORT_ELEMENTS
        library = self._calls.short if is_short else self._calls.long
        library.thalweg_walk_rows(
            *self._arguments,
            self._addresses[1],
            self._function,
            *self._tables,
            num_threads,
        )
        self._indices = ()


def check_indices(indices: Tensor) -> None:
    """Refuse what is no list of rows.

    Args:
        indices: What may be one.

    Raises:
        TypeError: If it is no vector of int32 or int64.
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


def check_range(indices: Tensor, num_rows: int) -> None:
    """Refuse indices that name no row.

    Args:
        indices: int32 or int64, on the CPU.
        num_rows: How many rows there are.

    Raises:
        RowIndexError: If one is negative or too large.
    """
    wrong = np.flatnonzero((indices.numpy() < 0) | (indices.numpy() >= num_rows))
    if wrong.size:
        raise RowIndexError(
            message(
                "rows",
                f"indices from 0 to {num_rows - 1}",
                f"{int(indices[wrong[0]])} at position {wrong[0]}",
                "Check the indices of the gradient.",
            )
        )


@cache
def _calls() -> Library | None:
    """The functions of `rows.c`; None without a compiler."""
    source = resources.files("thalweg.compiler").joinpath("rows.c")
    library = build(source.read_text("utf-8"))
    if library is None:
        return None
    count, address, threads = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int
    for kind in (library.short, library.long):
        kind.thalweg_sort_rows.argtypes = [count, *[address] * 3, threads]
        walk = kind.thalweg_walk_rows
        walk.argtypes = [count, *[address] * 5, count, threads]
        walk.restype = None
    return library
