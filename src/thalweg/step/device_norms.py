"""Norms of gradients on a GPU, and the clip factors: nothing comes back to the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.compiler import APPLY, KernelKey, Rule
from thalweg.rules.clip import squared_norm
from thalweg.step.device_kernel import DeviceKernel, DeviceLaunch

__all__ = ["DeviceClip", "DeviceNorms", "clip_scale"]

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
        self, addresses: np.ndarray, clipvalue: float | None, num_threads: int = 1
    ) -> Tensor:
        """Compute the squared norms.

        Args:
            addresses: Where each gradient begins; contiguous there.
            clipvalue: Bound of every element, or None.
            num_threads: Not used; the norms of a CPU take it.

        Returns:
            `totals`, valid until the next call; nothing waits for the device.
        """
        del num_threads
        for part in self._parts:
            part.run(addresses, clipvalue or 0.0)
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

    def run(self, addresses: np.ndarray, clipvalue: float) -> None:
        self._pointers[:, 0] = self._pointers[:, 2] = addresses[self._order]
        if self._clipvalue is not None:
            self._scalars[:, self._clipvalue] = clipvalue
        self._launch()


def clip_scale(
    var: Any,
    grad: Any,
    *,
    unscale: Any,
    clipnorm: Any,
    global_clipnorm: Any,
    is_own: bool,
    is_common: bool,
) -> Any:
    """What each gradient is multiplied by: unscaled, clipped alone, then with all.

        norm = ‖grad‖ · unscale
        own = clipnorm / max(norm, clipnorm)
        common = global_clipnorm / max(√Σ (norm · own)², global_clipnorm)
        scale = own · common · unscale

    A norm of all that is infinite gives NaN, as in TensorFlow.

    Args:
        var: Shape (gradients,). Replaced.
        grad: Shape (gradients,): the squared norms.
        unscale: What gradients are multiplied by before they are clipped.
        clipnorm: Largest norm of each gradient, if ``is_own``.
        global_clipnorm: Largest norm of all of them together, if ``is_common``.
        is_own: Whether each gradient is clipped.
        is_common: Whether all of them together are.

    Returns:
        Factors of the shape of ``var``.

    Example:
        >>> number = torch.tensor
        >>> clip_scale(torch.zeros(2), number([9.0, 16.0]), unscale=number(1.0),
        ...     clipnorm=None, global_clipnorm=number(2.5), is_own=False,
        ...     is_common=True)
        tensor([0.5000, 0.5000])
    """
    scale = torch.ones_like(var)
    squared = grad * (unscale * unscale)
    if is_own:
        scale = clipnorm / torch.clamp(torch.sqrt(squared), min=clipnorm)
    if is_common:
        norm = torch.sqrt(torch.sum(squared * scale * scale))
        common = global_clipnorm / torch.clamp(norm, min=global_clipnorm)
        scale = scale * torch.where(torch.isfinite(norm), common, math.nan)
    return scale * unscale


class DeviceClip:
    """Clip factors from squared norms, by one small kernel on the device.

    Args:
        squared: Shape (gradients,), float64: where the squared norms will be.
        clipnorm: Largest norm of each gradient, or None.
        global_clipnorm: Largest norm of all of them together, or None.
    """

    def __init__(
        self, squared: Tensor, clipnorm: float | None, global_clipnorm: float | None
    ) -> None:
        flags = (
            ("is_common", global_clipnorm is not None),
            ("is_own", clipnorm is not None),
        )
        key = KernelKey(Rule.of(clip_scale), flags, (torch.float64,) * 2)
        kernel = DeviceKernel(key, squared.device)
        self._squared = squared  # kept alive: the kernel knows its address
        self._scales = torch.ones_like(squared)
        items = np.array([[0, 0, 0, squared.numel(), 0]], dtype=np.int64)
        places = [self._scales.data_ptr(), squared.data_ptr()]
        numbers = {
            APPLY: 1.0,
            "clipnorm": clipnorm or 0.0,
            "global_clipnorm": global_clipnorm or 0.0,
        }
        row = [numbers.get(name, 0.0) for name in kernel.columns.names]
        self._scalars, self._unscale = np.array([row]), kernel.columns.index["unscale"]
        self._launch: DeviceLaunch = kernel.bind(
            items, np.array([places], dtype=np.int64), self._scalars
        )

    def __call__(self, unscale: float | Tensor = 1.0) -> Tensor:
        """Compute the factors.

        Args:
            unscale: What gradients are multiplied by before they are clipped; a
                float64 tensor stays on the device.

        Returns:
            Shape (gradients,), float64, valid until the next call.
        """
        if isinstance(unscale, Tensor):
            self._launch.columns[self._unscale] = unscale
        else:
            self._scalars[0, self._unscale] = unscale
        self._launch()
        return self._scales
