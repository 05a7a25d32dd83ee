"""From a program to C text: the dialect of the CPU.

A kernel is a function over three tables: work items, pointers and scalars. Its text
is a loop skeleton (`skeleton_c`) around the statements written here, one for each
node of the graph, in the order of the rule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
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
from thalweg.compiler.rounding import FIRST_INDEX, ROUNDING_KEY, STEP

__all__ = ["Statements", "identifier", "literal"]

_STORAGE = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "thalweg_bfloat16",
    torch.float16: "thalweg_float16",
}
_HALVES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
# Words that are C's, the runtime's or the skeleton's; a rule may use them as names.
_TAKEN = frozenset(
    """
    auto break case char const continue default do double else enum extern float for
    goto if inline int long register restrict return short signed sizeof static struct
    switch typedef union unsigned void volatile while
    i row base lane lanes length origin turn chunk count done start stop used width
    exp expm1 exp2 log log1p log2 pow sqrt fabs floor ceil tanh sin cos erf atan2 expf
    expm1f exp2f logf log1pf log2f powf sqrtf fabsf floorf ceilf tanhf sinf cosf erff
    atan2f hypot hypotf gamma j0 j1 jn y0 y1 yn
    """.split()  # noqa: SIM905 - a list of a hundred strings would be unreadable
)


def identifier(name: str) -> str:
    """A C identifier for a Python one.

    Example:
        >>> identifier("beta1"), identifier("float"), identifier("β")
        ('beta1', 'float_', 'u3b2')
    """
    text = re.sub(r"[^A-Za-z0-9_]", lambda match: f"u{ord(match[0]):x}", name)
    return f"{text}_" if text in _TAKEN or text.startswith("thalweg") else text


def literal(value: float, dtype: torch.dtype) -> str:
    """A C constant of the compute type with exactly this value, rounded once.

    Example:
        >>> literal(0.1, torch.float32), literal(-2, torch.float64)
        ('0.1f', '(-2.0)')
    """
    suffix = "f" if dtype == torch.float32 else ""
    with np.errstate(over="ignore"):
        rounded = np.float32(value) if suffix else np.float64(value)
    if math.isnan(rounded):
        return f'(-__builtin_nan{suffix}(""))'
    if math.isinf(rounded):
        text = f"__builtin_inf{suffix}()"
    else:
        text = np.format_float_scientific(abs(rounded), trim="0", exp_digits=1)
        short = np.format_float_positional(abs(rounded), trim="0")
        text = (short if len(short) <= 8 else text) + suffix
    return f"(-{text})" if math.copysign(1.0, rounded) < 0 else text


class Statements(Dialect):
    """Writes the statements of one program in C."""

    @property
    def compute_type(self) -> str:
        """The compute type in C."""
        return _STORAGE[self.compute]

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """Identifiers of the pointers, in the order of the rule."""
        return tuple(f"{identifier(n)}_at" for n in self.program.trace.rule.tensors)

    def title(self, mode: str) -> str:
        """What a reader needs to know first: tensors and columns."""
        lines = [f"{self.program.trace.rule.name}, {mode}", *self._tables()]
        return "/* " + "\n * ".join(lines) + " */"

    def storage_type(self, position: int, *, is_summed: bool = False) -> str:
        """The C type a tensor is stored in; a summed gradient has the compute type."""
        is_gradient = position == len(self.dtypes) - 1
        return (
            self.compute_type
            if is_summed and is_gradient
            else _STORAGE[self.dtypes[position]]
        )

    def load(self, position: int, place: str, *, is_summed: bool = False) -> str:
        """An expression of the compute type for one stored element."""
        if is_summed and position == len(self.dtypes) - 1:
            return place
        dtype = self.dtypes[position]
        if dtype in _HALVES:
            place = f"thalweg_load_{_HALVES[dtype]}({place})"
        return place if dtype == self.compute else f"({self.compute_type}){place}"

    def store(self, position: int, value: str) -> str:
        """An expression of the storage type for a value of the compute type."""
        dtype = self.dtypes[position]
        if dtype not in _HALVES:
            return value if dtype == self.compute else f"({_STORAGE[dtype]}){value}"
        return f"thalweg_store_{_HALVES[dtype]}({self._float(value)})"

    def _float(self, value: str) -> str:
        return value if self.compute == torch.float32 else f"(float){value}"

    def rounding_keys(self, *, has_turns: bool) -> list[str]:
        """Statements that compute what outputs are rounded by, beside their places."""
        program = self.program
        columns = [program.columns.index.get(n) for n in (ROUNDING_KEY, STEP)]
        cells = ", ".join(f"row[{column}]" for column in columns)
        turn = " + thalweg_turn(turn)" * has_turns
        names = [identifier(name) for name in program.trace.rule.outputs]
        return [
            f"const uint32_t {names[output]}_key ="
            f" thalweg_rounding_key({cells}, {output // 2}){turn};"
            for output in program.rounded
        ]

    def first_index(self) -> str:
        """An expression for the global index of element 0 of a variable or shard."""
        return f"(int64_t)row[{self.program.columns.index[FIRST_INDEX]}]"

    @override
    def _column(self, node: fx.Node, dtype: torch.dtype) -> str:
        column = self.program.column_of(node)
        name = identifier(label_of(node))
        if is_mask(node):
            return f"const int {name} = row[{column}] != 0.0;"
        cast = "" if dtype == torch.float64 else "(float)"
        return f"const {_STORAGE[dtype]} {name} = {cast}row[{column}];"

    @override
    def _keep(self, node: fx.Node) -> str:
        return f"row[{self.program.column_of(node)}] = {self.value(node)};"

    @override
    def _comment(self, text: str) -> str:
        # A backslash at the end would swallow the next line of C.
        return "// " + text.rstrip("\\").rstrip()

    @override
    def _call(self, node: fx.Node, dtype: torch.dtype) -> str:
        op = expect_operation(node)
        names = [self.value(operand, dtype) for operand in operands_of(node)]
        text = op.c.format(*names, f="f" if dtype == torch.float32 else "")
        kind = "int" if op.gives_mask else _STORAGE[dtype]
        return f"const {kind} {identifier(label_of(node))} = {text};"

    @override
    def value(self, operand: Operand, dtype: torch.dtype | None = None) -> str:
        if isinstance(operand, fx.Node):
            return identifier(label_of(operand))
        if isinstance(operand, bool):
            return str(int(operand))
        return literal(operand, dtype or self.compute)

    def loads(
        self, nodes: Sequence[fx.Node], index: str, *, is_summed: bool
    ) -> list[str]:
        """Statements that load the elements at an index."""
        lines: list[str] = []
        for position, name in enumerate(self.program.trace.rule.tensors):
            node = self.program.inputs[name]
            if node in nodes:
                value = self.load(
                    position, f"{self.tensors[position]}[{index}]", is_summed=is_summed
                )
                lines.append(
                    f"const {self.compute_type} {identifier(label_of(node))} = {value};"
                )
        return lines

    def stores(self, space: Space, index: str) -> list[str]:
        """Statements that store the outputs whose tensors live in a space."""
        lines: list[str] = []
        for position, value in enumerate(self.program.outputs):
            node = self.program.inputs[self.program.trace.rule.outputs[position]]
            if value is None or space_of(node) != space:
                continue
            text = self.store(position, self.value(value))
            if position in self.program.rounded:
                name = identifier(self.program.trace.rule.outputs[position])
                narrow = self._float(self.value(value))
                where = f"{name}_key, origin + {index}, {16 * (position % 2)}"
                text = f"thalweg_round_bfloat16({narrow}, {where})"
            lines.append(f"{self.tensors[position]}[{index}] = {text};")
        return lines
