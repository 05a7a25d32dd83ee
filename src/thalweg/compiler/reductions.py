"""The one order in which numbers are added up, as torch operations.

Sums run over 256 float64 lanes: element i goes to lane i mod 256, chunks of 16,384
elements are folded in halves, chunks are added in order. The C kernels do the same,
so neither threads nor vector width change a bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thalweg.compiler.op_table import OPS, Reduction

__all__ = ["CHUNK", "LANES", "over_rows", "over_variable"]

LANES = 256
CHUNK = 16384


def over_variable(
    x: Tensor, reduction: Reduction, so_far: float | None = None
) -> float:
    """Reduce all elements, without the finishing root or division.

    Args:
        x: Elements in the order of the flat index, any shape, compute type.
        reduction: The reduction.
        so_far: Result of the elements before these; they end at a whole chunk.

    Returns:
        The total as a float64 number: 0.0 (or -inf for a maximum) without elements.

    Example:
        >>> over_variable(torch.ones(70_000), Reduction("sum"))
        70000.0
    """
    wide = _terms(x.reshape(-1), reduction)
    total = _start(reduction) if so_far is None else so_far
    missing = -wide.numel() % CHUNK
    padded = torch.nn.functional.pad(wide, (0, missing), value=_start(reduction))
    for value in _fold(padded.reshape(-1, CHUNK), reduction).numpy(force=True):
        total = _join_numbers(total, float(value), reduction)
    return total


def over_rows(x: Tensor, reduction: Reduction) -> Tensor:
    """Reduce each row and round once to the type of the elements.

    Args:
        x: Shape (rows, width), compute type.
        reduction: The reduction.

    Returns:
        Shape (rows, 1), of the dtype of x.
    """
    wide = _terms(x, reduction)
    width = x.shape[1]
    total = torch.full(
        (x.shape[0],), _start(reduction), dtype=torch.float64, device=x.device
    )
    total = total.to(x.device)
    for start in range(0, width, CHUNK):
        part = _fold(wide[:, start : start + CHUNK], reduction)
        total = _join(total, part, reduction)
    if reduction.finish == "mean":
        total = total / torch.full_like(total, float(width))
    elif reduction.finish == "sqrt":
        total = OPS["sqrt"].reference(total)
    return total.to(x.dtype).reshape(-1, 1)


def _terms(x: Tensor, reduction: Reduction) -> Tensor:
    wide = x.double()
    return wide * wide if reduction.squares else wide


def _start(reduction: Reduction) -> float:
    return -math.inf if reduction.is_maximum else 0.0


def _fold(wide: Tensor, reduction: Reduction) -> Tensor:
    """Lanes and halves of at most one chunk in each row."""
    shape = (wide.shape[0], LANES)
    lanes = torch.full(
        shape, _start(reduction), dtype=torch.float64, device=wide.device
    )
    for start in range(0, wide.shape[1], LANES):
        part = wide[:, start : start + LANES]
        lanes[:, : part.shape[1]] = _join(lanes[:, : part.shape[1]], part, reduction)
    half = LANES // 2
    while half:
        lanes = _join(lanes[:, :half], lanes[:, half : 2 * half], reduction)
        half //= 2
    return lanes[:, 0]


def _join(a: Tensor, b: Tensor, reduction: Reduction) -> Tensor:
    if reduction.is_maximum:
        return torch.where(a > b, a, torch.where(a != a, a, b))
    return a + b


def _join_numbers(a: float, b: float, reduction: Reduction) -> float:
    if reduction.is_maximum:
        return a if a > b or a != a else b
    return a + b
