"""The interpreter over a kernel's tables: memory by address, item by item."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, fx

from thalweg.compiler.blocks import BlockProgram, treats_elements_alike
from thalweg.compiler.graph import Space, expect_reduction, label_of, space_of
from thalweg.compiler.interpret import Interpreter
from thalweg.compiler.key import Mode
from thalweg.compiler.program import APPLY, ROW_LENGTH
from thalweg.compiler.reductions import over_variable
from thalweg.compiler.storing import rounder
from thalweg.compiler.views import tensor_of, view_memory

__all__ = ["TableInterpreter"]

Array = np.ndarray[Any, Any]


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
        between: Callable[[int], None] | None = None,
    ) -> None:
        """Run all passes.

        Args:
            tables: Items, pointers, scalars.
            rows: Starts and sources, in the row modes.
            between: Called after each reading pass with its number.
        """
        items, pointers, scalars = tables
        self._load_cells(items, pointers, scalars)
        for number in range(self._program.num_passes - 1):
            self._reduce(number, items, pointers, scalars)
            if between is not None:
                between(number)
        if rows or not self._is_alike:
            self._write_items(tables, rows)
        else:
            self._blocks.run(items, pointers, scalars)

    @cached_property
    def _blocks(self) -> BlockProgram:
        return BlockProgram(self._program, self._interpreter.dtypes)

    def _write_items(self, tables: Sequence[Array], rows: Sequence[Array]) -> None:
        """The writing pass item by item: touched rows, and rules that know rows."""
        items, pointers, scalars = tables
        for row, chosen in _by_row(items).items():
            numbers = self._numbers(scalars[row])
            if numbers[APPLY] == 0.0:
                continue
            rounded = self._interpreter.rounded(numbers)
            for place in chosen:
                item, addresses = items[place].tolist(), pointers[items[place, 0]]
                if rows:
                    sources = _sources(rows, place)
                    self._write_row(item, addresses.tolist(), sources, rounded, numbers)
                else:
                    views = self._views(item, addresses.tolist(), numbers)
                    self._apply(item, views, rounded, numbers)

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

    def _apply(
        self,
        item: list[int],
        views: Sequence[Tensor],
        rounded: Mapping[fx.Node, Tensor],
        numbers: Mapping[str, float],
        turn: int = 0,
    ) -> None:
        """Evaluate the writing pass on some views and write the results."""
        places = np.arange(item[1], item[1] + item[3])
        round_output = rounder(self._program, numbers, places, turn)
        loaded = self._interpreter.load(views, numbers)
        results = self._interpreter.outputs(loaded, rounded, round_output)
        for old, new in zip(views, results, strict=False):
            if new is not None:
                old.copy_(new)

    def _write_row(
        self,
        item: list[int],
        addresses: list[int],
        sources: list[int],
        rounded: Mapping[fx.Node, Tensor],
        numbers: Mapping[str, float],
    ) -> None:
        """Apply the gradients of one touched row, one by one or added up."""
        views = self._views(item, addresses, numbers)[:-1]
        gradients = [self._gradient(item, addresses, s * item[3]) for s in sources]
        if self._mode == "sum" and len(gradients) > 1:
            total = gradients[0].to(self._interpreter.compute)
            for gradient in gradients[1:]:
                total = total + gradient
            gradients = [total]
        for turn, gradient in enumerate(gradients):
            self._apply(item, [*views, gradient], rounded, numbers, turn)

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


def _by_row(items: Array) -> dict[int, list[int]]:
    """Places of the items of each row of the scalar table."""
    places: dict[int, list[int]] = {}
    for place, row in enumerate(items[:, 4].tolist()):
        places.setdefault(row, []).append(place)
    return places


def _sources(rows: Sequence[Array], place: int) -> list[int]:
    starts, sources = rows
    return sources[starts[place] : starts[place + 1]].tolist()
