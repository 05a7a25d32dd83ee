"""Updates of touched rows on a GPU: one launch for all variables of a kernel.

Which rows are touched, and how often, is known on the device only, and stays there:
indices are sorted, each is an item, and all but the first of a row do nothing. Sums
have the order of appearance, so their bits are those of a CPU. An index that is out of
range makes the whole step change nothing, and a later step or host read raises.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.autograd.graph import increment_version

from thalweg.compiler import (
    APPLY,
    NUM_ELEMENTS,
    ROW_LENGTH,
    KernelKey,
)
from thalweg.compiler.triton_kernel import compile_triton
from thalweg.compiler.triton_rows import DeviceRowTables
from thalweg.compiler.triton_tables import is_capturing
from thalweg.distribute import is_distributed
from thalweg.errors import RowIndexError, message
from thalweg.state import IndexedSlices
from thalweg.step.captures import keep_captured, refuse_unprepared
from thalweg.step.device_checks import LateErrors, errors_in_force
from thalweg.step.device_kernel import DeviceLaunch, Mirror, has_device_kernels
from thalweg.step.device_step import StepClock, clock_in_force
from thalweg.step.group import Member
from thalweg.step.row_updates import RowUpdate

__all__ = [
    "DeviceRows",
    "kernels_check_rows",
    "launch_device_rows",
    "launch_on_devices",
]


class DeviceRows:
    """The tables of one row kernel for a number of variables on one GPU.

    Args:
        key: The kernel, of mode "sum" or "sequence".
        count: Number of variables.
        device: Where they are.

    Raises:
        ImportError: If Triton is not installed.
        TraceError: If the rule cannot be compiled for rows on a GPU.
    """

    def __init__(self, key: KernelKey, count: int, device: torch.device) -> None:
        self._kernel = compile_triton(key)
        self._rows = DeviceRowTables(device)
        self._pointers = np.zeros((count, len(key.dtypes)), dtype=np.int64)
        self._scalars = np.zeros((count, len(self._kernel.columns)), dtype=np.float64)
        self._mirrors = Mirror(self._pointers, device), Mirror(self._scalars, device)
        self._settings = np.zeros(count, dtype=np.int64)
        self._settings_there = Mirror(self._settings, device)
        self._launch = DeviceLaunch(self._start, *self._mirrors)
        self._rule = key.rule.name
        self._written: list[torch.Tensor] = []
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    def load(
        self,
        members: Sequence[Member],
        slices: Sequence[IndexedSlices],
        values: Mapping[str, np.ndarray],
    ) -> torch.Tensor:
        """Make everything ready to update the named rows; nothing waits.

        Args:
            members: The variables, contiguous.
            slices: Their gradients, contiguous, which must live until `run` is called.
            values: For each scalar one number per setting.

        Returns:
            Shape (), bool, on the device: whether all indices name rows.
        """
        self._wait_for_last()
        self._rows.clear()
        for number, (member, given) in enumerate(zip(members, slices, strict=True)):
            self._append(number, member, given)
        self._write_scalars(members, values)
        self._written = [t for m in members for t in m.tensors]
        return self._rows.valid

    def run(
        self,
        applies: torch.Tensor,
        device_scalars: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Update the rows that were loaded; nothing waits for the device.

        Args:
            applies: Shape (), bool, on the device: whether anything may change.
            device_scalars: Scalars that the device computed, in place of the host's:
                for each name shape (settings,), float64.
        """
        columns, index = self._launch.columns, self._kernel.columns.index
        columns[index[APPLY]] = applies
        if device_scalars:
            self._settings_there.refresh()
            for name in device_scalars.keys() & index.keys():
                taken = device_scalars[name].index_select(0, self._settings_there.table)
                columns[index[name]] = taken
        self._launch()
        increment_version(self._written)
        self._written = []

    def note(self, errors: LateErrors) -> None:
        """Let errors tell, in time, whether an index that was loaded is wrong."""
        kind = "rows", self._rule, self._rows.valid.device
        errors.note(kind, self._rows.valid, partial(_wrong_index, self._rule))

    def _wait_for_last(self) -> None:
        """Let the current stream wait for another one that has used the tables."""
        if self._device.type != "cuda" or is_capturing(self._device):
            return
        stream = torch.cuda.current_stream(self._device)
        if self._stream is not None and stream != self._stream:
            stream.wait_stream(self._stream)
        self._stream = stream

    def _append(self, number: int, member: Member, given: IndexedSlices) -> None:
        var = member.var
        self._pointers[number] = [
            *(tensor.data_ptr() for tensor in member.tensors),
            given.values.data_ptr(),
        ]
        self._rows.append(
            given.indices,
            num_rows=var.shape[0],
            width=_width(var),
            variable=number,
            scalar_row=number,
        )

    def _write_scalars(
        self, members: Sequence[Member], values: Mapping[str, Any]
    ) -> None:
        index = self._kernel.columns.index
        self._settings[:] = [member.setting for member in members]
        self._scalars[:, index[APPLY]] = 1.0
        for name in self._kernel.key.rule.scalars:
            if name in index:
                self._scalars[:, index[name]] = values[name][self._settings]
        sizes = {
            ROW_LENGTH: [_width(m.var) for m in members],
            NUM_ELEMENTS: [m.var.numel() for m in members],
        }
        for name in sizes.keys() & index.keys():
            self._scalars[:, index[name]] = sizes[name]
        for number, member in enumerate(members):
            for name, cell in member.rounding_columns.items():
                self._scalars[number, index[name]] = cell

    def _start(self, num_threads: int, between: Any) -> None:
        rows, (pointers, scalars) = self._rows, self._mirrors
        launch = self._kernel.bind(
            rows.items,
            pointers.table,
            scalars.table,
            rows.starts,
            rows.sources,
            width=rows.width,
        )
        launch(num_threads, between)


def _wrong_index(rule: str, places: list[int]) -> RowIndexError:
    del places
    return RowIndexError(
        message(
            f"rows updated by {rule}",
            "indices from 0 to the number of rows - 1",
            "another one",
            "Check the indices of the gradients; that step has changed nothing.",
        )
    )


Identity = tuple[KernelKey, int, torch.device]


class _Launches(threading.local):
    """Tables are filled anew in each step; each thread has its own.

    So has each optimizer, whose steps follow each other on the device: those of two may
    be on two streams, or in a graph that is replayed at any time.
    """

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[LateErrors, dict[Identity, DeviceRows]] = (
            WeakKeyDictionary()
        )

    def of(
        self, owner: LateErrors, key: KernelKey, count: int, device: torch.device
    ) -> DeviceRows:
        """The tables for so many variables; `owner` stands for the optimizer."""
        known, identity = self._known.setdefault(owner, {}), (key, count, device)
        if identity not in known:
            refuse_unprepared(f"rows updated by {key.rule.name}", device)
            known[identity] = DeviceRows(*identity)
        keep_captured(known[identity], device)
        return known[identity]


_launches = _Launches()


def kernels_check_rows(variable: torch.Tensor) -> bool:
    """Whether indices of its rows are looked at where it is, so that nobody waits.

    Args:
        variable: The variable. Of a sharded one the host must know which rows are
            where.

    Returns:
        True on a device with kernels: a wrong index keeps the step from changing
        anything there, and the error is raised later.
    """
    return has_device_kernels(variable.device) and not is_distributed(variable)


Groups = dict[tuple[KernelKey, torch.device], list[RowUpdate]]


def launch_on_devices(
    updates: Iterable[RowUpdate], values: Mapping[str, np.ndarray]
) -> list[RowUpdate]:
    """Apply the updates that kernels of a device can: one launch for each kernel.

    What the clock in force says holds for them, too. All indices are looked at before
    the first launch, and a wrong one keeps all of them, and what else the clock decides
    about, from changing anything; the error is raised later, see `errors_in_force`.

    Args:
        updates: The updates.
        values: For each scalar one number per setting.

    Returns:
        Those that were left, in order, and may be applied; their indices are in range.

    Raises:
        ValueError: If one that is left has an index out of range; nothing is applied
            then.
    """
    groups: Groups = {}
    left: list[RowUpdate] = []
    for update in updates:
        device = update.member.var.device
        if has_device_kernels(device) and update.has_kernel_on(device):
            groups.setdefault((update.key(), device), []).append(update)
        else:
            left.append(update)
    for update in left:
        if not update.slices.indices.is_cpu:
            update.slices.check_bounds(update.member.var.shape[0])
    clock = clock_in_force()
    if groups:
        clock = clock or StepClock(next(iter(groups))[1])
        launch_device_rows(groups, values, clock)
    return [] if clock is not None and left and not clock.allows_rest() else left


def launch_device_rows(
    groups: Mapping[tuple[KernelKey, torch.device], Sequence[RowUpdate]],
    values: Mapping[str, np.ndarray],
    clock: StepClock,
) -> None:
    """Update rows by one launch for each kernel; all checks come before the first.

    Args:
        groups: The updates of each kernel, of mode "sum" or "sequence", on one device;
            all tensors are contiguous and there.
        values: For each scalar one number per setting.
        clock: Decides whether anything changes, and gives scalars.
    """
    loaded: list[tuple[DeviceRows, torch.device]] = []
    errors = errors_in_force()
    for (key, device), group in groups.items():
        rows = _launches.of(errors, key, len(group), device)
        members, slices = [u.member for u in group], [u.slices for u in group]
        clock.require(rows.load(members, slices, values))
        rows.note(errors)
        loaded.append((rows, device))
    verdict: Any = clock.verdict
    for rows, device in loaded:
        scalars = clock.scalars if device == clock.device else None
        rows.run(verdict.to(device, non_blocking=True), scalars)


def _width(var: torch.Tensor) -> int:
    return var[0].numel() if var.shape[0] else 0
