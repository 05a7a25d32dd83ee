"""One kernel for one variable on a GPU: what a raw op called from Python runs there.

As `single` does on the CPU, a launch keeps its tables, which belong to a kernel and a
number of elements. Addresses and numbers are written anew in each call, and copied to
the device without waiting for it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from thalweg.compiler import (
    APPLY,
    NUM_ELEMENTS,
    ROW_LENGTH,
    KernelKey,
    Rule,
    reads_shape,
)
from thalweg.compiler.statements_triton import KINDS
from thalweg.compiler.triton_kernel import TritonKernel, compile_triton
from thalweg.compiler.triton_tables import is_capturing
from thalweg.step.bulk import count_writes
from thalweg.step.captures import keep_captured
from thalweg.step.device_kernel import DeviceKernel, has_device_kernels

__all__ = ["launch_on_device"]

_KNOWN_SHAPE_ONLY = {ROW_LENGTH, NUM_ELEMENTS}
_MOST_KNOWN = 1024


class _DeviceLaunch:
    """A kernel with tables for variables of one size on a GPU.

    Attributes:
        is_captured: Whether a CUDA graph writes into the tables whenever it is
            replayed, so that nothing else may.

    Args:
        key: The kernel.
        count: Elements of a variable, at least one.
        device: Where the variables are.
    """

    def __init__(self, key: KernelKey, count: int, device: torch.device) -> None:
        kernel = DeviceKernel(key, device)
        index, names = kernel.columns.index, key.rule.scalars
        self.is_captured = False
        self._columns = [(i, index[n]) for i, n in enumerate(names) if n in index]
        self._pointers = np.zeros((1, len(key.dtypes)), dtype=np.int64)
        self._scalars = np.zeros((1, len(index)), dtype=np.float64)
        self._scalars[0, index[APPLY]] = 1.0
        items = np.array([[0, 0, 0, count, 0]], dtype=np.int64)
        self._launch = kernel.bind(items, self._pointers, self._scalars)
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, addresses: Sequence[int], numbers: Sequence[float]) -> None:
        """Update a variable and its slots.

        Args:
            addresses: Of variable, slots, gradient: contiguous, on the device.
            numbers: One for each scalar of the rule, in its order.
        """
        self._wait_for_last()
        self._pointers[0] = addresses
        for number, column in self._columns:
            self._scalars[0, column] = numbers[number]
        self._launch()

    def _wait_for_last(self) -> None:
        """Let the current stream wait for another one that has used the tables."""
        if is_capturing(self._device):
            return
        stream = torch.cuda.current_stream(self._device)
        if self._stream is not None and stream != self._stream:
            stream.wait_stream(self._stream)
        self._stream = stream


class _Launches(threading.local):
    """Tables are written anew in each call; each thread has its own."""

    def __init__(self) -> None:
        self._known: dict[tuple[TritonKernel, int, torch.device], _DeviceLaunch] = {}

    def of(
        self, kernel: TritonKernel, count: int, device: torch.device
    ) -> _DeviceLaunch | None:
        """The launch for variables of a size; None if a capture finds none.

        Tables cannot be made in a capture. One that was captured is left to its graph.
        """
        identity, is_recorded = (kernel, count, device), is_capturing(device)
        known = self._known.get(identity)
        if known is None or (known.is_captured and not is_recorded):
            if is_recorded:
                return None
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            known = self._known[identity] = _DeviceLaunch(kernel.key, count, device)
        known.is_captured = is_recorded
        keep_captured(known, device)
        return known


_launches = _Launches()


def launch_on_device(
    rule: Rule,
    flags: Mapping[str, bool],
    tensors: Sequence[torch.Tensor],
    numbers: Sequence[float],
) -> bool:
    """Apply a rule to whole tensors on a GPU, by a kernel and without waiting.

    Args:
        rule: The rule.
        flags: Value of each of its flags.
        tensors: Variable, slots, gradient, of one number of elements.
        numbers: One for each scalar of the rule, in its order.

    Returns:
        False, with nothing written, where a kernel cannot run straight on these
        tensors: a device without kernels, variables and slots with gaps, integers, a
        rule that must know shapes, or a capture without such a call before it.

    Example:
        >>> from thalweg.rules import gradient_descent
        >>> rule, tensors = Rule.of(gradient_descent), [torch.ones(2), torch.ones(2)]
        >>> launch_on_device(rule, {}, tensors, [0.5])
        False
    """
    device, count = tensors[0].device, tensors[0].numel()
    if not has_device_kernels(device):
        return False
    laid = _without_gaps(tensors)
    kernel = None if laid is None else _kernel(rule, flags, [t.dtype for t in laid])
    if laid is None or kernel is None:
        return False
    if count == 0:
        return True
    addresses = [t.data_ptr() for t in laid]
    launch = None if 0 in addresses else _launches.of(kernel, count, device)
    if launch is None:
        return False
    launch(addresses, numbers)
    count_writes(laid[:-1])
    return True


def _without_gaps(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor] | None:
    """Tensors that a kernel can take; a gradient that it cannot is copied."""
    *written, grad = tensors
    if any(t.is_neg() or not t.is_contiguous() for t in written):
        return None
    if len({(t.device, t.shape) for t in tensors}) > 1:
        return None
    return [*written, grad.detach().resolve_neg().contiguous()]


def _kernel(
    rule: Rule, flags: Mapping[str, bool], dtypes: Sequence[torch.dtype]
) -> TritonKernel | None:
    """A kernel that needs no more than addresses and a number of elements."""
    pairs = tuple(sorted(flags.items()))
    if not all(dtype in KINDS for dtype in dtypes) or reads_shape(rule, pairs):
        return None
    kernel = compile_triton(KernelKey(rule, pairs, tuple(dtypes)))
    needs_shape = _KNOWN_SHAPE_ONLY & set(kernel.columns.names)
    return None if kernel.num_passes > 1 or needs_shape else kernel
