"""How pieces of memory are evaluated: registers, and calls that work on them.

Pieces that come again, as in most steps, are evaluated by calls that were prepared:
where all tensors are small, Python takes longer than arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from thalweg.compiler.graph import is_mask
from thalweg.compiler.registers import (
    Call,
    Constant,
    Content,
    Places,
    Recipe,
    Rounder,
    Scalar,
)
from thalweg.compiler.scalar_code import Numbers
from thalweg.compiler.views import Memory

__all__ = ["MakeRoom", "Piece", "ScalarRows", "Way", "Work"]

_MOST_LENGTHS, _MOST_PREPARED = 256, 1024

Piece = tuple[int, list[Memory], int, int]
"""Scalar row, memory, number of elements, place of the first in the variable."""
MakeRoom = Callable[["np.dtype[Any]"], Memory]
_Prepared = tuple[Callable[..., object], tuple[Any, ...]]


class ScalarRows(dict[int, "Numbers | None"]):
    """For each row of the scalar table its scalars, or None if nothing is to change.

    Attributes:
        only: What all rows hold; None if they differ.
    """

    only: Numbers | None = None


class Work:
    """Pieces that one thread evaluates, and how, once they have come again.

    Attributes:
        pieces: The pieces.
        is_known: Whether they have been evaluated.
        frame: The registers that the calls work on.
        calls: Functions, and what they are called with.
    """

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces
        self.is_known = False
        self.frame: _Frame | None = None
        self.calls: list[_Prepared] = []


class Way:
    """A way to evaluate pieces.

    Args:
        recipe: What the registers hold.
        calls: The calls.
        make_room: Makes scratch of a dtype, as long as the longest piece.
    """

    def __init__(
        self, recipe: Recipe, calls: Sequence[Call], make_room: MakeRoom
    ) -> None:
        self._calls = [(call.function, call.choose) for call in calls]
        self._num_inputs = recipe.num_inputs
        self._make = partial(_Frame, recipe, make_room)
        self._rounds = any(isinstance(kind, Places) for kind in recipe.registers)
        # Registers for each thread: taken out while they are used.
        self._frames: list[_Frame] = []

    def work(self, pieces: Iterator[Piece], numbers: ScalarRows) -> None:
        """Evaluate pieces until none is left; other threads may take some of them.

        Args:
            pieces: The pieces.
            numbers: For each row of the scalar table its scalars, or None.
        """
        frame = self._taken_frame()
        self._evaluate(pieces, numbers, frame)
        self._frames.append(frame)

    def _taken_frame(self) -> _Frame:
        try:
            return self._frames.pop()
        except IndexError:
            return self._make()

    def repeat(self, work: Work, numbers: ScalarRows) -> None:
        """Evaluate pieces in this thread; those of an earlier step take little Python.

        Args:
            work: The pieces.
            numbers: For each row of the scalar table its scalars, or None.
        """
        own = numbers.only
        if own is None or self._rounds or len(work.pieces) > _MOST_PREPARED:
            self.work(iter(work.pieces), numbers)
            return
        frame = self._taken_frame()
        if work.frame is not frame and not work.is_known:
            self._evaluate(iter(work.pieces), numbers, frame)
            work.is_known = True
        else:
            frame.set_numbers(own)
            for function, arguments in self._prepared(work, frame):
                function(*arguments)
        self._frames.append(frame)

    def _prepared(self, work: Work, frame: _Frame) -> list[_Prepared]:
        """The calls for pieces with what they are called with, made once."""
        if work.frame is not frame:
            work.frame, work.calls = frame, []
            for _, memory, length, _ in work.pieces:
                registers = frame.registers(length)
                registers[: self._num_inputs] = memory
                work.calls += [
                    (call, choose(registers)) for call, choose in self._calls
                ]
        return work.calls

    def _evaluate(
        self,
        pieces: Iterator[Piece],
        numbers: ScalarRows,
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


class _Frame:
    """The registers of one thread, for blocks of any length."""

    def __init__(self, recipe: Recipe, make_room: MakeRoom) -> None:
        self._make_room = make_room
        self._inputs: list[Any] = [None] * recipe.num_inputs
        self._values = np.zeros(len(recipe.scalars), recipe.compute)
        self._truths = np.zeros(len(recipe.scalars), np.bool_)
        self._has_truths = any(map(is_mask, recipe.scalars))
        self.rounder = Rounder()
        self._held: Numbers | None = None
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
        if numbers is self._held:
            return
        self._held = numbers
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
