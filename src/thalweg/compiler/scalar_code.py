"""The scalar part of a program, as Python evaluates it for a row of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from torch import fx

from thalweg.compiler.array_ops import Array
from thalweg.compiler.graph import (
    Operand,
    Space,
    expect_operation,
    is_mask,
    label_of,
    operands_of,
    space_of,
)
from thalweg.compiler.program import APPLY, Program
from thalweg.compiler.rounding import Draw

__all__ = ["Numbers", "ScalarCode"]


_NO_TRUTHS = np.zeros(0, np.bool_)


class Numbers(NamedTuple):
    """Scalars that meet tensors.

    Attributes:
        values: Rounded to the compute type.
        truths: The same as masks, if there are any.
        draw: The random bits that outputs are rounded by, if any are.
    """

    values: Array
    truths: Array
    draw: Draw | None = None


class ScalarCode:
    """Evaluates scalars in float64 and rounds those that meet tensors once.

    Args:
        program: The program.
        wanted: The scalars that meet tensors.
        compute: The compute type.

    Attributes:
        columns_read: The columns of the scalar table that the results depend on.
    """

    def __init__(
        self, program: Program, wanted: Sequence[fx.Node], compute: np.dtype[Any]
    ) -> None:
        columns = program.columns
        self._compute = compute
        self._num_known = len(columns.host) + len(columns.device)
        self._apply = columns.index[APPLY]
        self._constants: list[float] = []
        self._places: dict[fx.Node, int] = {
            node: columns.index[label_of(node)]
            for node in (*program.inputs.values(), *program.totals)
            if space_of(node) == Space.SCALAR and label_of(node) in columns.index
        }
        nodes = program.scalar_nodes
        operands = [[self._place(o, nodes) for o in operands_of(n)] for n in nodes]
        # A literal stands behind the columns, results behind the literals.
        first = self._num_known + len(self._constants)
        self._places |= {node: first + number for number, node in enumerate(nodes)}
        self._calls: list[tuple[Callable[..., float], list[int]]] = [
            (
                expect_operation(node).scalar,
                [self._places[p] if isinstance(p, fx.Node) else p for p in places],
            )
            for node, places in zip(nodes, operands, strict=True)
        ]
        self._has_truths = any(map(is_mask, wanted))
        self._wanted = [self._places[node] for node in wanted]
        used = {self._apply, *self._wanted, *chain(*(o for _, o in self._calls))}
        known = range(self._num_known)
        self.columns_read = list(known if program.rounded else sorted({*known} & used))
        self._rounded = program.rounded
        self._names = (*columns.host, *columns.device)

    def _place(self, operand: Operand, nodes: Sequence[fx.Node]) -> int | fx.Node:
        if not isinstance(operand, fx.Node):
            self._constants.append(operand)
            return self._num_known + len(self._constants) - 1
        return operand if operand in nodes else self._places[operand]

    def __call__(self, row: Array) -> Numbers | None:
        """The scalars of a row.

        Args:
            row: One row of the scalar table.

        Returns:
            None if nothing is to change.
        """
        cells: list[float] = row[: self._num_known].tolist()
        if cells[self._apply] == 0.0:
            return None
        cells += self._constants
        cell = cells.__getitem__
        for function, places in self._calls:
            cells.append(function(*map(cell, places)))
        wide = np.array(list(map(cell, self._wanted)), dtype=np.float64)
        draw = None
        if self._rounded:
            known = zip(self._names, cells, strict=False)
            draw = Draw(dict(known), self._rounded)
        truths = wide != 0 if self._has_truths else _NO_TRUTHS
        return Numbers(wide.astype(self._compute), truths, draw)
