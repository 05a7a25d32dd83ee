"""Updates of touched rows: one launch for all variables that share a kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch.autograd.graph import increment_version

from thalweg.compiler import (
    APPLY,
    NUM_ELEMENTS,
    ROW_LENGTH,
    Kernel,
    KernelKey,
    RowTables,
    RowWalk,
    compile_rules,
)
from thalweg.compiler.interpret import interpret_program
from thalweg.compiler.program import with_rounding
from thalweg.compiler.rows import check_range
from thalweg.state import IndexedSlices
from thalweg.state.huge_pages import prefer_huge_pages
from thalweg.step.bulk import Places, Writes
from thalweg.step.device_rows import launch_on_devices
from thalweg.step.device_step import numbers_of_rest
from thalweg.step.group import Member
from thalweg.step.recognition import recognizer
from thalweg.step.row_updates import (
    RowUpdate,
    Spans,
    as_added,
    check_updates,
    rounds_of,
)

__all__ = ["RowPlan", "launch_row_updates"]

Values = Mapping[str, np.ndarray]


class _RowLaunch:
    """A kernel with tables that are filled anew in each step.

    Args:
        kernel: The kernel.
        count: How many variables it updates.
    """

    def __init__(self, kernel: Kernel, count: int) -> None:
        index = kernel.columns.index
        self.kernel = kernel
        self.count = count
        self._index = index
        self._scalar_names = [n for n in kernel.key.rule.scalars if n in index]
        self._pointers = np.zeros((count, len(kernel.key.dtypes)), dtype=np.int64)
        self._scalars = np.zeros((count, len(index)), dtype=np.float64)
        self._scalars[:, index[APPLY]] = 1.0
        tables = self._pointers, self._scalars
        self._rows = RowTables()
        self._launch: Callable[[int], None] = kernel.bind_rows(self._rows, *tables)
        self._walk: RowWalk | None = None
        # A slot of one number for the variable must be read before the first row.
        if kernel.backend == "c" and "scalar" not in kernel.key.layouts:
            self._walk = RowWalk.of(kernel.functions(0)[-1], *tables)
            self._launch = self._walk or self._launch
        self._written: Sequence[torch.Tensor] = ()
        self._writes: Writes | None = None
        # A column that is the same array as before holds the same numbers.
        self._seen: dict[str, np.ndarray] = {}

    def bind(self, members: Sequence[Member]) -> None:
        """Write where variables and slots lie, and what follows from their shapes."""
        index = self._index
        self._written = [t for member in members for t in member.tensors]
        self._shapes = [(m.var.shape[0], _width(m.var)) for m in members]
        if self._walk is not None:
            self._walk.bind(self._shapes)
        self._seen.clear()
        self._settings = np.array([m.setting for m in members], dtype=np.int64)
        for number, member in enumerate(members):
            self._pointers[number, :-1] = [t.data_ptr() for t in member.tensors]
            if ROW_LENGTH in index:
                self._scalars[number, index[ROW_LENGTH]] = _width(member.var)
            if NUM_ELEMENTS in index:
                self._scalars[number, index[NUM_ELEMENTS]] = member.var.numel()
            for name, cell in member.rounding_columns.items():
                self._scalars[number, index[name]] = cell

    def load(self, gradients: Sequence[IndexedSlices], values: Values) -> None:
        """Find the touched rows, and write the scalars; IndexError if one is none."""
        if self._walk is None:
            self._tabulate(gradients)
        else:
            indices = [slices.indices for slices in gradients]
            self._walk.sort(indices, torch.get_num_threads())
        for number, slices in enumerate(gradients):
            self._pointers[number, -1] = slices.values.data_ptr()
        for name in self._scalar_names:
            column = values[name]
            if self._seen.get(name) is not column:
                self._seen[name] = column
                self._scalars[:, self._index[name]] = column[self._settings]

    def _tabulate(self, gradients: Sequence[IndexedSlices]) -> None:
        self._rows.clear()
        pairs = zip(self._shapes, gradients, strict=True)
        for number, ((num_rows, width), slices) in enumerate(pairs):
            self._rows.append(
                slices.indices,
                num_rows=num_rows,
                width=width,
                variable=number,
                scalar_row=number,
            )

    def run(self) -> None:
        """Update the rows."""
        self._launch(torch.get_num_threads())
        if self._writes is None:
            increment_version(self._written)
        else:
            self._writes.count()

    def expect_repetition(self) -> None:
        """Prepare for many steps over the variables, whose memory is kept alive."""
        self._writes = Writes(self._written)

    def release(self) -> None:
        """Forget the variables, so that nothing here keeps them alive."""
        self._written = ()


class _Launches(threading.local):
    """The launches of earlier steps, one for each kernel; each thread has its own."""

    def __init__(self) -> None:
        self._known: dict[KernelKey, _RowLaunch] = {}

    def of(self, kernel: Kernel, count: int) -> _RowLaunch:
        """A launch for so many variables."""
        known = self._known.get(kernel.key)
        if known is None or known.kernel is not kernel or known.count != count:
            known = self._known[kernel.key] = _RowLaunch(kernel, count)
        return known


_launches = _Launches()


def launch_row_updates(updates: Sequence[RowUpdate], values: Values) -> None:
    """Apply sparse gradients to the rows they name.

    Args:
        updates: The variables; kernels are compiled, and indices checked, before the
            first row is written.
        values: For each scalar one number per setting.

    Raises:
        IndexError: If an index names no row of its variable.
        ValueError: If an update cannot be made; see `RowUpdate`.
    """
    check_updates(updates)
    for update in updates:
        update.check_rule()
    compiled, others = _sorted_out(updates)
    for update in others:
        if update.slices.indices.is_cpu:
            check_range(update.slices.indices, update.member.var.shape[0])
    launches: list[_RowLaunch] = []
    kernels = compile_rules(compiled)
    try:
        for kernel, group in zip(kernels, compiled.values(), strict=True):
            launch = _launches.of(kernel, len(group))
            launches.append(launch)
            launch.bind([update.member for update in group])
            launch.load([update.slices for update in group], values)
        left = launch_on_devices(others, values)
        for launch in launches:
            launch.run()
    finally:
        for launch in launches:
            launch.release()
    numbers = numbers_of_rest(values) if left else values
    for update in left:
        _interpret(update, numbers)


def _sorted_out(
    updates: Sequence[RowUpdate],
) -> tuple[dict[KernelKey, list[RowUpdate]], list[RowUpdate]]:
    """The updates of any row: those of each kernel, and those without one."""
    compiled: dict[KernelKey, list[RowUpdate]] = {}
    others: list[RowUpdate] = []
    written = Spans(tensor for u in updates for tensor in u.member.tensors)
    for update in updates:
        if update.slices.indices.numel() == 0:
            continue
        ready = update.as_read(written)
        if ready.has_kernel():
            compiled.setdefault(ready.key(), []).append(ready)
        else:
            others.append(ready)
    return compiled, others


class RowPlan:
    """Updates of rows of the same variables, to be repeated with other gradients.

    Args:
        updates: Those of one step; all have a kernel.
    """

    def __init__(self, updates: Sequence[RowUpdate]) -> None:
        positions: dict[KernelKey, list[int]] = {}
        for position, update in enumerate(updates):
            positions.setdefault(update.key(), []).append(position)
        self._groups = [
            (_RowLaunch(kernel, len(group)), group)
            for kernel, group in zip(
                compile_rules(positions), positions.values(), strict=True
            )
        ]
        for launch, group in self._groups:
            launch.bind([updates[i].member for i in group])
            launch.expect_repetition()
        self._tensors = [t for update in updates for t in update.member.tensors]
        written = Spans(self._tensors)
        self._kinds = [_Kind(update, written) for update in updates]
        for tensor in self._tensors:
            prefer_huge_pages(tensor)
        self._places = Places(self._tensors)
        self._is_like = recognizer(self._tensors)

    def is_in_place(self) -> bool:
        """Whether variables and slots lie where they did, in the same layout."""
        return self._places.are_kept() and self._is_like(*self._tensors)

    def fits(self, gradients: Sequence[object]) -> bool:
        """Whether these are slices that the kernels take; indices are not read."""
        for kind, gradient in zip(self._kinds, gradients, strict=True):
            if not kind.takes(gradient):
                return False
        return True

    def load(self, gradients: Sequence[IndexedSlices], values: Values) -> bool:
        """Make everything ready to write; False if an index names no row.

        Args:
            gradients: One for each variable, which fit.
            values: For each scalar one number per setting.
        """
        try:
            for launch, group in self._groups:
                launch.load([gradients[i] for i in group], values)
        except IndexError:
            return False
        return True

    def run(self) -> None:
        """Update the rows of the gradients that were loaded."""
        for launch, _ in self._groups:
            launch.run()


class _Kind:
    """What the slices of a variable were like.

    Args:
        update: An update that has a kernel.
        written: Where what the step writes lies.
    """

    def __init__(self, update: RowUpdate, written: Spans) -> None:
        slices, var = update.slices, update.member.var
        self._is_like = recognizer([slices.values, slices.indices], any_length=True)
        self._shape = tuple(var.shape)
        self._width = _width(var)
        self._row_size = self._width * slices.values.itemsize
        self._index_size = slices.indices.itemsize
        self._leave_free = written.leave_free
        self._place = 0, 0, 0

    def takes(self, slices: object) -> bool:
        """Whether others are like them, of any number of rows but none.

        They have memory, too, and it lies apart from what is written.
        """
        if type(slices) is not IndexedSlices:
            return False
        values, indices, shape = slices.values, slices.indices, slices.dense_shape
        count = indices.numel()
        return (
            self._is_like(values, indices)
            and values.numel() == count * self._width > 0
            and (shape is None or shape == self._shape)
            and self._lies_apart(values.data_ptr(), indices.data_ptr(), count)
        )

    def _lies_apart(self, values: int, indices: int, count: int) -> bool:
        place = values, indices, count
        if place != self._place:
            if not self._leave_free(values, count * self._row_size):
                return False
            if not self._leave_free(indices, count * self._index_size):
                return False
            self._place = place  # memory is given out again and again
        return True


def _width(var: torch.Tensor) -> int:
    return var.numel() // var.shape[0] if var.shape[0] else 0


# -- where there is no kernel -------------------------------------------------


@torch.no_grad()
def _interpret(update: RowUpdate, values: Values) -> None:
    member, slices = update.member, update.slices
    program = with_rounding(member.program(), member.rounded)
    names = member.rule.scalars
    numbers = {name: float(values[name][member.setting]) for name in names}
    numbers |= member.rounding_columns
    width = _width(member.var)
    slices = as_added(slices, member.var)
    # A slot of one number is read before the first row, and has one new value.
    cells = {i for i, kind in enumerate(member.layouts, 1) if kind == "scalar"}
    olds = [t.clone() if i in cells else t for i, t in enumerate(member.tensors)]
    parts = [slices.sum_duplicates()] if update.mode == "sum" else rounds_of(slices)
    for turn, part in enumerate(parts):
        indices = part.indices.long()
        rows = [
            old if i in cells else old.index_select(0, indices)
            for i, old in enumerate(olds)
        ]
        own = _places(indices, width), turn
        new = interpret_program(program, [*rows, part.values], numbers, *own)
        for i, (tensor, value) in enumerate(zip(member.tensors, new, strict=True)):
            if i in cells:
                tensor.copy_(value)
            else:
                tensor.index_copy_(0, indices, value)


def _places(rows: torch.Tensor, width: int) -> np.ndarray:
    """Where the elements of some rows lie among those of all."""
    first = rows.numpy(force=True)[:, None] * width
    return (first + np.arange(width)).reshape(-1)
