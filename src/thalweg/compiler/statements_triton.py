"""The statements of a rule in Triton's language, one for each node of its graph.

`loops_triton` puts loops around them, `emit_triton` makes kernels of those. Values
are blocks of consecutive elements of the compute type; a scalar of the table is
rounded to it when it is loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import fx

from thalweg.compiler.graph import (
    Operand,
    Space,
    expect_operation,
    is_mask,
    label_of,
    operands_of,
    operation_of,
    source_line,
    space_of,
)
from thalweg.compiler.program import APPLY, ROW_LENGTH, Program, compute_dtype
from thalweg.compiler.rounding import FIRST_INDEX, ROUNDING_KEY, STEP, TURN

__all__ = ["KINDS", "TritonStatements", "python_name", "with_constants"]

KINDS = {
    torch.float32: "tl.float32",
    torch.float64: "tl.float64",
    torch.bfloat16: "tl.bfloat16",
    torch.float16: "tl.float16",
}
"""Triton's name of each storage type."""

# Words of Triton, of the shared functions and of the skeleton.
_TAKEN = frozenset(
    """
    triton tl libdevice float range pointer divide root widen_bfloat16 round_bfloat16
    larger half_sum fold_sum half_maximum fold_maximum zero one infinity items item
    pointers scalars tensors starts sources source first last skip row number length
    width begin step start done chunk stop seen place index inside offset lanes
    mix_bits rounding_key round_stochastically origin
    partials folds fold_row addresses BLOCK IS_FULL INTERPRETED
    """.split()  # noqa: SIM905 - a list of sixty strings would be unreadable
)
_CONSTANTS = {"zero": "0.0", "one": "1.0", "infinity": 'float("inf")'}


def python_name(name: str) -> str:
    """A name that is free in the text of a kernel.

    Example:
        >>> python_name("beta1"), python_name("index"), python_name("β")
        ('beta1', 'index_', 'u3b2')
    """
    text = re.sub(r"[^A-Za-z0-9_]", lambda match: f"u{ord(match[0]):x}", name)
    return f"{text}_" if text in _TAKEN else text


def with_constants(lines: Sequence[str], dtype: torch.dtype) -> list[str]:
    """Lines, after definitions of the constants of the op table that they name."""
    code = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    used = [name for name in _CONSTANTS if re.search(rf"\b{name}\b", code)]
    return [
        *(f"{name} = tl.full([], {_CONSTANTS[name]}, {KINDS[dtype]})" for name in used),
        *lines,
    ]


@dataclass(frozen=True)
class TritonStatements:
    """Writes the statements of one program for one set of dtypes.

    Attributes:
        program: What to compute.
        dtypes: Storage dtypes of variable, slots and gradient.
    """

    program: Program
    dtypes: tuple[torch.dtype, ...]

    @cached_property
    def compute(self) -> torch.dtype:
        """The compute type."""
        return compute_dtype(self.dtypes)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in the order of the rule."""
        return tuple(python_name(name) for name in self.program.trace.rule.tensors)

    @cached_property
    def in_memory(self) -> tuple[int, ...]:
        """Positions of the tensors that the writing pass reads or writes."""
        program, rule = self.program, self.program.trace.rule
        rows = program.needed_rows()
        terms = [operand for node in rows for operand in operands_of(node)]
        elements = program.needed([*program.outputs, *terms], Space.TENSOR)
        written = dict(zip(rule.outputs, program.outputs, strict=True))
        stored = [program.inputs[n] for n, v in written.items() if v is not None]
        return self.positions([*rows, *elements, *stored])

    def positions(self, nodes: Iterable[fx.Node]) -> tuple[int, ...]:
        """Positions of the tensors among some nodes; scalar slots are columns."""
        wanted, inputs = set(nodes), self.program.inputs
        return tuple(
            position
            for position, name in enumerate(self.program.trace.rule.tensors)
            if inputs[name] in wanted and space_of(inputs[name]) != Space.SCALAR
        )

    @property
    def gradient(self) -> int:
        """Position of the gradient."""
        return len(self.dtypes) - 1

    @property
    def apply_column(self) -> int:
        """The column that is 0 where nothing is to change."""
        return self.program.columns.index[APPLY]

    @property
    def row_length_column(self) -> int | None:
        """The column with the length of a row, if rows matter."""
        return self.program.columns.index.get(ROW_LENGTH)

    def title(self, mode: str) -> str:
        """What a reader needs to know first: tensors and columns."""
        rule = self.program.trace.rule
        dtypes = [str(dtype).removeprefix("torch.") for dtype in self.dtypes]
        pairs = zip(rule.tensors, dtypes, strict=True)
        columns = enumerate(self.program.columns.names)
        tensors = ", ".join(f"{name} {dtype}" for name, dtype in pairs)
        scalars = ", ".join(f"{number} {name}" for number, name in columns)
        lines = [f"tensors: {tensors}", f"scalars: {scalars}"]
        if self.program.rounding:
            lines.append(f"rounded stochastically: {', '.join(self.program.rounding)}")
        text = "\n".join(lines)
        return f'"""{rule.name}, {mode}\n\n{text}\n"""'

    def widened(self, position: int, text: str) -> str:
        """A stored value as one of the compute type."""
        dtype = self.dtypes[position]
        if dtype == torch.bfloat16:
            text, dtype = f"widen_bfloat16({text})", torch.float32
        return text if dtype == self.compute else f"{text}.to({KINDS[self.compute]})"

    def narrowed(self, position: int, text: str) -> str:
        """A value of the compute type as one to store, rounded once as in C."""
        dtype = self.dtypes[position]
        if dtype == self.compute:
            return text
        if dtype.itemsize == 2 and self.compute == torch.float64:
            text = f"{text}.to(tl.float32)"
        if dtype == torch.bfloat16:
            return f"round_bfloat16({text})"
        return f"{text}.to({KINDS[dtype]})"

    def _rounded(self, position: int, value: Operand, place: str) -> str:
        """An output rounded stochastically, given the global index of the element."""
        text, key = self.value(value), f"{self.names[position]}_key"
        if self.compute == torch.float64:
            text = f"{text}.to(tl.float32)"
        return f"round_stochastically({text}, {key}, {place}, {16 * (position % 2)})"

    def rounding_keys(self, turn: str = "") -> list[str]:
        """Statements that compute what outputs are rounded by, beside their places.

        Args:
            turn: How many gradients of the same elements came before, if any did.
        """
        columns = [self.program.columns.index.get(n) for n in (ROUNDING_KEY, STEP)]
        cells = ", ".join(f"tl.load(row + {column})" for column in columns)
        later = f" + ({turn}).to(tl.uint32) * 0x{TURN:X}" if turn else ""
        return [
            f"{self.names[output]}_key = rounding_key({cells}, {output // 2}){later}"
            for output in self.program.rounded
        ]

    @property
    def origin(self) -> list[str]:
        """Names of arguments: the global index of the first element, if it matters."""
        return ["origin"] if self.program.rounding else []

    def origin_of(self, offset: str) -> list[str]:
        """A statement that computes the global index of an element of a variable."""
        column = self.program.columns.index.get(FIRST_INDEX)
        text = f"origin = tl.load(row + {column}).to(tl.int64) + {offset}"
        return [text] if self.program.rounding else []

    def load(self, position: int, index: str = "index", mask: str = "inside") -> str:
        """An expression of the compute type for stored elements."""
        at = f"{self.names[position]}_at"
        place = f"{at} + {index}" if index else at
        masked = f", mask={mask}" if mask else ""
        return self.widened(position, f"tl.load({place}{masked})")

    def loads(
        self, nodes: Iterable[fx.Node], index: str = "index", mask: str = "inside"
    ) -> list[str]:
        """Statements that load tensors other than the gradient."""
        wanted = set(nodes)
        names = self.program.trace.rule.tensors[: self.gradient]
        return [
            f"{self.names[position]} = {self.load(position, index, mask)}"
            for position, name in enumerate(names)
            if self.program.inputs[name] in wanted
        ]

    def reads_gradient(self, nodes: Iterable[fx.Node]) -> bool:
        """Whether the gradient is among the nodes."""
        name = self.program.trace.rule.gradient
        return self.program.inputs[name] in set(nodes)

    def stores(
        self,
        space: Space,
        index: str = "index",
        mask: str = "inside",
        origin: str = "origin",
    ) -> list[str]:
        """Statements that store the outputs whose tensors live in a space."""
        lines: list[str] = []
        for position, value in enumerate(self.program.outputs):
            node = self.program.inputs[self.program.trace.rule.outputs[position]]
            if value is None or space_of(node) != space:
                continue
            at = f"{self.names[position]}_at"
            place = f"{at} + {index}" if index else at
            masked = f", mask={mask}" if mask else ""
            text = self.narrowed(position, self.value(value))
            if position in self.program.rounded:
                text = f"{self.names[position]}_half"
                rounded = self._rounded(position, value, f"{origin} + {index}")
                lines.append(f"{text} = {rounded}")
            lines.append(f"tl.store({place}, {text}{masked})")
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
                value = self.value(node)
                value = f"{value}.to(tl.float64)" if is_mask(node) else value
                lines.append(f"tl.store(row + {program.column_of(node)}, {value})")
        return with_constants(lines, torch.float64)

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

    def _column(self, node: fx.Node, dtype: torch.dtype) -> str:
        load = f"tl.load(row + {self.program.column_of(node)})"
        if is_mask(node):
            return f"{self.value(node)} = {load} != 0.0"
        cast = "" if dtype == torch.float64 else ".to(tl.float32)"
        return f"{self.value(node)} = {load}{cast}"

    def calls(self, nodes: Iterable[fx.Node]) -> list[str]:
        """One statement for each operation, under the line of the rule it is from."""
        lines: list[str] = []
        comment = ""
        for node in nodes:
            if operation_of(node) is None:
                continue
            if source_line(node) != comment:
                comment = source_line(node)
                lines.append(f"# {comment}")
            lines.append(self._call(node, self.compute))
        return lines

    def _call(self, node: fx.Node, dtype: torch.dtype) -> str:
        names = [self.value(operand, dtype) for operand in operands_of(node)]
        op = expect_operation(node)
        text = op.triton.format(*names)
        return f"{self.value(node)} = {text}"

    def value(self, operand: Operand, dtype: torch.dtype | None = None) -> str:
        """The text of an operand: a name, or a constant."""
        if isinstance(operand, fx.Node):
            return python_name(label_of(operand))
        if isinstance(operand, bool):
            return f"tl.full([], {int(operand)}, tl.int1)"
        dtype, number = dtype or self.compute, float(operand)
        with np.errstate(over="ignore"):
            rounded = np.float32(number) if dtype == torch.float32 else number
        number = number if math.isfinite(rounded) else float(rounded)
        text = repr(number) if math.isfinite(number) else f'float("{number}")'
        return f"tl.full([], {text}, {KINDS[dtype]})"
