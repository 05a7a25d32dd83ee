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

from thalweg.compiler.array_ops import PIECE, Array, array_ops, fused_op, shared_op
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

__all__ = [
    "Call",
    "Constant",
    "Content",
    "Places",
    "Recipe",
    "Rounder",
    "Scalar",
    "Scratch",
]

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

    @property
    def is_mask(self) -> bool:
        """Whether it is a truth value."""
        return self.value.dtype == _MASK


class Scratch(NamedTuple):
    """A register for what lies between two operations."""

    dtype: np.dtype[Any]


class Places(NamedTuple):
    """A register with what rounds outputs stochastically: a `Rounder`."""


Content = Scalar | Constant | Scratch | Places


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
    """A function and the registers it is called with, the last of which it writes.

    Attributes:
        function: The function.
        places: Of the registers.
        choose: Takes them from all registers.
    """

    function: Callable[..., object]
    places: tuple[int, ...]
    choose: Callable[[Sequence[Any]], tuple[Any, ...]]

    @classmethod
    def of(cls, function: Callable[..., object], *places: int) -> Call:
        """A call with two registers or more."""
        return cls(function, places, itemgetter(*places))


class Recipe:
    """The calls that make up the writing pass of a program.

    Args:
        program: One in which every element is treated alike.
        dtypes: Storage dtypes of variable, slots and gradient.

    Attributes:
        calls: In order.
        scalars: The scalars that meet tensors.
        registers: What the registers after those of memory hold.
        num_inputs: Number of registers that are memory.
        compute: What NumPy calls the compute type.
    """

    def __init__(self, program: Program, dtypes: Sequence[torch.dtype]) -> None:
        self.calls: list[Call] = []
        self.scalars: list[fx.Node] = []
        self.registers: list[Content] = []
        self._compute = compute_dtype(dtypes)
        self._dtypes = tuple(dtypes)
        self.num_inputs = len(self._dtypes)
        self.compute = ARRAYS[self._compute]
        self._inputs = [program.inputs[n] for n in program.trace.rule.tensors]
        self._outputs = program.outputs
        self._rounded = program.rounded
        self._rounder: int | None = None
        self._order = [
            node
            for node in program.needed(program.outputs, Space.TENSOR)
            if node.op == "call_function"
        ]
        self._when = {node: number for number, node in enumerate(self._order)}
        self._last_read = self._last_reads()
        self._targets = self._direct_targets()
        self._occupied: dict[int, int] = {}
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
        for position, value in enumerate(self._outputs):
            if not isinstance(value, fx.Node) or value not in self._when:
                continue
            last_read = self._last_read.get(self._inputs[position], -1)
            is_unread = last_read <= self._when[value]
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
        self._places[node] = self._scratch(self.compute)
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
        place = self._places[node] = self._place_of_result(number, node)
        first, *others = array_ops(op)
        self._call(first, *operands, place)
        for function in others:
            self._call(function, place, place)

    def _place_of_result(self, number: int, node: fx.Node) -> int:
        """Its memory, or memory that another result is written to later, or scratch."""
        place = self._targets.get(node)
        if place is not None:
            return place
        if is_mask(node):
            return self._scratch(_MASK)
        last_read = self._last_read[node]
        for final, place in self._targets.items():
            is_unread = self._last_read.get(self._inputs[place], -1) <= number
            is_free = self._occupied.get(place, -1) <= number
            if is_unread and is_free and last_read <= self._when[final]:
                self._occupied[place] = last_read
                return place
        return self._scratch(self.compute)

    def _round(self, position: int, place: int) -> None:
        def store(rounder: Rounder, source: Array, target: Tensor) -> None:
            rounder.store(position, source, target)

        if self._rounder is None:
            self._rounder = self._register(Places())
        self._call(store, self._rounder, place, position)

    def _call(self, function: Callable[..., object], *places: int) -> None:
        self.calls.append(Call.of(function, *places))

    # -- the same for long arrays ---------------------------------------------

    def shared_calls(self) -> list[Call] | None:
        """Fewer calls with the same bits, which torch's threads share.

        A product with a number goes into the sum that reads it, so that memory is
        passed over once.

        Returns:
            None if not every call is of that kind.
        """
        sums, products = self._fused()
        shared: list[Call] = []
        for number, (function, places, _) in enumerate(self.calls):
            if number in sums:
                shared.append(sums[number])
            elif number not in products:
                found = shared_op(function)
                if found is None:
                    return None
                shared.append(Call.of(found, *places))
        return shared

    def _fused(self) -> tuple[dict[int, Call], set[int]]:
        """Sums that take a product in, by their numbers, and these products."""
        sums: dict[int, Call] = {}
        products: set[int] = set()
        # The last product goes first: one before it may be in memory already.
        for number, (function, places, _) in reversed(list(enumerate(self.calls))):
            numbers = [p for p in places[:-1] if self._is_number(p)]
            if function is not np.multiply or len(numbers) != 1:
                continue
            (tensor,) = (p for p in places[:-1] if p != numbers[0])
            reader = self._reader(number, tensor)
            fused = None if reader in sums else self._sum(reader, places[-1])
            if reader is not None and fused is not None:
                function, other, out = fused
                sums[reader] = Call.of(function, other, tensor, numbers[0], out)
                products.add(number)
        return sums, products

    def _reader(self, number: int, tensor: int) -> int | None:
        """The only call that reads a product, if its tensor still is there."""
        product = self.calls[number].places[-1]
        for later in range(number + 1, len(self.calls)):
            places = self.calls[later].places
            if product in places[:-1]:
                return later if self._is_lost(product, later) else None
            if places[-1] in (product, tensor):
                break
        return None

    def _sum(
        self, number: int | None, product: int
    ) -> tuple[Callable[..., object], int, int] | None:
        """Of a sum with a product: its function, the other term, and its result."""
        if number is None:
            return None
        function, (*terms, out), _ = self.calls[number]
        fused = fused_op(function)
        if fused is None or terms.count(product) != 1:
            return None
        if function is np.subtract and terms[0] == product:
            return None
        (other,) = (p for p in terms if p != product)
        return fused, other, out

    def _is_number(self, place: int) -> bool:
        content = self._content(place)
        return isinstance(content, (Scalar, Constant)) and not content.is_mask

    def _is_lost(self, place: int, number: int) -> bool:
        """Whether what a register holds is read by no call after this one."""
        if self.calls[number].places[-1] == place:
            return True
        for call in self.calls[number + 1 :]:
            if place in call.places[:-1]:
                return False
            if place == call.places[-1]:
                return True
        return isinstance(self._content(place), Scratch)

    def _content(self, place: int) -> Content | None:
        """What a register holds; None for memory."""
        first = self.num_inputs
        return self.registers[place - first] if place >= first else None

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
            kind = _MASK if is_truth else self.compute
            return self._register(Constant(np.array(operand, np.float64).astype(kind)))

    def _register(self, content: Content) -> int:
        self.registers.append(content)
        return self.num_inputs + len(self.registers) - 1

    def _scratch(self, dtype: np.dtype[Any]) -> int:
        free = self._free.get(dtype)
        return free.pop() if free else self._register(Scratch(dtype))

    def _release(self, place: int) -> None:
        content = self._content(place)
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
