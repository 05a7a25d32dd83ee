"""One kernel for some rows of one variable: what a raw op called from Python runs.

As `single` does for whole tensors, a launch keeps its tables, and whether the tensors
are like those of an earlier call is asked in C++. Gradients may have any number of
rows. Here a call of few rows takes a tenth of the time of one that is looked at anew.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from thalweg.compiler import (
    APPLY,
    NUM_ELEMENTS,
    ROW_LENGTH,
    Kernel,
    RowWalk,
    Rule,
    compile_rule,
)
from thalweg.state import IndexedSlices
from thalweg.state.variable import VariableView
from thalweg.step.bulk import count_writes
from thalweg.step.group import Member
from thalweg.step.recognition import Recognizer, recognizer
from thalweg.step.row_updates import RowUpdate, Spans
from thalweg.step.rows import launch_row_updates
from thalweg.step.single import (
    PLAIN_TYPES,
    address_of,
    lie_apart,
    shape_of,
    size_of,
)

__all__ = ["RowLauncher", "row_launcher_of"]

_MOST_KNOWN = 256
_MOST_KINDS = 8  # of one shape: parameters, tensors, other dtypes


class _RowsOfOne:
    """A kernel with tables for the rows of one variable, written anew for each call.

    Args:
        walk: Of the kernel over the tables.
        pointers: A table of one row.
        scalars: A table of one row.
        used: Which numbers of the rule are its first columns.
    """

    def __init__(
        self,
        walk: RowWalk,
        pointers: np.ndarray,
        scalars: np.ndarray,
        used: Sequence[int],
    ) -> None:
        self._walk = walk
        self._used = used
        write = struct.Struct(f"{pointers.size}q").pack_into
        self._write_pointers = partial(write, pointers.data, 0)
        write = struct.Struct(f"{len(used)}d").pack_into
        self._write_numbers = partial(write, scalars.data, 0)

    @classmethod
    def of(cls, kernel: Kernel, var: torch.Tensor) -> _RowsOfOne | None:
        """A launch for variables of this shape; None without a compiler."""
        if kernel.backend != "c":
            return None
        index, names = kernel.columns.index, kernel.key.rule.scalars
        pointers = np.zeros((1, len(kernel.key.dtypes)), dtype=np.int64)
        scalars = np.zeros((1, len(index)), dtype=np.float64)
        num_rows, width = var.shape[0], var.numel() // var.shape[0]
        known = {APPLY: 1.0, ROW_LENGTH: width, NUM_ELEMENTS: var.numel()}
        for name in known.keys() & index.keys():
            scalars[0, index[name]] = known[name]
        walk = RowWalk.of(kernel.functions(0)[-1], pointers, scalars)
        if walk is None:
            return None
        walk.bind([(num_rows, width)])
        # The numbers of the rule are the first columns, in the rule's order.
        used = [number for number, name in enumerate(names) if name in index]
        return cls(walk, pointers, scalars, used)

    def __call__(
        self, addresses: Sequence[int], indices: torch.Tensor, numbers: Sequence[float]
    ) -> None:
        """Update the rows.

        Args:
            addresses: Of variable, slots, gradient: contiguous, on the CPU.
            indices: The rows, at least one.
            numbers: One for each scalar of the rule, in its order.

        Raises:
            IndexError: If an index names no row; nothing is written then.
        """
        num_threads = torch.get_num_threads()
        self._walk.sort([indices], num_threads)
        if len(self._used) < len(numbers):
            numbers = [numbers[number] for number in self._used]
        self._write_pointers(*addresses)
        self._write_numbers(*numbers)
        self._walk(num_threads)


@dataclass(slots=True)
class _Known:
    """Tensors of a kind.

    Attributes:
        are_like: What tells variable and slots.
        slices_are_like: What tells gradient and indices, of any number of rows.
        launch: Their launch.
        place: Where some of them lay, each in a place of its own, and how many rows
            the gradient had.
    """

    are_like: Recognizer
    slices_are_like: Recognizer
    launch: _RowsOfOne
    place: list[int]


class RowLauncher(threading.local):
    """A rule with some flags, applied to rows of tensors that are like earlier ones.

    Duplicates of an index act one after the other. Tables belong to a thread: a long
    launch lets other threads run.

    Args:
        rule: The rule.
        flags: Value of each of its flags, as sorted pairs.
    """

    def __init__(self, rule: Rule, flags: tuple[tuple[str, bool], ...]) -> None:
        self._rule = rule
        self._flags = flags
        self._known: dict[object, list[_Known]] = {}
        self._last: _Known | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Tables hold addresses of this process; a copy makes its own.
        return RowLauncher, (self._rule, self._flags)

    def again(self, tensors: Sequence[Any], numbers: Sequence[float]) -> bool:
        """Apply the rule if the tensors are like those of an earlier launch.

        Args:
            tensors: What may be variable, slots, gradient, and indices.
            numbers: One for each scalar of the rule, in its order.

        Returns:
            False, with nothing written, where a closer look is needed; see `launch`.
        """
        written, slices, known = tensors[:-2], tensors[-2:], self._last
        if known is None or not (
            known.are_like(*written) and known.slices_are_like(*slices)
        ):
            if VariableView in map(type, written):
                written = [t.handle if type(t) is VariableView else t for t in written]
                tensors = [*written, *slices]
            known = self._find(written, slices)
            if known is None:
                return False
        grad, indices = slices
        (count,) = shape_of(indices)
        if not count or shape_of(grad)[0] != count:
            return False
        place = [*map(address_of, tensors), count]
        if place != known.place:
            if not lie_apart(place[:-1], map(size_of, tensors)):
                return False
            known.place = place
        try:
            known.launch(place[:-2], indices, numbers)
        except IndexError:
            return False
        count_writes(written)
        return True

    def _find(self, written: Sequence[Any], slices: Sequence[Any]) -> _Known | None:
        """What is known of tensors like these; it is asked first from now on."""
        shape = getattr(written[0], "shape", None)
        for known in self._known.get(shape, ()):
            if known.are_like(*written) and known.slices_are_like(*slices):
                self._last = known
                return known
        return None

    def launch(
        self,
        written: Sequence[torch.Tensor],
        slices: IndexedSlices,
        numbers: Sequence[float],
    ) -> None:
        """Apply the rule, by a kernel where there can be one.

        Args:
            written: Variable and slots.
            slices: The gradient, which shares no memory with them; its indices are in
                range.
            numbers: One for each scalar of the rule, in its order.
        """
        member = Member(self._rule, tuple(written), (), 0, self._flags)
        update = RowUpdate(member, slices, "sequence").as_read(Spans(written))
        pairs = zip(self._rule.scalars, numbers, strict=True)
        launch_row_updates([update], {name: np.array([n]) for name, n in pairs})
        if slices.indices.numel() and update.has_kernel():
            self._remember(update)

    def _remember(self, update: RowUpdate) -> None:
        """Let tensors like these be recognized from now on."""
        written = update.member.tensors
        slices = update.slices.values, update.slices.indices
        is_plain = set(map(type, (*written, *slices))) <= PLAIN_TYPES
        if not is_plain or self._find(written, slices) is not None:
            return
        launch = _RowsOfOne.of(compile_rule(update.key()), written[0])
        if launch is None:
            return
        if len(self._known) == _MOST_KNOWN:
            self._known.clear()
        known = self._known.setdefault(written[0].shape, [])
        are_like = recognizer(written), recognizer(slices, any_length=True)
        known.insert(0, _Known(*are_like, launch, []))
        del known[_MOST_KINDS:]


@cache
def _row_launcher_of(rule: Rule, flags: tuple[tuple[str, bool], ...]) -> RowLauncher:
    return RowLauncher(rule, flags)


def row_launcher_of(rule: Rule, flags: Mapping[str, bool]) -> RowLauncher:
    """The launcher of a rule; the same object for the same rule and flags.

    Args:
        rule: The rule.
        flags: Value of each of its flags.
    """
    return _row_launcher_of(rule, tuple(sorted(flags.items())))
