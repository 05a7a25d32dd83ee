"""The statements of a rule in Triton's language, one for each node of its graph.

`loops_triton` puts loops around them, `emit_triton` makes kernels of those. Values
are blocks of consecutive elements of the compute type; a scalar of the table is
rounded to it when it is loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import fx
from typing_extensions import override

from thalweg.compiler.dialect import Dialect
from thalweg.compiler.graph import (
    Operand,
    Space,
    expect_operation,
    is_mask,
    label_of,
    operands_of,
    space_of,
)
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


def _as_mask(text: str) -> str:
    """What one comparison of numbers gives, as it can meet a block of others.

    Triton's interpreter keeps it as a number of the type that was compared, and so
    makes a block of it that no bit of a mask can be joined with.
    """
    return f"tl.full([], 1, tl.int1) & ({text})"


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


class TritonStatements(Dialect):
    """Writes the statements of one program in Triton's language."""

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

    def title(self, mode: str) -> str:
        """What a reader needs to know first: tensors and columns."""
        text = "\n".join(self._tables())
        return f'"""{self.program.trace.rule.name}, {mode}\n\n{text}\n"""'

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

    @override
    def derived(self) -> list[str]:
        return with_constants(super().derived(), torch.float64)

    @override
    def _column(self, node: fx.Node, dtype: torch.dtype) -> str:
        load = f"tl.load(row + {self.program.column_of(node)})"
        if is_mask(node):
            return f"{self.value(node)} = {_as_mask(f'{load} != 0.0')}"
        cast = "" if dtype == torch.float64 else ".to(tl.float32)"
        return f"{self.value(node)} = {load}{cast}"

    @override
    def _keep(self, node: fx.Node) -> str:
        value = self.value(node)
        value = f"{value}.to(tl.float64)" if is_mask(node) else value
        return f"tl.store(row + {self.program.column_of(node)}, {value})"

    @override
    def _comment(self, text: str) -> str:
        return f"# {text}"

    @override
    def _call(self, node: fx.Node, dtype: torch.dtype) -> str:
        names = [self.value(operand, dtype) for operand in operands_of(node)]
        op = expect_operation(node)
        text = op.triton.format(*names)
        if op.gives_mask and space_of(node) != Space.TENSOR:
            text = _as_mask(text)
        return f"{self.value(node)} = {text}"

    @override
    def value(self, operand: Operand, dtype: torch.dtype | None = None) -> str:
        if isinstance(operand, fx.Node):
            return python_name(label_of(operand))
        if isinstance(operand, bool):
            return f"tl.full([], {int(operand)}, tl.int1)"
        dtype, number = dtype or self.compute, float(operand)
        with np.errstate(over="ignore"):
            rounded = np.float32(number) if dtype == torch.float32 else number
        number = number if math.isfinite(rounded) else float(rounded)
        text = repr(number) if math.isfinite(number) else f'float("{number}")'
        if text == "-0.0":  # Triton 3.6 makes +0 of it
            return f"(tl.full([], 0.0, {KINDS[dtype]}) * -1.0)"
        return f"tl.full([], {text}, {KINDS[dtype]})"
