"""Norms of gradients on a GPU, and the clip factors: nothing comes back to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from thalweg.compiler import APPLY, KernelKey, Rule
from thalweg.rules.clip import squared_norm
from thalweg.step.device_kernel import DeviceKernel, DeviceLaunch
from thalweg.step.norms import ClipFactors, clip_key

__all__ = ["DeviceClip", "DeviceNorms"]

_RULE = Rule.of(squared_norm)
_CLIPVALUE = "clipvalue"


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
        positions: dict[torch.dtype, list[int]] = {}
        for i, gradient in enumerate(gradients):
            positions.setdefault(gradient.dtype, []).append(i)
        flags = (("is_clipped", is_clipped),)
        self._parts = [
            _Part(
                KernelKey(_RULE, flags, (d, torch.float64, d), layouts=("scalar",)),
                chosen,
                gradients,
                self.totals,
            )
            for d, chosen in positions.items()
        ]

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
        for part in self._parts:
            part.run(addresses, 0.0 if clipvalue is None else clipvalue)
        return self.totals


class _Part:
    """The gradients of one dtype."""

    def __init__(
        self,
        key: KernelKey,
        positions: Sequence[int],
        gradients: Sequence[Tensor],
        totals: Tensor,
    ) -> None:
        kernel = DeviceKernel(key, totals.device)
        count, columns = len(positions), kernel.columns
        self._order = np.array(positions, dtype=np.int64)
        items = np.zeros((count, 5), dtype=np.int64)
        items[:, 0] = items[:, 4] = np.arange(count)
        items[:, 3] = [gradients[p].numel() for p in positions]
        self._pointers = np.zeros((count, 3), dtype=np.int64)
        self._pointers[:, 1] = totals.data_ptr() + 8 * self._order
        self._scalars = np.zeros((count, len(columns)), dtype=np.float64)
        self._scalars[:, columns.index[APPLY]] = 1.0
        self._clipvalue = columns.index.get(_CLIPVALUE)
        self._launch = kernel.bind(items, self._pointers, self._scalars)

    def run(self, addresses: np.ndarray, clipvalue: float | Tensor) -> None:
        self._pointers[:, 0] = self._pointers[:, 2] = addresses[self._order]
        if self._clipvalue is not None:
            if isinstance(clipvalue, Tensor):
                self._launch.columns[self._clipvalue] = clipvalue
            else:
                self._scalars[:, self._clipvalue] = clipvalue
        self._launch()


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
        super().__init__(kernel, squared, clipnorm, global_clipnorm)
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
