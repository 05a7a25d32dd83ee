"""The interpreter over a kernel's tables: memory by address.

Whole tensors come as few long items, which are run one by one; touched rows as many
short ones, which are gathered, run together, and put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from thalweg.compiler.blocks import BLOCK, BlockProgram, treats_elements_alike
from thalweg.compiler.graph import Space, expect_reduction, label_of, space_of
from thalweg.compiler.interpret import Interpreter
from thalweg.compiler.key import Mode
from thalweg.compiler.program import APPLY, ROW_LENGTH
from thalweg.compiler.reductions import over_variable
from thalweg.compiler.storing import rounder
from thalweg.compiler.views import tensor_of, view_memory

__all__ = ["Between", "TableInterpreter"]

Array = np.ndarray[Any, Any]
Between = Callable[[int], None]

_ROW = 4  # of an item: its row in the scalar table
_KIND = [0, 2, 3, 4]  # all but its place: variable, offset of gradient, length, row
_MOST_ROWS = 1024  # at a time: a reduction keeps 256 lanes for each


@dataclass(frozen=True)
class _Touched:
    """Rows of one variable, each of them once.

    Attributes:
        rows: Their indices.
        width: Elements of a row.
        starts: Where the list of the gradients of each begins.
        counts: How many gradients each has, at least one.
        sources: These lists: rows of the gradient.
    """

    rows: Array
    width: int
    starts: Array
    counts: Array
    sources: Array


class TableInterpreter:
    """Runs a program over items, pointers and scalars as a C kernel would.

    Args:
        interpreter: The program.
        mode: How items and gradients belong together.
    """

    def __init__(self, interpreter: Interpreter, mode: Mode) -> None:
        self._interpreter = interpreter
        self._program = interpreter.program
        self._mode = mode
        self._is_alike = treats_elements_alike(self._program)

    def run(
        self,
        tables: Sequence[Array],
        rows: Sequence[Array],
        between: Between | None = None,
    ) -> None:
        """Run all passes once; see `bind`."""
        self.bind(tables, rows)(between)

    def bind(
        self, tables: Sequence[Array], rows: Sequence[Array] = ()
    ) -> Callable[[Between | None], None]:
        """Keep tables, whose contents may change, for many launches.

        Args:
            tables: Items, pointers, scalars.
            rows: Starts and sources, in the row modes.

        Returns:
            Runs all passes. Its argument is called after each reading pass with its
            number.
        """
        write = self._bound_write(tables, rows)
        only_writes = self._program.num_passes == 1 and self._is_alike

        def run(between: Between | None) -> None:
            if not only_writes:
                self._load_cells(*tables)
                self._read(tables, between, are_rows=bool(rows))
            write()

        return run

    def _bound_write(
        self, tables: Sequence[Array], rows: Sequence[Array]
    ) -> Callable[[], None]:
        if rows:
            return partial(self._write_rows, tables, rows)
        if self._is_alike:
            return self._blocks.bind(*tables)
        return partial(self._write_items, *tables)

    def _read(
        self, tables: Sequence[Array], between: Between | None, *, are_rows: bool
    ) -> None:
        """The reading passes."""
        items, pointers, scalars = tables
        if not are_rows:
            items = self._with_elements(items, scalars)
        for number in range(self._program.num_passes - 1):
            self._reduce(number, items, pointers, scalars)
            if between is not None:
                between(number)

    @cached_property
    def _blocks(self) -> BlockProgram:
        return BlockProgram(self._program, self._interpreter.dtypes)

    def _with_elements(self, items: Array, scalars: Array) -> Array:
        """The items whose rows have elements: rows of none cannot be counted."""
        if not self._program.uses_rows:
            return items
        column = self._program.columns.index[ROW_LENGTH]
        return items[scalars[items[:, _ROW], column] > 0]

    def _write_items(self, items: Array, pointers: Array, scalars: Array) -> None:
        """The writing pass item by item: rules that know rows or cells."""
        items = self._with_elements(items, scalars)
        for row in np.unique(items[:, _ROW]).tolist():
            numbers = self._numbers(scalars[row])
            if numbers[APPLY] == 0.0:
                continue
            rounded = self._interpreter.rounded(numbers)
            for item in items[items[:, _ROW] == row].tolist():
                views = self._views(item, pointers[item[0]].tolist(), numbers)
                begin, length = int(item[1]), int(item[3])
                places = np.arange(begin, begin + length)
                results = self._results(views, rounded, numbers, places)
                for old, new in zip(views, results, strict=False):
                    if new is not None:
                        old.copy_(new)

    def _write_rows(self, tables: Sequence[Array], rows: Sequence[Array]) -> None:
        """The writing pass over touched rows, many of a variable at a time."""
        items, pointers, scalars = tables
        starts, sources = rows
        kinds, kind_of = np.unique(items[:, _KIND], axis=0, return_inverse=True)
        for number, (variable, skip, width, row) in enumerate(kinds.tolist()):
            numbers = self._numbers(scalars[row])
            if numbers[APPLY] == 0.0 or width == 0:
                continue
            rounded = self._interpreter.rounded(numbers)
            places = np.flatnonzero(kind_of.reshape(-1) == number)
            size = min(_MOST_ROWS, max(1, BLOCK // width))
            for begin in range(0, len(places), size):
                part = places[begin : begin + size]
                touched = _Touched(
                    *(items[part, 1] // width, width),
                    *(starts[part], np.diff(starts)[part], sources),
                )
                addresses = pointers[variable].tolist()
                addresses[-1] += skip * self._interpreter.dtypes[-1].itemsize
                self._write_touched(touched, addresses, rounded, numbers)

    def _write_touched(
        self,
        touched: _Touched,
        addresses: Sequence[int],
        rounded: Mapping[fx.Node, Tensor],
        numbers: Mapping[str, float],
    ) -> None:
        """Apply the gradients of each row, one after the other or added up."""
        memory = self._memory(touched, addresses)
        for turn, (chosen, values) in enumerate(self._turns(touched, addresses[-1])):
            own = touched.rows[chosen]
            index = torch.as_tensor(own, device="cpu")
            views = [m if m.dim() == 1 else m[index].reshape(-1) for m in memory]
            places = own[:, None] * touched.width + np.arange(touched.width)
            views.append(values.reshape(-1))
            new = self._results(views, rounded, numbers, places.reshape(-1), turn)
            for whole, view, value in zip(memory, views, new, strict=False):
                if value is not None and whole.dim() == 1:
                    whole.copy_(value)
                elif value is not None:
                    whole[index] = value.expand(view.shape).reshape(len(own), -1)

    def _numbers(self, row: Array) -> dict[str, float]:
        """The columns of one row that are not derived."""
        columns = self._program.columns
        known = (*columns.host, *columns.device)
        return dict(zip(known, row[: len(known)].tolist(), strict=True))

    def _load_cells(self, items: Array, pointers: Array, scalars: Array) -> None:
        if "scalar" not in self._program.trace.layouts:
            return
        for position, name in enumerate(self._program.trace.rule.tensors):
            if space_of(self._program.inputs[name]) == Space.SCALAR:
                column = self._program.columns.index[name]
                for variable, _, _, _, row in items.tolist():
                    cell = self._view(int(pointers[variable, position]), 0, 1, position)
                    scalars[row, column] = cell.double().item()

    def _reduce(
        self, number: int, items: Array, pointers: Array, scalars: Array
    ) -> None:
        totals: dict[tuple[int, fx.Node], float] = {}
        for item in items.tolist():
            numbers = self._numbers(scalars[item[4]])
            views = self._views(item, pointers[item[0]].tolist(), numbers)
            loaded = self._interpreter.load(views, numbers)
            rounded = self._interpreter.rounded(numbers)
            for node, term in self._interpreter.terms(number, loaded, rounded):
                cell, reduction = (item[4], node), expect_reduction(node)
                totals[cell] = over_variable(term, reduction, totals.get(cell))
        for (row, node), total in totals.items():
            scalars[row, self._program.columns.index[label_of(node)]] = total

    def _results(
        self,
        views: Sequence[Tensor],
        rounded: Mapping[fx.Node, Tensor],
        numbers: Mapping[str, float],
        places: Array,
        turn: int = 0,
    ) -> list[Tensor | None]:
        """Evaluate the writing pass on some views; elements lie at these places."""
        round_output = rounder(self._program, numbers, places, turn)
        loaded = self._interpreter.load(views, numbers)
        return self._interpreter.outputs(loaded, rounded, round_output)

    def _memory(self, touched: _Touched, addresses: Sequence[int]) -> list[Tensor]:
        """Variable and slots, shape (rows, elements of a row); cells, shape (1,)."""
        count = int(touched.rows.max()) + 1
        memory: list[Tensor] = []
        for position, address in enumerate(addresses[:-1]):
            layout = self._program.trace.layouts[position]
            if layout == "scalar":
                memory.append(self._view(address, 0, 1, position))
            else:
                width = 1 if layout == "row" else touched.width
                view = self._view(address, 0, count * width, position)
                memory.append(view.reshape(count, width))
        return memory

    def _turns(self, touched: _Touched, address: int) -> Iterator[tuple[Array, Tensor]]:
        """Which of the rows are updated next, and a gradient for each."""
        sources, ends = touched.sources, touched.starts + touched.counts
        own = sources[touched.starts.min() : ends.max()]
        count, width = int(own.max()) + 1, touched.width
        gradient = self._view(address, 0, count * width, -1).reshape(count, width)
        total = torch.empty(0, device="cpu")
        for turn in range(int(touched.counts.max())):
            chosen = np.flatnonzero(touched.counts > turn)
            positions = touched.starts[chosen] + turn
            values = gradient[torch.as_tensor(sources[positions], device="cpu")]
            if self._mode == "sequence":
                yield chosen, values
            elif turn == 0:
                total = values
            else:
                wide = total.to(self._interpreter.compute)
                wide[torch.as_tensor(chosen, device="cpu")] += values
                total = wide
        if self._mode == "sum":
            yield np.arange(len(touched.rows)), total

    def _views(
        self, item: list[int], addresses: list[int], numbers: Mapping[str, float]
    ) -> list[Tensor]:
        """The memory of an item, tensor by tensor."""
        tensors = [
            self._tensor(position, item, addresses, numbers)
            for position in range(len(addresses) - 1)
        ]
        return [*tensors, self._gradient(item, addresses, 0)]

    def _tensor(
        self,
        position: int,
        item: list[int],
        addresses: list[int],
        numbers: Mapping[str, float],
    ) -> Tensor:
        layout = self._program.trace.layouts[position]
        offset, length = item[1], item[3]
        if layout == "scalar":
            offset, length = 0, 1
        elif layout == "row":
            width = int(numbers[ROW_LENGTH])
            offset, length = offset // width, length // width
        return self._view(addresses[position], offset, length, position)

    def _gradient(self, item: list[int], addresses: list[int], skip: int) -> Tensor:
        return self._view(addresses[-1], item[2] + skip, item[3], len(addresses) - 1)

    def _view(self, address: int, offset: int, length: int, position: int) -> Tensor:
        dtype = self._interpreter.dtypes[position]
        view = view_memory(address + offset * dtype.itemsize, length, dtype)
        return tensor_of(view)
