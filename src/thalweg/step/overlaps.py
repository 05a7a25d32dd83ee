"""Whether tensors share memory: one result would overwrite what another one needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = [
    "are_same_elements",
    "extent",
    "first_overlap",
    "overlap",
    "shares_elements",
]

Axes = list[tuple[int, int]]
"""Stride in bytes and size of the axes longer than one, the largest stride first."""


def shares_elements(tensor: torch.Tensor) -> bool:
    """Whether two elements may lie at one place.

    Args:
        tensor: A strided tensor.

    Returns:
        False if every stride steps over all that the smaller ones reach. The few
        other layouts that keep elements apart are not told from those that do not.
    """
    if not tensor.numel():
        return False
    reach = 0
    for stride, size in reversed(_axes(tensor)):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Where the memory of a strided tensor begins, and where it ends, gaps included."""
    start = tensor.data_ptr()
    if tensor.is_contiguous():
        return start, start + tensor.nbytes if start else start
    if not (start and tensor.numel()):
        return start, start
    return start, start + _extent(_axes(tensor), tensor.itemsize)


def overlap(some: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have memory in common.

    Args:
        some: A strided tensor whose elements lie apart.
        other: Another one.

    Returns:
        Where one has gaps and their strides differ, True if one reaches into the
        other, be it only into its gaps.
    """
    if some.device != other.device or not (some.numel() and other.numel()):
        return False
    start, other_start = some.data_ptr(), other.data_ptr()
    if not (start and other_start):
        return False
    axes, other_axes = _axes(some), _axes(other)
    is_behind = start >= other_start + _extent(other_axes, other.itemsize)
    if is_behind or other_start >= start + _extent(axes, some.itemsize):
        return False
    if axes != other_axes or some.itemsize != other.itemsize:
        return True
    return _meets(other_start - start, axes, some.itemsize)


def first_overlap(tensors: Sequence[torch.Tensor]) -> tuple[int, int] | None:
    """Two of some tensors that have memory in common.

    Args:
        tensors: Strided tensors whose elements lie apart; those on devices are left
            out.

    Returns:
        Their numbers, the smaller one first; None if there are no such two.

    Example:
        >>> whole = torch.zeros(4)
        >>> first_overlap([whole[:2], torch.zeros(2), whole[1:]])
        (0, 2)
    """
    here = [i for i, tensor in enumerate(tensors) if tensor.is_cpu]
    open_spans: list[tuple[int, int]] = []
    for (start, end), i in sorted((extent(tensors[i]), i) for i in here):
        open_spans = [(other, j) for other, j in open_spans if other > start]
        for _, j in open_spans:
            if overlap(tensors[i], tensors[j]):
                return min(i, j), max(i, j)
        open_spans.append((end, i))
    return None


def are_same_elements(some: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether element by element two tensors are one."""
    return (
        some.data_ptr() == other.data_ptr()
        and some.dtype == other.dtype
        and some.shape == other.shape
        and some.stride() == other.stride()
    )


def _axes(tensor: torch.Tensor) -> Axes:
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    size = tensor.itemsize
    return sorted(((s * size, n) for s, n in pairs if n > 1), reverse=True)


def _extent(axes: Axes, itemsize: int) -> int:
    return sum(stride * (size - 1) for stride, size in axes) + itemsize


def _meets(distance: int, axes: Sequence[tuple[int, int]], itemsize: int) -> bool:
    """Whether an element lies so far from another one that both have a byte in common.

    All axes behind the first reach less far than its stride, so that only the two
    multiples of the stride next to the distance can be part of it.
    """
    if not axes:
        return abs(distance) < itemsize
    (stride, size), *rest = axes
    nearest = distance // stride
    return any(
        abs(steps) < size and _meets(distance - steps * stride, rest, itemsize)
        for steps in (nearest, nearest + 1)
    )
