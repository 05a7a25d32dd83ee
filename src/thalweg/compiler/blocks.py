"""The writing pass over memory in blocks, with no temporary tensor.

Without a compiler a rule is evaluated operation by operation. Here that is done block
by block, so that what lies between two operations stays in the processor's cache, in
arrays that are kept from step to step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import Context
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from thalweg.compiler.array_ops import Array
from thalweg.compiler.frames import Piece, ScalarRows, Way, Work
from thalweg.compiler.program import Program
from thalweg.compiler.registers import Recipe
from thalweg.compiler.scalar_code import Numbers, ScalarCode
from thalweg.compiler.views import ItemViews, Memory, tensor_of

__all__ = ["BLOCK", "SHARED_BLOCK", "BlockProgram", "treats_elements_alike"]

BLOCK = 65536
"""Elements evaluated at a time: few enough for the cache, many enough for Python."""
SHARED_BLOCK = 64 * BLOCK
"""The same where torch's threads share each operation, and wait for each other."""
_THREADED = 4 * BLOCK
"""From so many elements on, a second thread of Python's pays."""
_SHARED = BLOCK
"""From so many elements on, sharing an operation among torch's threads pays."""
_LARGE = BLOCK // 4
_WARNS_BY_THREAD = np.lib.NumpyVersion(np.__version__) < "2.0.0"
"""NumPy 2 keeps in a context what it warns of."""
_MOST_TABLES = 16


_Quiet = Callable[..., Any]
"""Calls a function with arguments; NumPy warns of nothing meanwhile."""


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
        self._alone = Way(recipe, recipe.calls, partial(np.empty, BLOCK))
        shared = recipe.shared_calls()
        self._shared = None if shared is None else Way(recipe, shared, _shared_room)
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
        content = scalars[:, self._scalars.columns_read].tobytes()
        if content != known.content:
            known.numbers = known.quiet(self._numbers, scalars, known.rows)
            known.content = content
        known.quiet(self._evaluate_all, known)
        if len(self._known) == _MOST_TABLES:
            self._known.clear()
        self._known[id(pointers)] = known

    def _numbers(self, scalars: Array, rows: Sequence[int]) -> ScalarRows:
        """What rows hold; rows that hold the same share the result."""
        seen: dict[bytes, Numbers | None] = {}
        found = ScalarRows()
        for row in rows:
            cells = scalars[row]
            content = cells[self._scalars.columns_read].tobytes()
            if content not in seen:
                seen[content] = self._scalars(cells)
            found[row] = seen[content]
        if len(seen) == 1:
            (found.only,) = seen.values()
        return found

    def _evaluate_all(self, tables: _Tables) -> None:
        """Let threads take one piece after the other until none is left."""
        numbers = tables.numbers
        if self._shared is not None and tables.shared.pieces:
            self._shared.repeat(tables.shared, numbers)
        num_others = torch.get_num_threads() - 1 if tables.is_large else 0
        if not num_others:
            if tables.own.pieces:
                self._alone.repeat(tables.own, numbers)
            return
        pieces, work = iter(tables.own.pieces), self._alone.work
        submit = _pool(os.getpid()).submit
        others = [submit(_quietly, work, pieces, numbers) for _ in range(num_others)]
        try:
            work(pieces, numbers)
        finally:
            wait(others)
        for other in others:
            other.result()


def _shared_room(kind: np.dtype[Any]) -> Memory:
    return tensor_of(np.empty(SHARED_BLOCK, kind))


def _quietly(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; a thread has warnings of its own."""
    with np.errstate(all="ignore"):
        return work(*arguments)


def _quiet_call() -> _Quiet:
    """The same for many calls, of which only one is under way at a time."""
    if _WARNS_BY_THREAD:
        return _quietly
    context = Context()
    context.run(np.seterr, all="ignore")  # entering it is faster than `errstate`
    return context.run


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
        self.numbers = ScalarRows()
        self.quiet = _quiet_call()
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
        pieces, shared = list[Piece](), list[Piece]()
        places = self._lengths, self._offsets
        for row, memory, length, offset in zip(
            self._item_rows, self._views.memory, *places, strict=True
        ):
            if self._can_share and length >= _SHARED:
                tensors: list[Memory] = [tensor_of(whole) for whole in memory]
                shared += _cut(row, tensors, length, offset, SHARED_BLOCK)
            else:
                pieces += _cut(row, memory, length, offset, BLOCK)
        total = sum(length for _, _, length, _ in pieces)
        # Threads that share small pieces would be waiting for Python's lock.
        self.is_large = total >= max(_THREADED, len(pieces) * _LARGE)
        self.own, self.shared = Work(pieces), Work(shared)


def _cut(
    row: int, memory: list[Memory], length: int, offset: int, block: int
) -> list[Piece]:
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
