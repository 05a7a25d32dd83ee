"""The writing pass over memory in blocks, with no temporary tensor.

Without a compiler a rule is evaluated operation by operation. Here that is done block
by block, so that what lies between two operations stays in the processor's cache, in
arrays that are kept from step to step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any

import numpy as np
import torch

from thalweg.compiler.array_ops import Array
from thalweg.compiler.graph import is_mask
from thalweg.compiler.program import Program, compute_dtype
from thalweg.compiler.registers import Constant, Places, Recipe, Rounder, Scalar
from thalweg.compiler.scalar_code import Numbers, ScalarCode
from thalweg.compiler.views import ARRAYS, ItemViews, Memory

__all__ = ["BLOCK", "BlockProgram", "treats_elements_alike"]

BLOCK = 65536
"""Elements evaluated at a time: few enough for the cache, many enough for Python."""
_THREADED = 4 * BLOCK
"""From so many elements on, a second thread pays."""
_LARGE = BLOCK // 4
_MOST_LENGTHS, _MOST_TABLES = 256, 16


_Piece = tuple[int, list[Memory], int, int]
"""Scalar row, memory, number of elements, place of the first in the variable."""


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
        self._recipe = Recipe(program, dtypes)
        self._compute = ARRAYS[compute_dtype(dtypes)]
        self._scalars = ScalarCode(program, self._recipe.scalars, self._compute)
        # What is here is taken out while it is used, because other threads may run
        # the same kernel: registers for each thread, and what is known of tables.
        self._frames: list[_Frame] = []
        self._known: dict[int, _Tables] = {}

    def run(self, items: Array, pointers: Array, scalars: Array) -> None:
        """Update variables and slots.

        Args:
            items: Shape (n, 5): variable, offset, gradient offset, length, scalar row.
            pointers: Shape (variables, tensors): addresses.
            scalars: Shape (rows, columns).
        """
        address = pointers.ctypes.data
        known = self._known.pop(address, None)
        if known is None or not known.fits(items):
            known = _Tables(self._dtypes, items, pointers)
        known.update(pointers)
        content = scalars.tobytes()
        if content != known.content:
            known.content, known.numbers = content, self._numbers(scalars, known.rows)
        self._evaluate_all(known)
        if len(self._known) == _MOST_TABLES:
            self._known.clear()
        self._known[address] = known

    def _numbers(
        self, scalars: Array, rows: Sequence[int]
    ) -> dict[int, Numbers | None]:
        """What rows hold; rows that hold the same share the result."""
        seen: dict[bytes, Numbers | None] = {}
        found: dict[int, Numbers | None] = {}
        with np.errstate(all="ignore"):
            for row in rows:
                cells = scalars[row]
                content = cells.tobytes()
                if content not in seen:
                    seen[content] = self._scalars(cells)
                found[row] = seen[content]
        return found

    def _evaluate_all(self, tables: _Tables) -> None:
        """Let threads take one piece after the other until none is left."""
        pieces, numbers = iter(tables.pieces), tables.numbers
        num_others = torch.get_num_threads() - 1 if tables.is_large else 0
        if not num_others:
            return self._work(pieces, numbers)
        submit = _pool(os.getpid()).submit
        others = [submit(self._work, pieces, numbers) for _ in range(num_others)]
        try:
            self._work(pieces, numbers)
        finally:
            wait(others)
        for other in others:
            other.result()
        return None

    def _work(
        self, pieces: Iterator[_Piece], numbers: Mapping[int, Numbers | None]
    ) -> None:
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = _Frame(self._recipe, len(self._dtypes), self._compute)
        with np.errstate(all="ignore"):
            self._evaluate(pieces, numbers, frame)
        self._frames.append(frame)

    def _evaluate(
        self,
        pieces: Iterator[_Piece],
        numbers: Mapping[int, Numbers | None],
        frame: _Frame,
    ) -> None:
        calls, inputs = self._recipe.calls, len(self._dtypes)
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


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked one has none of its parent's."""
    del process
    return ThreadPoolExecutor(os.cpu_count(), "thalweg")


class _Tables:
    """What follows from items and pointers, kept as long as they do not change."""

    def __init__(
        self, dtypes: Sequence[torch.dtype], items: Array, pointers: Array
    ) -> None:
        self._items, self._pointers = items.tobytes(), pointers.tobytes()
        self.content = b""
        self.numbers: dict[int, Numbers | None] = {}
        self._views = ItemViews(dtypes, items, pointers)
        self._item_rows: list[int] = items[:, 4].tolist()
        self._lengths: list[int] = items[:, 3].tolist()
        self._offsets: list[int] = items[:, 1].tolist()
        self.rows = list(dict.fromkeys(self._item_rows))
        self.pieces = self._cut()
        total = sum(self._lengths)
        # Threads that share small pieces would be waiting for Python's lock.
        self.is_large = total >= max(_THREADED, len(self.pieces) * _LARGE)

    def fits(self, items: Array) -> bool:
        """Whether the items are the same."""
        return items.tobytes() == self._items

    def update(self, pointers: Array) -> None:
        """Look where tensors lie now."""
        addresses = pointers.tobytes()
        if addresses != self._pointers:
            self._pointers = addresses
            self._views.move(pointers)
            self.pieces = self._cut()
        if self._views.part():
            self.pieces = self._cut()

    def _cut(self) -> list[_Piece]:
        pieces: list[_Piece] = []
        places = self._lengths, self._offsets
        for row, memory, length, offset in zip(
            self._item_rows, self._views.memory, *places, strict=True
        ):
            if length <= BLOCK:
                pieces.append((row, memory, length, offset))
                continue
            for start in range(0, length, BLOCK):
                parts = [whole[start : start + BLOCK] for whole in memory]
                rest = min(BLOCK, length - start)
                pieces.append((row, parts, rest, offset + start))
        return pieces


class _Frame:
    """The registers of one thread, for blocks of any length."""

    def __init__(self, recipe: Recipe, num_inputs: int, compute: np.dtype[Any]) -> None:
        self._inputs: list[Any] = [None] * num_inputs
        self._values = np.zeros(len(recipe.scalars), compute)
        self._truths = np.zeros(len(recipe.scalars), np.bool_)
        self._has_truths = any(map(is_mask, recipe.scalars))
        self.rounder = Rounder()
        self._others = [self._register(content) for content in recipe.registers]
        self._by_length: dict[int, list[Any]] = {}

    def _register(self, content: Any) -> Array | Rounder:
        if isinstance(content, Places):
            return self.rounder
        if isinstance(content, Constant):
            return content.value
        if isinstance(content, Scalar):
            numbers = self._truths if content.is_mask else self._values
            return numbers[content.position : content.position + 1].reshape(())
        return np.empty(BLOCK, content.dtype)

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
                other[:length]
                if isinstance(other, np.ndarray) and other.ndim
                else other
                for other in self._others
            ]
            found = self._by_length[length] = [*self._inputs, *cut]
        return found
