"""What a step on one GPU does to its gradients before the rule, without the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thalweg.step.device_norms import DeviceClip, DeviceNorms

__all__ = ["DeviceFold"]


class DeviceFold:
    """Norms, checks and factors of the gradients of one plan.

    Gradients are read once for the norms, and once more if they are both checked and
    clipped by value; nothing is written into them and nothing waits for the device.

    Args:
        gradients: Dense gradients on one device; their sizes and dtypes are kept.
        clips_values: Whether every element is clipped.
        clipnorm: Largest norm of each gradient, or None.
        global_clipnorm: Largest norm of all gradients together, or None.
    """

    def __init__(
        self,
        gradients: Sequence[Tensor],
        *,
        clips_values: bool,
        clipnorm: float | None,
        global_clipnorm: float | None,
    ) -> None:
        self._has_norm = clipnorm is not None or global_clipnorm is not None
        self._plain = DeviceNorms(gradients, is_clipped=False)
        self._norms = self._plain
        if clips_values and self._has_norm:
            self._norms = DeviceNorms(gradients, is_clipped=True)
        self._clip = DeviceClip(self._norms.totals, clipnorm, global_clipnorm)

    def limit(self, clipnorm: float | None, global_clipnorm: float | None) -> None:
        """Change the numbers of the clips that were given."""
        self._clip.limit(clipnorm, global_clipnorm)

    def check(self, addresses: np.ndarray, gradients: Sequence[Tensor]) -> Tensor:
        """Which gradients are finite.

        Args:
            addresses: Where each gradient begins; contiguous there.
            gradients: The gradients.

        Returns:
            Shape (gradients,), bool, on the device.
        """
        finite = torch.isfinite(self._plain(addresses, None))
        # Sums are taken in float64: only there squares can overflow.
        wide = [i for i, g in enumerate(gradients) if g.dtype == torch.float64]
        for i in wide:
            finite[i] = torch.isfinite(gradients[i]).all()
        return finite

    def scales(
        self,
        addresses: np.ndarray,
        clipvalue: float | None,
        unscale: float | Tensor = 1.0,
        *,
        is_checked: bool = False,
    ) -> Tensor:
        """What each gradient is multiplied by.

        Args:
            addresses: Where each gradient begins; contiguous there.
            clipvalue: Bound of every element of the unscaled gradients, or None.
            unscale: What gradients are multiplied by before they are clipped; a float64
                tensor of shape () stays on the device.
            is_checked: Whether `check` was called for these gradients before.

        Returns:
            Shape (gradients,), float64, on the device, valid until the next call.
        """
        is_known = is_checked and self._norms is self._plain
        if self._has_norm and not is_known:
            self._norms(addresses, None if clipvalue is None else clipvalue / unscale)
        return self._clip(unscale)
