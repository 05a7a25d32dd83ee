"""A GPU kernel over tables that the host fills: what changed is copied before a launch.

The host's tables are the truth, except for columns of the scalar table that something
on the device computed in this step: those are written after the copy, and the table is
copied again in the next step. Nothing waits for the device, so all of it can be part of
a CUDA graph; the contents of the host's tables at capture are then copied in each
replay.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from thalweg.compiler import APPLY, KernelKey, Rule, interpret
from thalweg.compiler.program import Columns
from thalweg.compiler.triton_kernel import compile_triton, has_triton
from thalweg.compiler.triton_tables import Upload, is_capturing
from thalweg.errors import message
from thalweg.step.captures import refuse_unprepared

__all__ = [
    "DeviceKernel",
    "DeviceLaunch",
    "Mirror",
    "has_device_kernels",
    "gives_right_bits",
]

Array = np.ndarray[Any, Any]


def has_device_kernels(device: torch.device) -> bool:
    """Whether variables on this device are updated by kernels of Triton.

    Args:
        device: Where the variables are.

    Returns:
        True on a CUDA device if Triton is installed, and a first small kernel gave
        what the interpreter gives; else rules are interpreted there.

    Raises:
        RuntimeError: If nobody has asked before and a CUDA graph is captured there.

    Warns:
        RuntimeWarning: Once for each device on which that kernel fails.

    Example:
        >>> has_device_kernels(torch.device("cpu"))
        False
    """
    return device.type == "cuda" and has_triton() and gives_right_bits(device)


@cache
def gives_right_bits(device: torch.device) -> bool:
    """Whether a small kernel on a device gives what the interpreter gives.

    Args:
        device: The device.

    Returns:
        False, with a warning, if it gives something else or raises.

    Raises:
        RuntimeError: If a CUDA graph is captured there: the kernel must run and be
            waited for. The next call looks anew.
    """
    refuse_unprepared(f"a step on {device}", device)
    try:
        problem = _problem_of_probe(device)
    except Exception as error:  # a driver, a compiler, a version: anything can fail
        problem = f"{type(error).__name__}: {error}"
    if problem:
        warnings.warn(
            message(
                f"Triton on {device}",
                "a kernel that gives what the interpreter gives",
                problem,
                "Rules are interpreted there, which is slower. See `thalweg doctor`.",
            ),
            RuntimeWarning,
            stacklevel=2,
        )
    return not problem


def _probe(var: Tensor, slot: Tensor, grad: Tensor, *, rate: float) -> Any:
    slot = slot + grad * grad
    return var - rate * grad / (torch.sqrt(slot) + 1.0), slot


def _problem_of_probe(device: torch.device) -> str:
    rule, generator = Rule.of(_probe), torch.Generator().manual_seed(1)
    tensors = [torch.rand(257, generator=generator, device="cpu") for _ in range(3)]
    expected = interpret(rule, {}, tensors, {"rate": 0.1})
    kernel = DeviceKernel(KernelKey(rule, (), (torch.float32,) * 3), device)
    own = [tensor.to(device) for tensor in tensors]
    scalars = np.zeros((1, len(kernel.columns)))
    scalars[0, kernel.columns.index[APPLY]] = 1.0
    scalars[0, kernel.columns.index["rate"]] = 0.1
    items = np.array([[0, 0, 0, 257, 0]], dtype=np.int64)
    pointers = np.array([[t.data_ptr() for t in own]], dtype=np.int64)
    kernel.bind(items, pointers, scalars)(1)
    pairs = zip(own[:2], expected, strict=True)
    same = all(torch.equal(found.cpu(), wanted) for found, wanted in pairs)
    return "" if same else "other bits"


class Mirror:
    """A host table and its copy on a device.

    Attributes:
        table: The copy.

    Args:
        host: The table; its contents may change, its size may not.
        device: Where the copy is.

    Example:
        >>> numbers = np.zeros(2)
        >>> mirror = Mirror(numbers, torch.device("cpu"))
        >>> numbers[1] = 3.0
        >>> mirror.refresh()
        True
        >>> mirror.table.tolist()
        [0.0, 3.0]
        >>> mirror.refresh()
        False
    """

    def __init__(self, host: Array, device: torch.device) -> None:
        self._host = host
        self._values = torch.as_tensor(host, device="cpu")
        self.table = torch.empty_like(self._values, device=device)
        self.table.copy_(self._values)
        self._copied = host.copy()
        self._is_stale = False
        self._is_captured = False
        self._upload = Upload(self.table)

    def refresh(self) -> bool:
        """Copy the table if it changed since the last time.

        Returns:
            Whether it was copied. Inside a capture it always is, and ever after: a
            replay brings back what was in it then.
        """
        if is_capturing(self.table.device):
            self._is_captured = True
        same = np.array_equal(self._host.view(np.int64), self._copied.view(np.int64))
        if same and not self._is_stale and not self._is_captured:
            return False
        self._upload(self._values)
        np.copyto(self._copied, self._host)
        self._is_stale = False
        return True

    def overwrite(self) -> None:
        """Say that the device has written into its copy: the next time is a change."""
        self._is_stale = True


class DeviceKernel:
    """A GPU kernel with the face of one for the CPU: its tables are NumPy arrays.

    Attributes:
        key: What it was made for.
        columns: Layout of the scalar table.
        row_axes: Number of trailing axes of a row; 0 if rows do not matter.
        num_passes: Passes over memory.
        totals: For each reading pass, columns it fills and "sum" or "max".
        source: The text.
        backend: "triton".

    Args:
        key: Rule, flags, dtypes; mode "dense".
        device: Where the variables are.

    Raises:
        ImportError: If Triton is not installed.
        TraceError: If the rule cannot be compiled for a GPU.
    """

    def __init__(self, key: KernelKey, device: torch.device) -> None:
        self._kernel = compile_triton(key)
        self._device = device
        self.key = key
        self.columns: Columns = self._kernel.columns
        self.row_axes = self._kernel.row_axes
        self.num_passes = self._kernel.num_passes
        self.totals = self._kernel.totals
        self.source = self._kernel.source
        self.backend: Literal["triton"] = "triton"

    def bind(self, items: Array, pointers: Array, scalars: Array) -> DeviceLaunch:
        """Copy the tables to the device and keep both for many launches.

        Args:
            items: Shape (n, 5), int64; read here, once.
            pointers: Shape (variables, tensors), int64.
            scalars: Shape (rows, len(columns)), float64.

        Returns:
            A callable that starts the kernels on the current stream.
        """
        places, numbers = Mirror(pointers, self._device), Mirror(scalars, self._device)
        start = self._kernel.bind(
            torch.as_tensor(items, device="cpu"), places.table, numbers.table
        )
        return DeviceLaunch(start, places, numbers)


class DeviceLaunch:
    """A kernel with its tables: calling it brings them up to date and starts it.

    Attributes:
        columns: Columns of the scalar table that the device computes in this step, by
            position: one float64 number for each row, or one for all. A launch uses
            them up.

    Args:
        start: Starts the kernels.
        pointers: Addresses.
        scalars: The scalar table.
    """

    def __init__(
        self,
        start: Callable[[int, Callable[[int], None] | None], None],
        pointers: Mirror,
        scalars: Mirror,
    ) -> None:
        self.columns: dict[int, Tensor] = {}
        self._start = start
        self._pointers = pointers
        self._scalars = scalars

    @property
    def scalars(self) -> Tensor:
        """The scalar table on the device."""
        return self._scalars.table

    def __call__(
        self, num_threads: int = 1, between: Callable[[int], None] | None = None
    ) -> None:
        """Start all kernels.

        Args:
            num_threads: Not used; a launch on a CPU takes it.
            between: Called with the number of each reading pass when it was started.
        """
        self._pointers.refresh()
        self._scalars.refresh()
        for column, values in self.columns.items():
            self._scalars.table[:, column] = values
            self._scalars.overwrite()
        self.columns.clear()
        self._start(num_threads, between)
