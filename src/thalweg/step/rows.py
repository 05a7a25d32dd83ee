"""Updates of touched rows: one launch for all variables that share a kernel."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

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
    compile_rules,
    interpret,
    reads_shape,
)
from thalweg.state import IndexedSlices
from thalweg.step.device_rows import launch_on_devices
from thalweg.step.group import Member

__all__ = ["RowMode", "RowUpdate", "launch_row_updates"]

RowMode = Literal["sum", "sequence"]
Values = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class RowUpdate:
    """A variable and the sparse gradient of its rows.

    Attributes:
        member: Variable, slots, rule and setting.
        slices: The gradient, whose indices are in range.
        mode: ``"sum"`` adds the gradients of a row up, in order of appearance, and
            applies the rule once; ``"sequence"`` applies it to one after the other.
    """

    member: Member
    slices: IndexedSlices
    mode: RowMode

    def has_kernel(self) -> bool:
        """Whether a kernel can run straight on these tensors."""
        tensors = (*self.member.tensors, self.slices.values, self.slices.indices)
        return (
            self.member.var.ndim > 0
            and all(t.is_cpu and t.is_contiguous() and not t.is_neg() for t in tensors)
            and all(t.is_floating_point() for t in tensors[:-1])
        )

    def key(self) -> KernelKey:
        """The kernel that applies it."""
        member = self.member
        dtypes = (*(t.dtype for t in member.tensors), self.slices.values.dtype)
        return _key(member.rule, member.flags, dtypes, self.mode, member.layouts)


# Making a key checks it, which takes longer than finding the one of the last step.
_key = lru_cache(maxsize=1024)(KernelKey)


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
        self._rows = RowTables()
        self._pointers = np.zeros((count, len(kernel.key.dtypes)), dtype=np.int64)
        self._scalars = np.zeros((count, len(index)), dtype=np.float64)
        self._scalars[:, index[APPLY]] = 1.0
        self._launch = kernel.bind_rows(self._rows, self._pointers, self._scalars)
        self._written: list[torch.Tensor] = []

    def fill(self, group: Sequence[RowUpdate], values: Values) -> None:
        """Find the touched rows; write where everything lies, and the scalars."""
        self._rows.clear()
        self._written = [t for update in group for t in update.member.tensors]
        for number, update in enumerate(group):
            member, slices = update.member, update.slices
            var = member.var
            self._rows.append(
                slices.indices,
                num_rows=var.shape[0],
                width=_width(var),
                variable=number,
                scalar_row=number,
            )
            addresses = [t.data_ptr() for t in member.tensors]
            self._pointers[number] = [*addresses, slices.values.data_ptr()]
            self._write_scalars(self._scalars[number], member, values)

    def _write_scalars(self, row: np.ndarray, member: Member, values: Values) -> None:
        index = self._index
        for name in self._scalar_names:
            row[index[name]] = values[name][member.setting]
        if ROW_LENGTH in index:
            row[index[ROW_LENGTH]] = _width(member.var)
        if NUM_ELEMENTS in index:
            row[index[NUM_ELEMENTS]] = member.var.numel()

    def run(self) -> None:
        """Update the rows."""
        self._launch(torch.get_num_threads())
        increment_version(self._written)
        self._written = []


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
    """
    compiled: dict[KernelKey, list[RowUpdate]] = {}
    others: list[RowUpdate] = []
    for update in updates:
        if update.slices.indices.numel() == 0:
            continue
        if update.has_kernel() and not _reads_shape(update.member):
            compiled.setdefault(update.key(), []).append(update)
        else:
            others.append(update)
    launches: list[_RowLaunch] = []
    kernels = compile_rules(compiled)
    for kernel, group in zip(kernels, compiled.values(), strict=True):
        launch = _launches.of(kernel, len(group))
        launch.fill(group, values)
        launches.append(launch)
    for launch in launches:
        launch.run()
    for update in launch_on_devices(others, values):
        _interpret(update, values)


def _reads_shape(member: Member) -> bool:
    return reads_shape(member.rule, member.flags, member.layouts)


def _width(var: torch.Tensor) -> int:
    return var.numel() // var.shape[0] if var.shape[0] else 0


# -- where there is no kernel -------------------------------------------------


@torch.no_grad()
def _interpret(update: RowUpdate, values: Values) -> None:
    member = update.member
    names = member.rule.scalars
    numbers = {name: float(values[name][member.setting]) for name in names}
    slices = update.slices
    parts = [slices.sum_duplicates()] if update.mode == "sum" else _rounds(slices)
    for part in parts:
        indices = part.indices.long()
        rows = [tensor.index_select(0, indices) for tensor in member.tensors]
        tensors, flags = [*rows, part.values], dict(member.flags)
        new = interpret(member.rule, flags, tensors, numbers, member.layouts)
        for tensor, row, value in zip(member.tensors, rows, new, strict=True):
            tensor.index_copy_(0, indices, value.reshape(row.shape).to(tensor.dtype))


def _rounds(slices: IndexedSlices) -> list[IndexedSlices]:
    """Cut slices into parts of unique indices that keep the order within a row."""
    indices = slices.indices
    occurrence = _occurrences(indices)
    return [
        IndexedSlices(slices.values[chosen], indices[chosen], slices.dense_shape)
        for chosen in (occurrence == n for n in range(int(occurrence.max()) + 1))
    ]


def _occurrences(indices: torch.Tensor) -> torch.Tensor:
    """How often each index has occurred before its own position."""
    order = torch.argsort(indices, stable=True)
    ranked = indices[order]
    positions = torch.arange(len(indices), device=indices.device)
    starts = torch.ones_like(positions, dtype=torch.bool)
    starts[1:] = ranked[1:] != ranked[:-1]
    first = torch.cummax(torch.where(starts, positions, 0), dim=0).values
    occurrence = torch.empty_like(positions)
    occurrence[order] = positions - first
    return occurrence
