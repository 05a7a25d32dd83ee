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

__all__ = [
    "BLOCK",
    "SHARED_BLOCK",
    "BlockLaunch",
    "BlockProgram",
    "treats_elements_alike",
]

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

    Attributes:
        dtypes: Storage dtypes of variable, slots and gradient.
        scalars: Evaluates the scalars of a row.
        alone: How one of Python's threads evaluates pieces.
        shared: How torch's threads share each operation on a piece; None if they
            cannot.
    """

    def __init__(self, program: Program, dtypes: Sequence[torch.dtype]) -> None:
        self.dtypes = tuple(dtypes)
        recipe = Recipe(program, dtypes)
        self.scalars = ScalarCode(program, recipe.scalars, recipe.compute)
        self.alone = Way(recipe, recipe.calls, partial(np.empty, BLOCK))
        shared = recipe.shared_calls()
        self.shared = None if shared is None else Way(recipe, shared, _shared_room)

    def bind(self, items: Array, pointers: Array, scalars: Array) -> BlockLaunch:
        """Keep tables, whose contents may change, for many launches.

        Args:
            items: Shape (n, 5): variable, offset, gradient offset, length, scalar row.
            pointers: Shape (variables, tensors): addresses.
            scalars: Shape (rows, columns).

        Returns:
            A callable that updates variables and slots.
        """
        return BlockLaunch(self, items, pointers, scalars)


class BlockLaunch:
    """A program with its tables: calling it runs it; one thread does at a time."""

    def __init__(
        self, program: BlockProgram, items: Array, pointers: Array, scalars: Array
    ) -> None:
        self._program = program
        self._items, self._pointers, self._scalars = items, pointers, scalars
        self._read = _columns(scalars, program.scalars.columns_read)
        self._quiet = _quiet_call()
        self._list_items()

    def __call__(self) -> None:
        """Update variables and slots."""
        self._follow_tables()
        content = b"".join([columns.tobytes() for columns in self._read])
        if content != self._content:
            self._numbers = self._quiet(self._evaluate_scalars)
            self._content = content
        self._quiet(self._evaluate)

    # -- where things lie -----------------------------------------------------

    def _list_items(self) -> None:
        """Take items and pointers anew."""
        items, pointers = self._items, self._pointers
        self._seen = items.tobytes(), pointers.tobytes()
        self._content, self._numbers = b"", ScalarRows()
        self._views = ItemViews(self._program.dtypes, items, pointers)
        self._item_rows: list[int] = items[:, 4].tolist()
        self._lengths: list[int] = items[:, 3].tolist()
        self._offsets: list[int] = items[:, 1].tolist()
        self._rows = list(dict.fromkeys(self._item_rows))
        self._cut()

    def _follow_tables(self) -> None:
        """Look what is in the tables of items and pointers now."""
        known, addresses = self._seen
        if self._items.tobytes() != known:
            self._list_items()
        elif (found := self._pointers.tobytes()) != addresses:
            self._seen = known, found
            self._views.move(self._pointers)
            self._cut()
        if self._views.part():
            self._cut()

    def _cut(self) -> None:
        """Part memory into pieces, for threads of Python's and for those of torch."""
        pieces, shared = list[Piece](), list[Piece]()
        places = self._lengths, self._offsets
        can_share = self._program.shared is not None
        for row, memory, length, offset in zip(
            self._item_rows, self._views.memory, *places, strict=True
        ):
            if can_share and length >= _SHARED:
                tensors: list[Memory] = [tensor_of(whole) for whole in memory]
                shared += _cut(row, tensors, length, offset, SHARED_BLOCK)
            else:
                pieces += _cut(row, memory, length, offset, BLOCK)
        total = sum(length for _, _, length, _ in pieces)
        # Threads that share small pieces would be waiting for Python's lock.
        self._is_large = total >= max(_THREADED, len(pieces) * _LARGE)
        self._own, self._shared = Work(pieces), Work(shared)

    # -- evaluating -----------------------------------------------------------

    def _evaluate_scalars(self) -> ScalarRows:
        """What the rows in use hold; rows that hold the same share the result."""
        code, seen = self._program.scalars, dict[bytes, Numbers | None]()
        found = ScalarRows()
        for row in self._rows:
            cells = self._scalars[row]
            content = cells[code.columns_read].tobytes()
            if content not in seen:
                seen[content] = code(cells)
            found[row] = seen[content]
        if len(seen) == 1:
            (found.only,) = seen.values()
        return found

    def _evaluate(self) -> None:
        """Let threads take one piece after the other until none is left."""
        program, numbers = self._program, self._numbers
        if program.shared is not None and self._shared.pieces:
            program.shared.repeat(self._shared, numbers)
        num_others = torch.get_num_threads() - 1 if self._is_large else 0
        if not num_others:
            if self._own.pieces:
                program.alone.repeat(self._own, numbers)
            return
        pieces, work = iter(self._own.pieces), program.alone.work
        submit = _pool(os.getpid()).submit
        others = [submit(_quietly, work, pieces, numbers) for _ in range(num_others)]
        try:
            work(pieces, numbers)
        finally:
            wait(others)
        for other in others:
            other.result()


def _columns(table: Array, columns: Sequence[int]) -> list[Array]:
    """Views of some columns, as many as lie beside each other in one."""
    runs = list[tuple[int, int]]()
    for column in columns:
        if runs and runs[-1][1] == column:
            runs[-1] = runs[-1][0], column + 1
        else:
            runs.append((column, column + 1))
    return [table[:, start:end] for start, end in runs]


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
