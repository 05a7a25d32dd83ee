"""One read-only pass over the gradients of a step: their squared norms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from thalweg.compiler import APPLY, Kernel, KernelKey, Rule, compile_rules
from thalweg.rules.clip import clip_scale, squared_norm

__all__ = ["ClipFactors", "HostClip", "SquaredNorms", "clip_key"]

_RULE = Rule.of(squared_norm)
_CLIPVALUE = "clipvalue"


class SquaredNorms:
    """The tables of the norm pass, made once for gradients of these sizes.

    Args:
        gradients: Dense gradients on the CPU; their sizes and dtypes are kept.
        is_clipped: Whether they are clipped by value first.
    """

    def __init__(self, gradients: Sequence[torch.Tensor], *, is_clipped: bool) -> None:
        self._totals = np.zeros(len(gradients), dtype=np.float64)
        positions: dict[torch.dtype, list[int]] = {}
        for i, gradient in enumerate(gradients):
            positions.setdefault(gradient.dtype, []).append(i)
        flags = (("is_clipped", is_clipped),)
        keys = [
            KernelKey(_RULE, flags, (d, torch.float64, d), layouts=("scalar",))
            for d in positions
        ]
        kernels = compile_rules(keys)
        self._parts = [
            _Part(kernel, chosen, gradients, self._totals)
            for kernel, chosen in zip(kernels, positions.values(), strict=True)
        ]

    def __call__(
        self, addresses: np.ndarray, clipvalue: float | None, num_threads: int
    ) -> np.ndarray:
        """Compute the squared norms.

        Args:
            addresses: Where each gradient begins; contiguous there.
            clipvalue: Bound of every element, or None.
            num_threads: Threads to use.

        Returns:
            A float64 array with one number for each gradient, valid until the next
            call.
        """
        for part in self._parts:
            part.run(addresses, clipvalue or 0.0, num_threads)
        return self._totals


class _Part:
    """The gradients of one dtype."""

    def __init__(
        self,
        kernel: Kernel,
        positions: Sequence[int],
        gradients: Sequence[torch.Tensor],
        totals: np.ndarray,
    ) -> None:
        count, columns = len(positions), kernel.columns
        self._order = np.array(positions, dtype=np.int64)
        items = np.zeros((count, 5), dtype=np.int64)
        items[:, 0] = items[:, 4] = np.arange(count)
        items[:, 3] = [gradients[p].numel() for p in positions]
        self._pointers = np.zeros((count, 3), dtype=np.int64)
        self._pointers[:, 1] = totals.ctypes.data + 8 * self._order
        self._scalars = np.zeros((count, len(columns)), dtype=np.float64)
        self._scalars[:, columns.index[APPLY]] = 1.0
        self._clipvalue = columns.index.get(_CLIPVALUE)
        self._launch = kernel.bind(items, self._pointers, self._scalars)

    def run(self, addresses: np.ndarray, clipvalue: float, num_threads: int) -> None:
        self._pointers[:, 0] = self._pointers[:, 2] = addresses[self._order]
        if self._clipvalue is not None:
            self._scalars[:, self._clipvalue] = clipvalue
        self._launch(num_threads)


def clip_key(clipnorm: float | None, global_clipnorm: float | None) -> KernelKey:
    """The kernel that makes clip factors, of the clips that are given."""
    flags = (
        ("is_common", global_clipnorm is not None),
        ("is_own", clipnorm is not None),
    )
    return KernelKey(Rule.of(clip_scale), flags, (torch.float64,) * 2)


class ClipFactors:
    """Clip factors from squared norms, by one small kernel.

    Args:
        kernel: That of `clip_key`, where the norms are.
        squared: Shape (gradients,), float64: where the squared norms will be.
        clipnorm: Largest norm of each gradient, or None.
        global_clipnorm: Largest norm of all of them together, or None.
    """

    def __init__(
        self,
        kernel: Kernel,
        squared: torch.Tensor,
        clipnorm: float | None,
        global_clipnorm: float | None,
    ) -> None:
        self._squared = squared  # kept alive: the kernel knows its address
        self._scales = torch.ones_like(squared)
        items = np.array([[0, 0, 0, squared.numel(), 0]], dtype=np.int64)
        places = [self._scales.data_ptr(), squared.data_ptr()]
        self._pointers = np.array([places], dtype=np.int64)
        self._columns = kernel.columns.index
        self._scalars = np.zeros((1, len(kernel.columns)))
        self._scalars[0, self._columns[APPLY]] = 1.0
        self._unscale = self._columns["unscale"]
        self.limit(clipnorm, global_clipnorm)
        self._items = items
        self._launch = kernel.bind(items, self._pointers, self._scalars)

    def limit(self, clipnorm: float | None, global_clipnorm: float | None) -> None:
        """Change the numbers of the clips that were given."""
        for name, limit in (
            ("clipnorm", clipnorm),
            ("global_clipnorm", global_clipnorm),
        ):
            if limit is not None:
                self._scalars[0, self._columns[name]] = limit

    def __call__(self, unscale: float = 1.0) -> torch.Tensor:
        """Compute the factors.

        Args:
            unscale: What gradients are multiplied by before they are clipped.

        Returns:
            Shape (gradients,), float64, valid until the next call.
        """
        self._scalars[0, self._unscale] = unscale
        self._launch(1)
        return self._scales


class HostClip(ClipFactors):
    """Clip factors of gradients on the CPU.

    Args:
        count: Number of gradients.
        clipnorm: Largest norm of each gradient, or None.
        global_clipnorm: Largest norm of all of them together, or None.

    Example:
        >>> HostClip(2, None, 2.5).of(np.array([9.0, 16.0])).tolist()
        [0.5, 0.5]
    """

    def __init__(
        self, count: int, clipnorm: float | None, global_clipnorm: float | None
    ) -> None:
        (kernel,) = compile_rules([clip_key(clipnorm, global_clipnorm)])
        self._norms = np.zeros(count, dtype=np.float64)
        norms = torch.as_tensor(self._norms)
        super().__init__(kernel, norms, clipnorm, global_clipnorm)
        self._factors: np.ndarray = self._scales.numpy()

    def of(self, squared: np.ndarray, unscale: float = 1.0) -> np.ndarray:
        """Compute the factors.

        Args:
            squared: Squared norm of each gradient, before it is unscaled.
            unscale: What gradients are multiplied by before they are clipped.

        Returns:
            A float64 array with a factor for each gradient, valid until the next call.
        """
        self._norms[:] = squared
        self(unscale)
        return self._factors
