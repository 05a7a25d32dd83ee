"""Updates of touched rows on a GPU: one launch for all variables of a kernel.

Which rows are touched, and how often, is known on the device only, and stays there:
indices are sorted, each is an item, and all but the first of a row do nothing. Sums
have the order of appearance, so their bits are those of a CPU. An index that is out of
range makes the launch change nothing, and a later launch or host read raises.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.autograd.graph import increment_version

from thalweg.compiler import (
    APPLY,
    NUM_ELEMENTS,
    ROW_LENGTH,
    KernelKey,
    reads_shape,
)
from thalweg.compiler.triton_kernel import compile_triton
from thalweg.compiler.triton_rows import DeviceRowTables
from thalweg.distribute import is_distributed
from thalweg.errors import message
from thalweg.state import IndexedSlices
from thalweg.step.device_checks import LateCheck
from thalweg.step.device_clock import clock_in_force
from thalweg.step.device_kernel import DeviceLaunch, Mirror, has_device_kernels
from thalweg.step.group import Member

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
        self._late = LateCheck(device, partial(_wrong_index, key.rule.name))
        self._launch = DeviceLaunch(self._start, *self._mirrors)

    def run(
        self,
        members: Sequence[Member],
        slices: Sequence[IndexedSlices],
        values: Mapping[str, np.ndarray],
        device_scalars: Mapping[str, torch.Tensor] | None = None,
        applies: torch.Tensor | None = None,
    ) -> None:
        """Update the named rows; nothing waits for the device.

        Args:
            members: The variables, contiguous.
            slices: Their gradients, contiguous.
            values: For each scalar one number per setting.
            device_scalars: Scalars that the device computed, in place of those: for
                each name shape (settings,), float64.
            applies: Shape (), bool: whether the device lets anything change.
        """
        self._rows.clear()
        for number, (member, given) in enumerate(zip(members, slices, strict=True)):
            self._append(number, member, given)
        self._write_scalars(members, values)
        valid = self._rows.valid
        columns, index = self._launch.columns, self._kernel.columns.index
        columns[index[APPLY]] = valid if applies is None else valid & applies
        if device_scalars:
            self._settings_there.refresh()
            for name in device_scalars.keys() & index.keys():
                taken = device_scalars[name].index_select(0, self._settings_there.table)
                columns[index[name]] = taken
        self._launch()
        increment_version([t for m in members for t in m.tensors])
        self._late.note(valid)

    def check(self, *, wait: bool = True) -> None:
        """Refuse indices that were out of range.

        Args:
            wait: Whether to wait for the device; else for what the host has heard.

        Raises:
            IndexError: If one was, since the last call, in a launch, which then changed
                nothing.
        """
        if wait:
            self._late.refuse()
        else:
            self._late.refuse_known()

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


def _wrong_index(rule: str) -> IndexError:
    return IndexError(
        message(
            f"rows updated by {rule}",
            "indices from 0 to the number of rows - 1",
            "another one",
            "Check the indices of the gradients; that launch has changed nothing.",
        )
    )


class _Launches(threading.local):
    """Tables are filled anew in each step; each thread has its own."""

    def __init__(self) -> None:
        self._known: dict[tuple[KernelKey, int, torch.device], DeviceRows] = {}

    def of(self, key: KernelKey, count: int, device: torch.device) -> DeviceRows:
        """The tables for so many variables."""
        identity = (key, count, device)
        if identity not in self._known:
            self._known[identity] = DeviceRows(*identity)
        return self._known[identity]


_launches = _Launches()


def launch_device_rows(
    key: KernelKey,
    members: Sequence[Member],
    slices: Sequence[IndexedSlices],
    values: Mapping[str, np.ndarray],
    *,
    check_indices: bool = False,
) -> DeviceRows:
    """Update the rows that sparse gradients name, by one launch.

    What the clock in force says holds for them, too; see `DeviceClock.in_force`.

    Args:
        key: The kernel, of mode "sum" or "sequence".
        members: Variables on one device, contiguous.
        slices: Their gradients, contiguous, on that device.
        values: For each scalar one number per setting.
        check_indices: Whether to wait for the device and refuse indices out of range.

    Returns:
        The tables, whose `check` can be called later.

    Raises:
        IndexError: If ``check_indices`` and an index is out of range; nothing was
            changed.
    """
    device = members[0].var.device
    rows = _launches.of(key, len(members), device)
    clock = clock_in_force()
    if clock is not None and clock.device == device:
        rows.run(members, slices, values, clock.scalars, clock.applies)
    else:
        rows.run(members, slices, values)
    if check_indices:
        rows.check()
    return rows


def kernels_check_rows(variable: torch.Tensor) -> bool:
    """Whether indices of its rows are looked at where it is, so that nobody waits.

    Args:
        variable: The variable. Of a sharded one the host must know which rows are
            where.

    Returns:
        True on a device with kernels: a wrong index keeps the launch there from
        changing anything, and the error is raised later.
    """
    return has_device_kernels(variable.device) and not is_distributed(variable)


class Update(Protocol):
    """What `launch_on_devices` asks of an update of touched rows."""

    @property
    def member(self) -> Member:
        """Variable, slots, rule and setting."""
        ...

    @property
    def slices(self) -> IndexedSlices:
        """The gradient."""
        ...

    def key(self) -> KernelKey:
        """The kernel that applies it."""
        ...


AnyUpdate = TypeVar("AnyUpdate", bound=Update)


def launch_on_devices(
    updates: Iterable[AnyUpdate],
    values: Mapping[str, np.ndarray],
    *,
    check_indices: bool = False,
) -> list[AnyUpdate]:
    """Apply the updates that kernels of a device can: one launch for each kernel.

    Args:
        updates: The updates.
        values: For each scalar one number per setting.
        check_indices: Whether to wait for the device and refuse indices out of range.

    Returns:
        Those that were left, in order; their indices are in range.

    Raises:
        IndexError: If ``check_indices`` and an index is out of range; none of the
            updates of its kernel was applied. Without it, if a device has told so of
            an earlier launch; nothing is applied then.
        ValueError: If one that is left has an index out of range; nothing is applied
            then.
    """
    groups: dict[tuple[KernelKey, torch.device], list[AnyUpdate]] = {}
    left: list[AnyUpdate] = []
    for update in updates:
        if _has_kernel(update):
            place = update.key(), update.member.var.device
            groups.setdefault(place, []).append(update)
        else:
            left.append(update)
    for (key, device), group in groups.items():
        _launches.of(key, len(group), device).check(wait=False)
    for update in left:
        if not update.slices.indices.is_cpu:
            update.slices.check_bounds(update.member.var.shape[0])
    for (key, _), group in groups.items():
        members, slices = [u.member for u in group], [u.slices for u in group]
        launch_device_rows(key, members, slices, values, check_indices=check_indices)
    clock = clock_in_force()
    return [] if clock is not None and left and not clock.allows_rest() else left


def _has_kernel(update: Update) -> bool:
    """Whether a kernel of the device can run straight on these tensors."""
    member, slices = update.member, update.slices
    floating = (*member.tensors, slices.values)
    device = member.var.device
    return (
        has_device_kernels(device)
        and member.var.ndim > 0
        and all(t.is_floating_point() for t in floating)
        and all(
            t.device == device and t.is_contiguous() and not t.is_neg()
            for t in (*floating, slices.indices)
        )
        and not reads_shape(member.rule, member.flags, member.layouts)
    )


def _width(var: torch.Tensor) -> int:
    return var[0].numel() if var.shape[0] else 0
