"""A group on a GPU: its tables are filled by the host, or in part by the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from thalweg.compiler import APPLY, KernelKey
from thalweg.step.compose import GRADIENT_SCALE
from thalweg.step.device_kernel import DeviceKernel, DeviceLaunch, has_device_kernels
from thalweg.step.group import Group, Member

__all__ = ["DeviceGroup", "device_groups"]


class DeviceGroup(Group):
    """The variables on one GPU that one kernel updates in one launch.

    A step reads nothing back: numbers that are known on the device only (clip factors,
    whether the step is taken, a step count) go from there into the scalar table.

    Attributes:
        device: Where the variables are.

    Args:
        key: The kernel.
        members: Its variables, on one device.
        positions: Where each stands in the step's list of gradients.
        owns_rows: Whether each variable has a scalar row of its own.

    Raises:
        ImportError: If Triton is not installed.
        TraceError: If the rule cannot be compiled for a GPU.
    """

    def __init__(
        self,
        key: KernelKey,
        members: Sequence[Member],
        positions: Sequence[int],
        *,
        owns_rows: bool = False,
    ) -> None:
        self.device = device = members[0].var.device
        # All that a group needs of a kernel is its columns and `bind`.
        kernel: Any = DeviceKernel(key, device)
        super().__init__(kernel, members, positions, owns_rows=owns_rows)
        first = [member for member, _ in self._rows]
        self._first = torch.as_tensor(self._order[first], device="cpu").to(device)
        self._row_settings = torch.as_tensor(self._settings, device="cpu").to(device)
        self._bound = cast("DeviceLaunch", cast("object", self._launch))

    @override
    def _table(self) -> Tensor:
        launch = cast("DeviceLaunch", cast("object", self._launch))
        return launch.scalars

    @override
    def write_scales(self, scales: np.ndarray | Tensor) -> None:
        """Write what gradients are multiplied by, given the factors of all of them.

        Args:
            scales: Shape (gradients of the step,), float64; a tensor stays on the
                device.
        """
        if isinstance(scales, Tensor):
            column = self.kernel.columns.index[GRADIENT_SCALE]
            self._bound.columns[column] = scales.index_select(0, self._first)
        else:
            super().write_scales(scales)

    def write_apply(self, applies: Tensor) -> None:
        """Let the device decide whether the next launch changes anything.

        Args:
            applies: Shape (), bool, on the device.
        """
        self._bound.columns[self.kernel.columns.index[APPLY]] = applies

    def write_device_scalars(self, values: Mapping[str, Tensor]) -> None:
        """Write hyperparameters that the device computed, for the next launch.

        Args:
            values: For each name shape (settings,), float64, on the device; names
                that the kernel does not take are ignored.
        """
        index = self.kernel.columns.index
        for name, column in values.items():
            if name in index:
                taken = column.index_select(0, self._row_settings)
                self._bound.columns[index[name]] = taken


def device_groups(
    members: Sequence[Member],
    gradients: Sequence[Tensor],
    *,
    owns_rows: bool = False,
) -> list[DeviceGroup]:
    """Groups of the variables that are on devices with kernels of their own.

    Args:
        members: All variables of a step, in the order of the gradients.
        gradients: Gradients of the variables' shapes.
        owns_rows: Whether gradients are scaled one by one, not all alike.

    Returns:
        One group for each kernel and device; variables on a CPU are in none.

    Raises:
        TraceError: If a rule cannot be compiled for a GPU.

    Example:
        >>> from thalweg.compiler import Rule
        >>> from thalweg.rules import gradient_descent
        >>> member = Member(Rule.of(gradient_descent), (torch.ones(2),), (), 0)
        >>> device_groups([member], [torch.ones(2)])
        []
    """
    chosen: dict[tuple[KernelKey, torch.device], list[int]] = {}
    for i, member in enumerate(members):
        device = member.var.device
        if has_device_kernels(device):
            key = member.key(gradients[i].dtype)
            chosen.setdefault((key, device), []).append(i)
    return [
        DeviceGroup(key, [members[i] for i in places], places, owns_rows=owns_rows)
        for (key, _), places in chosen.items()
    ]
