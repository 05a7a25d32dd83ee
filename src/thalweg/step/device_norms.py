"""Norms of gradients on a GPU, and the clip factors: nothing comes back to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from thalweg.step.device_kernel import DeviceKernel, DeviceLaunch
from thalweg.step.norms import ClipFactors, NormTables, clip_key, norm_kernels

__all__ = ["DeviceClip", "DeviceNorms"]


class DeviceNorms:
    """The tables of the norm pass, made once for gradients of these sizes.

    Attributes:
        totals: Shape (gradients,), float64: what the last call computed.

    Args:
        gradients: Dense gradients on one device; their sizes and dtypes are kept.
        is_clipped: Whether they are clipped by value first.
    """

    def __init__(self, gradients: Sequence[Tensor], *, is_clipped: bool) -> None:
        device = gradients[0].device
        self.totals = torch.zeros(len(gradients), dtype=torch.float64, device=device)
        self._parts: list[tuple[NormTables, DeviceLaunch]] = []
        for key, chosen in norm_kernels(gradients, is_clipped=is_clipped).items():
            kernel = DeviceKernel(key, device)
            sizes = [gradients[p].numel() for p in chosen]
            tables = NormTables(kernel.columns, chosen, sizes, self.totals.data_ptr())
            self._parts.append((tables, kernel.bind(*tables.as_arguments())))

    def __call__(
        self,
        addresses: np.ndarray,
        clipvalue: float | Tensor | None,
        num_threads: int = 1,
    ) -> Tensor:
        """Compute the squared norms.

        Args:
            addresses: Where each gradient begins; contiguous there.
            clipvalue: Bound of every element, or None; a float64 tensor of shape ()
                stays on the device.
            num_threads: Not used; the norms of a CPU take it.

        Returns:
            `totals`, valid until the next call; nothing waits for the device.
        """
        del num_threads
        is_there = isinstance(clipvalue, Tensor)
        for tables, launch in self._parts:
            tables.fill(addresses, 0.0 if is_there or clipvalue is None else clipvalue)
            if is_there and tables.clipvalue is not None:
                launch.columns[tables.clipvalue] = clipvalue
            launch()
        return self.totals


class DeviceClip(ClipFactors):
    """Clip factors from squared norms, by one small kernel on the device.

    Args:
        squared: Shape (gradients,), float64: where the squared norms will be.
        clipnorm: Largest norm of each gradient, or None.
        global_clipnorm: Largest norm of all of them together, or None.
    """

    def __init__(
        self, squared: Tensor, clipnorm: float | None, global_clipnorm: float | None
    ) -> None:
        # All that is asked of a kernel is its columns and `bind`.
        kernel: Any = DeviceKernel(clip_key(clipnorm, global_clipnorm), squared.device)
        scales = torch.ones_like(squared)
        super().__init__(kernel, squared, scales, clipnorm, global_clipnorm)
        self._bound = cast("DeviceLaunch", cast("object", self._launch))

    @override
    def __call__(self, unscale: float | Tensor = 1.0) -> Tensor:
        """Compute the factors.

        Args:
            unscale: What gradients are multiplied by before they are clipped; a
                float64 tensor stays on the device.

        Returns:
            Shape (gradients,), float64, valid until the next call.
        """
        if isinstance(unscale, Tensor):
            self._bound.columns[self._unscale] = unscale
            unscale = 1.0
        return super().__call__(unscale)
