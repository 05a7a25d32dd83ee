"""Kernels: what compiling a key gives, and how it is started.

A kernel works on three tables that its caller keeps:

| table | dtype, shape | content |
|---|---|---|
| items | int64, (n, 5) | variable, offset, gradient offset, length, scalar row |
| pointers | int64, (variables, tensors) | addresses of variable, slots, gradient |
| scalars | float64, (rows, columns) | see `Columns` |

A kernel without a compiled function runs the interpreter over the same tables.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Literal, Union

import numpy as np
from torch import Tensor, fx

from thalweg.compiler.build import Library
from thalweg.compiler.graph import expect_reduction, label_of
from thalweg.compiler.interpret import Interpreter
from thalweg.compiler.key import KernelKey
from thalweg.compiler.program import Columns, Program
from thalweg.compiler.reductions import CHUNK
from thalweg.compiler.rows import RowTables
from thalweg.compiler.skeleton_c import pass_name
from thalweg.compiler.table_checks import check_tables, checked_row_tables
from thalweg.compiler.tables import Between, TableInterpreter

__all__ = ["Kernel", "Launch", "RowLaunch", "Table"]

Table = Union[Tensor, "np.ndarray[Any, Any]"]
_KINDS = (Tensor, np.ndarray)

_SHORT_ELEMENTS = 1_000_000
"""Up to here a launch keeps the interpreter lock: it takes a millisecond or less."""


class Kernel:
    """One compiled rule.

    Attributes:
        key: What it was made for.
        columns: Layout of the scalar table; `apply` must be set by the caller.
        row_axes: Number of trailing axes of a row; 0 if rows do not matter.
        num_passes: More than one for a rule that reduces whole variables. Then each
            variable needs a scalar row of its own, and its items must begin at
            multiples of 16,384 elements, in order.
        totals: For each reading pass, columns it fills and "sum" or "max": what other
            ranks' columns must be joined by.
        source: The C text.
        backend: "c" or "interpreter".
    """

    def __init__(
        self,
        key: KernelKey,
        program: Program,
        name: str,
        source: str,
        library: Library | None,
    ) -> None:
        self.key = key
        self.source = source
        self.columns: Columns = program.columns
        self.row_axes = program.trace.row_axes
        self.num_passes = program.num_passes
        self.totals = [
            [(label_of(n), _joined_by(n)) for n in program.totals_of(number)]
            for number in range(program.num_passes - 1)
        ]
        self.backend: Literal["c", "interpreter"] = "c" if library else "interpreter"
        self._interpreter = TableInterpreter(Interpreter(program, key.dtypes), key.mode)
        names = [pass_name(name, i, self.num_passes) for i in range(self.num_passes)]
        extra = [1] * (self.num_passes - 1) + [0 if key.mode == "dense" else 2]
        named = list(zip(names, extra, strict=True)) if library else []
        self._short = (
            [_function(library.short, n, e) for n, e in named] if library else []
        )
        self._long = (
            [_function(library.long, n, e) for n, e in named] if library else []
        )

    def launch(
        self,
        items: Table,
        pointers: Table,
        scalars: Table,
        num_threads: int,
        starts: Table | None = None,
        sources: Table | None = None,
        between: Between | None = None,
    ) -> None:
        """Run once; see `bind` for the arguments.

        Args:
            items: Work items.
            pointers: Addresses.
            scalars: Scalar table; its derived columns are written.
            num_threads: Threads to use; small work uses one.
            starts: Row modes only.
            sources: Row modes only.
            between: Called with the number of each reading pass when it is done.
        """
        self.bind(items, pointers, scalars, starts, sources)(num_threads, between)

    def bind(
        self,
        items: Table,
        pointers: Table,
        scalars: Table,
        starts: Table | None = None,
        sources: Table | None = None,
    ) -> Launch:
        """Check the tables once and keep their addresses for many launches.

        The contents of the tables may change between launches, their sizes and
        addresses may not.

        Args:
            items: Shape (n, 5), int64: variable, offset in variable and slots, offset
                in the gradient, length, scalar row. In row modes an item is one row.
            pointers: Shape (variables, tensors), int64.
            scalars: Shape (rows, len(columns)), float64.
            starts: In row modes, shape (n + 1,), int64: where the sources of each item
                begin.
            sources: In row modes, int64: row numbers in the gradient, in order of
                appearance for each item.

        Returns:
            A callable of the number of threads.

        Raises:
            TypeError: If a table has another dtype or is not contiguous.
            ValueError: If a table has the wrong number of columns, or row tables are
                missing.
        """
        tables = {"items": items, "pointers": pointers, "scalars": scalars}
        check_tables(self.key, len(self.columns), kinds=_KINDS, **tables)
        rows = checked_row_tables(self.key, len(self.columns), _KINDS, starts, sources)
        return Launch(self, items, pointers, scalars, rows)

    def bind_rows(self, rows: RowTables, pointers: Table, scalars: Table) -> RowLaunch:
        """Check the tables once and keep them for launches over other rows each time.

        Args:
            rows: Filled anew before each launch.
            pointers: Shape (variables, tensors), int64.
            scalars: Shape (rows, len(columns)), float64.

        Returns:
            A callable of the number of threads.

        Raises:
            TypeError: If a table has another dtype or is not contiguous.
            ValueError: If a table has the wrong number of columns.
        """
        tables = {"pointers": pointers, "scalars": scalars}
        check_tables(self.key, len(self.columns), kinds=_KINDS, **tables)
        return RowLaunch(self, rows, pointers, scalars)

    def functions(self, num_elements: int) -> list[Any]:
        """The compiled passes for work of a size; none with the interpreter."""
        return self._short if num_elements <= _SHORT_ELEMENTS else self._long

    def partials(self, items: Table) -> np.ndarray[Any, Any]:
        """Room for the partial results of one reading pass; threads share none."""
        lengths = _column(items, 3)
        chunks = int(((lengths + CHUNK - 1) // CHUNK).sum())
        wanted = max(chunks * max(map(len, self.totals)), 1)
        return np.empty(wanted, dtype=np.float64)

    def bind_interpreter(
        self, tables: Sequence[Table], rows: Sequence[Table] = ()
    ) -> Callable[[Between | None], None]:
        """What runs the interpreter over these tables."""
        return self._interpreter.bind([*map(_numpy, tables)], [*map(_numpy, rows)])


class Launch:
    """A kernel with its tables: calling it runs it.

    Attributes:
        kernel: The kernel.
        num_items: Items of the table.
        num_elements: Elements to be visited, which decides whether other Python
            threads run meanwhile.
    """

    def __init__(
        self,
        kernel: Kernel,
        items: Table,
        pointers: Table,
        scalars: Table,
        rows: tuple[Table, ...],
    ) -> None:
        self.kernel = kernel
        self.num_items = int(items.shape[0])
        self.num_elements = int(_column(items, 3).sum())
        tables = items, pointers, scalars
        self._kept: tuple[Table, ...] = (*tables, *rows)
        self._interpret: Callable[[Between | None], None] | None = None
        if kernel.backend == "interpreter":
            self._interpret = kernel.bind_interpreter(tables, rows)
        self._num_rows = int(scalars.shape[0])
        self._addresses = tuple(map(_address, tables))
        self._extra = tuple(map(_address, rows))
        self._partials: int | None = None
        if kernel.backend == "c" and kernel.num_passes > 1:
            partials = kernel.partials(items)
            self._kept += (partials,)
            self._partials = _address(partials)

    def __call__(self, num_threads: int, between: Between | None = None) -> None:
        """Run all passes.

        Args:
            num_threads: Threads to use; small work uses one.
            between: Called with the number of each reading pass when it is done, for
                example to join the totals of other ranks.
        """
        if self._interpret is not None:
            self._interpret(between)
            return
        kernel = self.kernel
        functions = kernel.functions(self.num_elements)
        items, pointers, scalars = self._addresses
        arguments = (
            self.num_items,
            items,
            pointers,
            scalars,
            self._num_rows,
            num_threads,
        )
        for number, reading in enumerate(functions[:-1]):
            if self._partials is not None:
                reading(*arguments, self._partials)
            if between is not None:
                between(number)
        functions[-1](*arguments, *self._extra)


class RowLaunch:
    """A row kernel with its tables: calling it runs it over the rows of this step."""

    def __init__(
        self, kernel: Kernel, rows: RowTables, pointers: Table, scalars: Table
    ) -> None:
        self._kernel = kernel
        self._rows = rows
        self._tables = (pointers, scalars)
        self._num_rows = int(scalars.shape[0])
        self._addresses = (_address(pointers), _address(scalars))

    def __call__(self, num_threads: int) -> None:
        """Run with so many threads; small work uses one."""
        kernel, rows = self._kernel, self._rows
        if kernel.backend == "interpreter":
            tables, lists = (rows.items, *self._tables), (rows.starts, rows.sources)
            return kernel.bind_interpreter(tables, lists)(None)
        items, starts, sources = rows.addresses
        return kernel.functions(rows.num_elements)[-1](
            rows.num_items,
            items,
            *self._addresses,
            self._num_rows,
            num_threads,
            starts,
            sources,
        )


def _joined_by(node: fx.Node) -> Literal["max", "sum"]:
    return "max" if expect_reduction(node).is_maximum else "sum"


def _function(library: ctypes.CDLL, name: str, num_extra: int) -> Any:
    function = library[name]
    function.restype = None
    count, address = ctypes.c_int64, ctypes.c_void_p
    tables = [count, address, address, address, count, ctypes.c_int]
    function.argtypes = [*tables, *[address] * num_extra]
    return function


def _address(table: Table) -> int:
    return table.data_ptr() if isinstance(table, Tensor) else int(table.ctypes.data)


def _numpy(table: Table) -> np.ndarray[Any, Any]:
    return table.numpy() if isinstance(table, Tensor) else table


def _column(table: Table, column: int) -> np.ndarray[Any, Any]:
    return _numpy(table)[:, column]
