"""One read-only pass over the gradients of a step: their squared norms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from thalweg.compiler import (
    APPLY,
    Columns,
    Kernel,
    KernelKey,
    Launch,
    Rule,
    compile_rules,
)
from thalweg.rules.clip import clip_scale, squared_norm

__all__ = [
    "ClipFactors",
    "HostClip",
    "NormTables",
    "SquaredNorms",
    "clip_key",
    "norm_kernels",
]

_RULE = Rule.of(squared_norm)


class SquaredNorms:
    """The tables of the norm pass, made once for gradients of these sizes.

    Args:
        gradients: Dense gradients on the CPU; their sizes and dtypes are kept.
        is_clipped: Whether they are clipped by value first.
    """

    def __init__(self, gradients: Sequence[torch.Tensor], *, is_clipped: bool) -> None:
        self._totals = np.zeros(len(gradients), dtype=np.float64)
        positions = norm_kernels(gradients, is_clipped=is_clipped)
        self._parts: list[tuple[NormTables, Launch]] = []
        for kernel, chosen in zip(
            compile_rules(list(positions)), positions.values(), strict=True
        ):
            sizes = [gradients[p].numel() for p in chosen]
            tables = NormTables(kernel.columns, chosen, sizes, self._totals.ctypes.data)
            self._parts.append((tables, kernel.bind(*tables.as_arguments())))

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
        for tables, launch in self._parts:
            tables.fill(addresses, clipvalue or 0.0)
            launch(num_threads)
        return self._totals


def norm_kernels(
    gradients: Sequence[torch.Tensor], *, is_clipped: bool
) -> dict[KernelKey, list[int]]:
    """The kernels of the norm pass, one for each dtype.

    Args:
        gradients: Dense gradients.
        is_clipped: Whether they are clipped by value first.

    Returns:
        For each kernel the positions of the gradients that it reads.
    """
    positions: dict[KernelKey, list[int]] = {}
    for i, gradient in enumerate(gradients):
        dtypes = (gradient.dtype, torch.float64, gradient.dtype)
        flags = (("is_clipped", is_clipped),)
        key = KernelKey(_RULE, flags, dtypes, layouts=("scalar",))
        positions.setdefault(key, []).append(i)
    return positions


class NormTables:
    """Items, addresses and scalars for the gradients of one dtype.

    Attributes:
        clipvalue: Column of the scalar table with the bound of every element, or None.

    Args:
        columns: Layout of the kernel's scalar table.
        positions: Of these gradients among all.
        sizes: Elements of each of them.
        totals: Address of the squared norms of all.
    """

    def __init__(
        self,
        columns: Columns,
        positions: Sequence[int],
        sizes: Sequence[int],
        totals: int,
    ) -> None:
        count = len(positions)
        self._order = np.array(positions, dtype=np.int64)
        self._items = np.zeros((count, 5), dtype=np.int64)
        self._items[:, 0] = self._items[:, 4] = np.arange(count)
        self._items[:, 3] = sizes
        self._pointers = np.zeros((count, 3), dtype=np.int64)
        self._pointers[:, 1] = totals + 8 * self._order
        self._scalars = np.zeros((count, len(columns)), dtype=np.float64)
        self._scalars[:, columns.index[APPLY]] = 1.0
        self.clipvalue = columns.index.get("clipvalue")

    def as_arguments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What a kernel is bound to."""
        return self._items, self._pointers, self._scalars

    def fill(self, addresses: np.ndarray, clipvalue: float) -> None:
        """Write where all gradients are, and the bound of every element."""
        self._pointers[:, 0] = self._pointers[:, 2] = addresses[self._order]
        if self.clipvalue is not None:
            self._scalars[:, self.clipvalue] = clipvalue


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
        scales: The same: where the factors will be.
        clipnorm: Largest norm of each gradient, or None.
        global_clipnorm: Largest norm of all of them together, or None.
    """

    def __init__(
        self,
        kernel: Kernel,
        squared: torch.Tensor,
        scales: torch.Tensor,
        clipnorm: float | None,
        global_clipnorm: float | None,
    ) -> None:
        self._squared = squared  # kept alive: the kernel knows its address
        self._scales = scales
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
        self._norms, self._factors = np.zeros(count), np.ones(count)
        norms = torch.as_tensor(self._norms, device="cpu")
        factors = torch.as_tensor(self._factors, device="cpu")
        super().__init__(kernel, norms, factors, clipnorm, global_clipnorm)

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
