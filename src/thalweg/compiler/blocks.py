"""The writing pass over memory in blocks, with no temporary tensor.

Without a compiler a rule is evaluated operation by operation. Here that is done block
by block, so that what lies between two operations stays in the processor's cache, in
arrays that are kept from step to step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from thalweg.compiler.array_ops import Array
from thalweg.compiler.graph import is_mask
from thalweg.compiler.program import Program
from thalweg.compiler.registers import (
    Call,
    Constant,
    Content,
    Places,
    Recipe,
    Rounder,
    Scalar,
)
from thalweg.compiler.scalar_code import Numbers, ScalarCode
from thalweg.compiler.views import ItemViews, Memory, tensor_of

__all__ = ["BLOCK", "SHARED_BLOCK", "BlockProgram", "treats_elements_alike"]

BLOCK = 65536
"""Elements evaluated at a time: few enough for the cache, many enough for Python."""
SHARED_BLOCK = 64 * BLOCK
"""The same where torch's threads share each operation, and wait for each other."""
_THREADED = 4 * BLOCK
"""From so many elements on, a second thread pays."""
_LARGE = BLOCK // 4
_MOST_LENGTHS, _MOST_TABLES = 256, 16


_Piece = tuple[int, list[Memory], int, int]
"""Scalar row, memory, number of elements, place of the first in the variable."""
_MakeRoom = Callable[["np.dtype[Any]"], Memory]


def treats_elements_alike(program: Program) -> bool:
    """Whether the writing pass treats every element alike."""
    return not program.uses_rows and "scalar" not in program.trace.layouts


class BlockProgram:
    """The writing pass of a program that can run in blocks.

    Args:
        program: The program.
        dtypes: Storage dtypes of variable, slots and gradient.
    """

    def __init__(self, program: Program, dtypes: Sequence[torch.dtype]) -> None:
        self._dtypes = tuple(dtypes)
        recipe = Recipe(program, dtypes)
        self._scalars = ScalarCode(program, recipe.scalars, recipe.compute)
        self._alone = _Way(recipe, recipe.calls, partial(np.empty, BLOCK))
        shared = recipe.shared_calls()
        self._shared = None if shared is None else _Way(recipe, shared, _shared_room)
        # What is here is taken out while it is used, because other threads may run
        # the same kernel.
        self._known: dict[int, _Tables] = {}

    def run(self, items: Array, pointers: Array, scalars: Array) -> None:
        """Update variables and slots.

        Args:
            items: Shape (n, 5): variable, offset, gradient offset, length, scalar row.
            pointers: Shape (variables, tensors): addresses.
            scalars: Shape (rows, columns).
        """
        known = self._known.pop(id(pointers), None)
        if known is None or not known.fits(items, pointers):
            can_share = self._shared is not None
            known = _Tables(self._dtypes, items, pointers, can_share=can_share)
        known.update(pointers)
        content = scalars.tobytes()
        with np.errstate(all="ignore"):
            if content != known.content:
                known.content, known.numbers = content, self._numbers(scalars, known)
            self._evaluate_all(known)
        if len(self._known) == _MOST_TABLES:
            self._known.clear()
        self._known[id(pointers)] = known

    def _numbers(self, scalars: Array, tables: _Tables) -> dict[int, Numbers | None]:
        """What rows hold; rows that hold the same share the result."""
        seen: dict[bytes, Numbers | None] = {}
        found: dict[int, Numbers | None] = {}
        for row in tables.rows:
            cells = scalars[row]
            content = cells.tobytes()
            if content not in seen:
                seen[content] = self._scalars(cells)
            found[row] = seen[content]
        return found

    def _evaluate_all(self, tables: _Tables) -> None:
        """Let threads take one piece after the other until none is left."""
        numbers = tables.numbers
        if self._shared is not None and tables.shared:
            self._shared.work(iter(tables.shared), numbers)
        pieces, work = iter(tables.pieces), self._alone.work
        num_others = torch.get_num_threads() - 1 if tables.is_large else 0
        if not num_others:
            return work(pieces, numbers)
        submit = _pool(os.getpid()).submit
        others = [submit(_quietly, work, pieces, numbers) for _ in range(num_others)]
        try:
            work(pieces, numbers)
        finally:
            wait(others)
        for other in others:
            other.result()
        return None


def _shared_room(kind: np.dtype[Any]) -> Memory:
    return tensor_of(np.empty(SHARED_BLOCK, kind))


class _Way:
    """A way to evaluate pieces.

    Args:
        recipe: What the registers hold.
        calls: The calls.
        make_room: Makes scratch of a dtype, as long as the longest piece.
    """

    def __init__(
        self, recipe: Recipe, calls: Sequence[Call], make_room: _MakeRoom
    ) -> None:
        self._calls = [(call.function, call.choose) for call in calls]
        self._num_inputs = recipe.num_inputs
        self._make = partial(_Frame, recipe, make_room)
        # Registers for each thread: taken out while they are used.
        self._frames: list[_Frame] = []

    def work(
        self, pieces: Iterator[_Piece], numbers: Mapping[int, Numbers | None]
    ) -> None:
        """Evaluate pieces until none is left; other threads may take some of them.

        Args:
            pieces: The pieces.
            numbers: For each row of the scalar table its scalars, or None.
        """
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = self._make()
        self._evaluate(pieces, numbers, frame)
        self._frames.append(frame)

    def _evaluate(
        self,
        pieces: Iterator[_Piece],
        numbers: Mapping[int, Numbers | None],
        frame: _Frame,
    ) -> None:
        calls, inputs = self._calls, self._num_inputs
        current, cut, registers = None, -1, list[Any]()
        for row, memory, length, first in pieces:
            own = numbers[row]
            if own is None:
                continue
            if own is not current:
                current = own
                frame.set_numbers(own)
            if length != cut:
                cut = length
                registers = frame.registers(length)
            frame.rounder.first = first
            registers[:inputs] = memory
            for function, choose in calls:
                function(*choose(registers))


def _quietly(work: Callable[..., None], *arguments: Any) -> None:
    """Work in another thread, which has warnings of its own."""
    with np.errstate(all="ignore"):
        work(*arguments)


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked one has none of its parent's."""
    del process
    return ThreadPoolExecutor(os.cpu_count(), "thalweg")


class _Tables:
    """What follows from items and pointers, kept as long as they do not change."""

    def __init__(
        self,
        dtypes: Sequence[torch.dtype],
        items: Array,
        pointers: Array,
        *,
        can_share: bool,
    ) -> None:
        self._can_share = can_share
        self._items, self._pointers = items.tobytes(), pointers.tobytes()
        self._source = pointers  # kept: no other table has its id
        self.content = b""
        self.numbers: dict[int, Numbers | None] = {}
        self._views = ItemViews(dtypes, items, pointers)
        self._item_rows: list[int] = items[:, 4].tolist()
        self._lengths: list[int] = items[:, 3].tolist()
        self._offsets: list[int] = items[:, 1].tolist()
        self.rows = list(dict.fromkeys(self._item_rows))
        self._cut()

    def fits(self, items: Array, pointers: Array) -> bool:
        """Whether the items are the same, with pointers in the same table."""
        return pointers is self._source and items.tobytes() == self._items

    def update(self, pointers: Array) -> None:
        """Look where tensors lie now."""
        addresses = pointers.tobytes()
        if addresses != self._pointers:
            self._pointers = addresses
            self._views.move(pointers)
            self._cut()
        if self._views.part():
            self._cut()

    def _cut(self) -> None:
        """Part memory into pieces, for threads of Python's and for those of torch."""
        self.pieces, self.shared = list[_Piece](), list[_Piece]()
        places = self._lengths, self._offsets
        for row, memory, length, offset in zip(
            self._item_rows, self._views.memory, *places, strict=True
        ):
            if self._can_share and length >= _THREADED:
                tensors: list[Memory] = [tensor_of(whole) for whole in memory]
                self.shared += _cut(row, tensors, length, offset, SHARED_BLOCK)
            else:
                self.pieces += _cut(row, memory, length, offset, BLOCK)
        total = sum(length for _, _, length, _ in self.pieces)
        # Threads that share small pieces would be waiting for Python's lock.
        self.is_large = total >= max(_THREADED, len(self.pieces) * _LARGE)


def _cut(
    row: int, memory: list[Memory], length: int, offset: int, block: int
) -> list[_Piece]:
    """The pieces of an item."""
    if length <= block:
        return [(row, memory, length, offset)]
    return [
        (
            row,
            [whole[start : start + block] for whole in memory],
            min(block, length - start),
            offset + start,
        )
        for start in range(0, length, block)
    ]


class _Frame:
    """The registers of one thread, for blocks of any length."""

    def __init__(self, recipe: Recipe, make_room: _MakeRoom) -> None:
        self._make_room = make_room
        self._inputs: list[Any] = [None] * recipe.num_inputs
        self._values = np.zeros(len(recipe.scalars), recipe.compute)
        self._truths = np.zeros(len(recipe.scalars), np.bool_)
        self._has_truths = any(map(is_mask, recipe.scalars))
        self.rounder = Rounder()
        self._others = [self._register(content) for content in recipe.registers]
        self._by_length: dict[int, list[Any]] = {}

    def _register(self, content: Content) -> Memory | Rounder:
        if isinstance(content, Places):
            return self.rounder
        if isinstance(content, Constant):
            return content.value
        if isinstance(content, Scalar):
            numbers = self._truths if content.is_mask else self._values
            return numbers[content.position : content.position + 1].reshape(())
        return self._make_room(content.dtype)

    def set_numbers(self, numbers: Numbers) -> None:
        """Change the scalars."""
        np.copyto(self._values, numbers.values)
        if self._has_truths:
            np.copyto(self._truths, numbers.truths)
        if numbers.draw is not None:
            self.rounder.draw = numbers.draw

    def registers(self, length: int) -> list[Any]:
        """All registers for a length, the same list each time; memory is put first."""
        found = self._by_length.get(length)
        if found is None:
            if len(self._by_length) == _MOST_LENGTHS:
                self._by_length.clear()
            cut = [
                other
                if isinstance(other, Rounder) or not other.ndim
                else other[:length]
                for other in self._others
            ]
            found = self._by_length[length] = [*self._inputs, *cut]
        return found
