"""Updates of touched rows on a GPU: one launch for all variables of a kernel.

Which rows are touched, and how often, is known on the device only, and stays there:
indices are sorted, each is an item, and all but the first of a row do nothing. Sums
have the order of appearance, so their bits are those of a CPU. An index that is out of
range makes the launch change nothing; `DeviceRows.check` raises.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
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
from thalweg.errors import message
from thalweg.state import IndexedSlices
from thalweg.step.device_clock import clock_in_force
from thalweg.step.device_kernel import DeviceLaunch, Mirror, has_device_kernels
from thalweg.step.group import Member

__all__ = ["DeviceRows", "launch_device_rows", "launch_on_devices"]


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
        self._were_valid = torch.ones((), dtype=torch.bool, device=device)
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
        self._were_valid.logical_and_(valid)
        columns, index = self._launch.columns, self._kernel.columns.index
        columns[index[APPLY]] = valid if applies is None else valid & applies
        if device_scalars:
            self._settings_there.refresh()
            for name in device_scalars.keys() & index.keys():
                taken = device_scalars[name].index_select(0, self._settings_there.table)
                columns[index[name]] = taken
        self._launch()
        increment_version([t for m in members for t in m.tensors])

    def check(self) -> None:
        """Wait for the device, and refuse indices that were out of range.

        Raises:
            IndexError: If one was, since the last call, in a step, which then changed
                nothing.
        """
        if bool(self._were_valid):
            return
        self._were_valid.fill_(True)
        raise IndexError(
            message(
                f"rows updated by {self._kernel.key.rule.name}",
                "indices from 0 to the number of rows - 1",
                "another one",
                "Check the indices of the gradients; nothing was changed by that step.",
            )
        )

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


class _Launches(threading.local):
    """Tables are filled anew in each step; each thread has its own."""

    def __init__(self) -> None:
        self.known: dict[tuple[KernelKey, int, torch.device], DeviceRows] = {}


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
    identity = (key, len(members), members[0].var.device)
    rows = _launches.known.get(identity)
    if rows is None:
        rows = _launches.known[identity] = DeviceRows(*identity)
    clock = clock_in_force()
    if clock is not None and clock.iterations.device == identity[2]:
        rows.run(members, slices, values, clock.scalars, clock.applies)
    else:
        rows.run(members, slices, values)
    if check_indices:
        rows.check()
    return rows


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
        Those that were left, in order.

    Raises:
        IndexError: If ``check_indices`` and an index is out of range; none of the
            updates of its kernel was applied.
    """
    groups: dict[tuple[KernelKey, torch.device], list[AnyUpdate]] = {}
    left: list[AnyUpdate] = []
    for update in updates:
        if _has_kernel(update):
            place = update.key(), update.member.var.device
            groups.setdefault(place, []).append(update)
        else:
            left.append(update)
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
