"""What the languages of kernels have in common: which statements, in which order.

A dialect writes a program's statements in one language. Here it is decided what is
written: the scalars that meet a tensor, the derived columns, and one statement for
each operation under the line of the rule that it is from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from thalweg.compiler.graph import (
    Operand,
    Space,
    label_of,
    operands_of,
    operation_of,
    source_line,
    space_of,
)
from thalweg.compiler.program import APPLY, ROW_LENGTH, Program, compute_dtype

__all__ = ["Dialect"]


@dataclass(frozen=True)
class Dialect(ABC):
    """Writes the statements of one program for one set of dtypes.

    Attributes:
        program: What to compute.
        dtypes: Storage dtypes of variable, slots and gradient.
    """

    program: Program
    dtypes: tuple[torch.dtype, ...]

    # -- what a language says for itself --------------------------------------

    @abstractmethod
    def value(self, operand: Operand, dtype: torch.dtype | None = None) -> str:
        """The text of an operand: a name, or a constant."""

    @abstractmethod
    def _column(self, node: fx.Node, dtype: torch.dtype) -> str:
        """A statement that loads a scalar from `row`."""

    @abstractmethod
    def _call(self, node: fx.Node, dtype: torch.dtype) -> str:
        """The statement of one operation."""

    @abstractmethod
    def _keep(self, node: fx.Node) -> str:
        """A statement that writes a derived scalar to its column of `row`."""

    @abstractmethod
    def _comment(self, text: str) -> str:
        """A line of the rule as a comment."""

    # -- what they share ------------------------------------------------------

    @cached_property
    def compute(self) -> torch.dtype:
        """The compute type."""
        return compute_dtype(self.dtypes)

    @property
    def apply_column(self) -> int:
        """The column that is 0 where nothing is to change."""
        return self.program.columns.index[APPLY]

    @property
    def row_length_column(self) -> int | None:
        """The column with the length of a row, if rows matter."""
        return self.program.columns.index.get(ROW_LENGTH)

    def _tables(self) -> list[str]:
        """What a reader needs to know first: tensors, columns and rounding."""
        dtypes = [str(dtype).removeprefix("torch.") for dtype in self.dtypes]
        pairs = zip(self.program.trace.rule.tensors, dtypes, strict=True)
        tensors = ", ".join(f"{name} {dtype}" for name, dtype in pairs)
        columns = enumerate(self.program.columns.names)
        scalars = ", ".join(f"{number} {name}" for number, name in columns)
        lines = [f"tensors: {tensors}", f"scalars: {scalars}"]
        if self.program.rounding:
            lines.append(f"rounded stochastically: {', '.join(self.program.rounding)}")
        return lines

    def derived(self) -> list[str]:
        """Statements that compute the derived columns of `row` in float64."""
        program = self.program
        lines: list[str] = []
        known: set[fx.Node] = set()
        for node in program.scalar_nodes:
            for operand in operands_of(node):
                if isinstance(operand, fx.Node) and operand not in known:
                    known.add(operand)
                    if operand not in program.scalar_nodes:
                        lines.append(self._column(operand, torch.float64))
            known.add(node)
            lines.append(self._call(node, torch.float64))
            if label_of(node) in program.columns.derived:
                lines.append(self._keep(node))
        return lines

    def scalars(
        self, nodes: Iterable[fx.Node], outputs: Iterable[Operand | None] = ()
    ) -> list[str]:
        """Statements that load the scalars which these nodes meet, rounded once."""
        wanted = {
            operand
            for operand in (*(o for n in nodes for o in operands_of(n)), *outputs)
            if isinstance(operand, fx.Node) and space_of(operand) == Space.SCALAR
        }
        order = [node for node in self.program.trace.graph.nodes if node in wanted]
        return [self._column(node, self.compute) for node in order]

    def calls(self, nodes: Iterable[fx.Node]) -> list[str]:
        """One statement for each operation, under the line of the rule it is from."""
        lines: list[str] = []
        comment = ""
        for node in nodes:
            if operation_of(node) is None:
                continue
            if source_line(node) != comment:
                comment = source_line(node)
                lines.append(self._comment(comment))
            lines.append(self._call(node, self.compute))
        return lines
