"""From a program to calls on registers: what is evaluated where, for the fallback.

The first registers are the memory of variable, slots and gradient, the others scalars,
constants and scratch. A result goes straight to memory if it is stored there as it is
and nothing reads what was there later on; scratch is used again after the last read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx

from thalweg.compiler.array_ops import PIECE, Array, array_ops
from thalweg.compiler.graph import (
    Operand,
    Space,
    expect_operation,
    is_mask,
    operands_of,
    space_of,
)
from thalweg.compiler.program import Program, compute_dtype
from thalweg.compiler.rounding import Draw
from thalweg.compiler.views import ARRAYS, Memory, tensor_of

__all__ = ["Call", "Constant", "Places", "Recipe", "Rounder", "Scalar", "Scratch"]

_MASK = np.dtype(np.bool_)


class Scalar(NamedTuple):
    """A register with a scalar of the program.

    Attributes:
        position: In `Recipe.scalars`.
        is_mask: Whether it is a truth value.
    """

    position: int
    is_mask: bool


class Constant(NamedTuple):
    """A register that always holds the same."""

    value: Array


class Scratch(NamedTuple):
    """A register for what lies between two operations."""

    dtype: np.dtype[Any]


class Places(NamedTuple):
    """A register with what rounds outputs stochastically: a `Rounder`."""


class Rounder:
    """Rounds outputs of the elements at hand.

    Attributes:
        draw: The random bits of variable and step.
        first: Where the elements begin in the variable.
    """

    draw: Draw
    first: int = 0

    def store(self, output: int, source: Array, target: Tensor) -> None:
        """Round the values of an output into memory."""
        places = np.arange(self.first, self.first + len(target))
        target.copy_(self.draw.rounded(output, source, places))


class Call(NamedTuple):
    """A function and the registers it is called with, the last of which it writes."""

    function: Callable[..., object]
    choose: Callable[[Sequence[Any]], tuple[Any, ...]]


class Recipe:
    """The calls that make up the writing pass of a program.

    Args:
        program: One in which every element is treated alike.
        dtypes: Storage dtypes of variable, slots and gradient.

    Attributes:
        calls: In order.
        scalars: The scalars that meet tensors.
        registers: What the registers after those of memory hold.
    """

    def __init__(self, program: Program, dtypes: Sequence[torch.dtype]) -> None:
        self.calls: list[Call] = []
        self.scalars: list[fx.Node] = []
        self.registers: list[Scalar | Constant | Scratch | Places] = []
        self._compute = compute_dtype(dtypes)
        self._dtypes = tuple(dtypes)
        self._inputs = [program.inputs[n] for n in program.trace.rule.tensors]
        self._outputs = program.outputs
        self._rounded = program.rounded
        self._rounder: int | None = None
        self._order = [
            node
            for node in program.needed(program.outputs, Space.TENSOR)
            if node.op == "call_function"
        ]
        self._last_read = self._last_reads()
        self._targets = self._direct_targets()
        self._places: dict[Operand, int] = {}
        self._free: dict[np.dtype[Any], list[int]] = {}
        self._write()

    # -- what goes where ------------------------------------------------------

    def _last_reads(self) -> dict[fx.Node, int]:
        """When each value is read for the last time; stores come after everything."""
        last: dict[fx.Node, int] = {}
        for number, node in enumerate(self._order):
            for operand in operands_of(node):
                if isinstance(operand, fx.Node):
                    last[operand] = number
        for value in self._outputs:
            if isinstance(value, fx.Node):
                last[value] = len(self._order)
        return last

    def _direct_targets(self) -> dict[fx.Node, int]:
        """Results that are written to memory at once."""
        targets: dict[fx.Node, int] = {}
        when = {node: number for number, node in enumerate(self._order)}
        for position, value in enumerate(self._outputs):
            if not isinstance(value, fx.Node) or value not in when:
                continue
            is_unread = self._last_read.get(self._inputs[position], -1) <= when[value]
            is_stored_so = self._dtypes[position] == self._compute
            if is_unread and is_stored_so and value not in targets:
                targets[value] = position
        return targets

    # -- calls ----------------------------------------------------------------

    def _write(self) -> None:
        for position, node in enumerate(self._inputs):
            if node in self._last_read and space_of(node) == Space.TENSOR:
                self._load(position, node)
        for number, node in enumerate(self._order):
            self._evaluate(number, node)
        for position, value in enumerate(self._outputs):
            is_done = isinstance(value, fx.Node) and (
                self._targets.get(value) == position
            )
            if value is None or is_done:
                continue
            if position in self._rounded:
                self._round(position, self._place(value))
            else:
                self._call(copy, self._place(value), position)

    def _load(self, position: int, node: fx.Node) -> None:
        """Convert what is read; keep what is stored elsewhere, before it is lost."""
        is_kept = self._last_read[node] == len(self._order)
        if self._dtypes[position] == self._compute and not is_kept:
            self._places[node] = position
            return
        self._places[node] = self._scratch(ARRAYS[self._compute])
        self._call(copy, position, self._places[node])

    def _evaluate(self, number: int, node: fx.Node) -> None:
        op = expect_operation(node)
        operands = [
            self._place(operand, wanted)
            for operand, wanted in zip(operands_of(node), op.masks, strict=True)
        ]
        for operand in dict.fromkeys(operands_of(node)):
            if isinstance(operand, fx.Node) and self._last_read[operand] == number:
                self._release(self._places[operand])
        place = self._targets.get(node)
        if place is None:
            place = self._scratch(_MASK if is_mask(node) else ARRAYS[self._compute])
        self._places[node] = place
        first, *others = array_ops(op)
        self._call(first, *operands, place)
        for function in others:
            self._call(function, place, place)

    def _round(self, position: int, place: int) -> None:
        def store(rounder: Rounder, source: Array, target: Tensor) -> None:
            rounder.store(position, source, target)

        if self._rounder is None:
            self._rounder = self._register(Places())
        self._call(store, self._rounder, place, position)

    def _call(self, function: Callable[..., object], *places: int) -> None:
        self.calls.append(Call(function, itemgetter(*places)))

    # -- registers ------------------------------------------------------------

    def _place(self, operand: Operand, is_truth: bool = False) -> int:
        if isinstance(operand, fx.Node):
            if operand not in self._places:  # tensors are; this is a scalar
                position = len(self.scalars)
                self.scalars.append(operand)
                self._places[operand] = self._register(
                    Scalar(position, is_mask(operand))
                )
            return self._places[operand]
        with np.errstate(over="ignore"):
            kind = _MASK if is_truth else ARRAYS[self._compute]
            return self._register(Constant(np.array(operand, np.float64).astype(kind)))

    def _register(self, content: Scalar | Constant | Scratch | Places) -> int:
        self.registers.append(content)
        return len(self._inputs) + len(self.registers) - 1

    def _scratch(self, dtype: np.dtype[Any]) -> int:
        free = self._free.get(dtype)
        return free.pop() if free else self._register(Scratch(dtype))

    def _release(self, place: int) -> None:
        if place >= len(self._inputs):
            content = self.registers[place - len(self._inputs)]
            if isinstance(content, Scratch):
                self._free.setdefault(content.dtype, []).append(place)


def copy(source: Memory, target: Memory) -> None:
    """Convert from one storage type to another, rounding once.

    Args:
        source: An array of the compute type, or the memory of a half.
        target: The same.
    """
    if isinstance(source, np.ndarray) and isinstance(target, np.ndarray):
        np.copyto(target, source, casting="same_kind")
        return
    for start in range(0, len(target), PIECE):
        stop = start + PIECE
        part = source[start:stop] if source.ndim else source
        values = tensor_of(part)
        room = target[start:stop]
        if isinstance(room, np.ndarray):
            tensor_of(room).copy_(values)
        else:
            # From float64 a half is rounded by way of float32, as kernels do.
            room.copy_(values.float())
