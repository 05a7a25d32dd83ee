"""Updates of touched rows: what they consist of, and what is refused of them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Literal

import torch

from thalweg.compiler import KernelKey
from thalweg.compiler.program import compute_dtype
from thalweg.errors import describe, message
from thalweg.state import IndexedSlices
from thalweg.step.group import Member
from thalweg.step.overlaps import extent
from thalweg.step.tensors import check_overlap, check_readable, check_writable

__all__ = [
    "RowMode",
    "RowUpdate",
    "Spans",
    "as_added",
    "check_updates",
    "rounds_of",
]

RowMode = Literal["sum", "sequence"]

_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class RowUpdate:
    """A variable and the sparse gradient of its rows.

    Attributes:
        member: Variable, slots, rule and setting.
        slices: The gradient, whose indices are in range.
        mode: ``"sum"`` adds the gradients of a row up, in order of appearance, and
            applies the rule once; ``"sequence"`` applies it to one after the other.
    """

    member: Member
    slices: IndexedSlices
    mode: RowMode

    def check(self) -> None:
        """Refuse what cannot be read or written row by row.

        Raises:
            ValueError: If the variable has no rows, a tensor no memory of its own, or
                the gradient not one row for each index.
        """
        member, slices, where = self.member, self.slices, self.where
        if member.var.ndim == 0:
            got = "a variable without axes"
            action = "Pass a dense gradient of it."
            raise ValueError(message(where, "a variable that has rows", got, action))
        member.check_slots()
        member.check_cut()
        for name, tensor in zip(member.rule.outputs, member.tensors, strict=True):
            check_writable(where, name, tensor)
        values = _resolved(slices.values)
        for name, tensor in (("values", values), ("indices", slices.indices)):
            check_readable(where, f"{name} of the gradient", tensor)
        shape = slices.indices.shape + member.var.shape[1:]
        if values.numel() != math.prod(shape):  # a kernel would read past its end
            expected = f"values of shape {tuple(shape)}"
            action = "Pass one row for each index."
            raise ValueError(message(where, expected, describe(values), action))

    def check_rule(self) -> None:
        """Refuse a rule that needs other rows than those that are touched.

        Raises:
            ValueError: If it reduces over the whole variable.
        """
        if self.member.reduces_whole:
            raise ValueError(
                message(
                    self.where,
                    "a rule that needs no row but its own",
                    "one that reduces over the whole variable",
                    'Pass a dense gradient; in an optimizer, sparse_update="exact".',
                )
            )

    @property
    def where(self) -> str:
        """What begins a message."""
        return f"rows updated by {self.member.rule.name}"

    def as_read(self, written: Spans) -> RowUpdate:
        """The same with a gradient that lies as kernels read it, and stays as it is.

        Args:
            written: Where rows are written meanwhile.
        """
        values, indices = (
            _as_read(tensor, written)
            for tensor in (_resolved(self.slices.values), self.slices.indices)
        )
        if values is self.slices.values and indices is self.slices.indices:
            return self
        slices = IndexedSlices(values, indices, self.slices.dense_shape)
        return replace(self, slices=slices)

    def has_kernel(self) -> bool:
        """Whether a kernel of the CPU can run straight on these tensors."""
        return self.has_kernel_on(_CPU)

    def has_kernel_on(self, device: torch.device) -> bool:
        """Whether a kernel of a device can run straight on these tensors."""
        floating = (*self.member.tensors, self.slices.values)
        return (
            self.member.var.ndim > 0
            and all(t.is_floating_point() for t in floating)
            and all(
                t.device == device and t.is_contiguous() and not t.is_neg()
                for t in (*floating, self.slices.indices)
            )
            and self.member.reduces_rows
        )

    def key(self) -> KernelKey:
        """The kernel that applies it."""
        member = self.member
        dtypes = (*(t.dtype for t in member.tensors), self.slices.values.dtype)
        parts = member.rule, member.flags, dtypes, self.mode, member.layouts
        return _key(*parts, shape=member.shape_read, rounding=member.rounded)


# Making a key checks it, which takes longer than finding the one of the last step.
_key = lru_cache(maxsize=1024)(KernelKey)


class Spans:
    """Where some tensors lie, gaps included.

    Args:
        tensors: Strided tensors.

    Example:
        >>> whole = torch.zeros(6)
        >>> spans = Spans([whole[:2], whole[4:]])
        >>> spans.are_apart_from(whole[1:3]), spans.are_apart_from(whole[2:4])
        (False, True)
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        spans = sorted(map(_extent, tensors))
        self._starts = [start for start, end in spans if start < end]
        ends = (end for start, end in spans if start < end)
        self._ends = list(accumulate(ends, max))

    def are_apart_from(self, tensor: torch.Tensor) -> bool:
        """Whether a contiguous tensor has memory, and reaches into none of them."""
        return self.leave_free(tensor.data_ptr(), tensor.nbytes)

    def leave_free(self, start: int, size: int) -> bool:
        """The same of so many bytes at an address, which is 0 without memory."""
        before = bisect_left(self._starts, start + size)
        return start > 0 and (before == 0 or self._ends[before - 1] <= start)


def check_updates(updates: Sequence[RowUpdate]) -> None:
    """Refuse what cannot be read or written, before the first row is.

    Args:
        updates: Updates that are made together.

    Raises:
        ValueError: If one of them cannot be made, or two variables share memory.
    """
    for update in updates:
        update.check()
    if len(updates) > 1:
        check_overlap(updates[0].where, [update.member.var for update in updates])


def as_added(slices: IndexedSlices, variable: torch.Tensor) -> IndexedSlices:
    """Slices with values of the type in which kernels add up those of one row.

    Args:
        slices: A sparse gradient.
        variable: Its variable.

    Example:
        >>> half = IndexedSlices(torch.ones(1, 2).half(), torch.tensor([0]))
        >>> as_added(half, torch.zeros(3, 2)).dtype
        torch.float32
    """
    dtype = compute_dtype((slices.values.dtype, variable.dtype))
    return slices.with_values(slices.values.to(dtype))


def rounds_of(slices: IndexedSlices) -> Iterator[IndexedSlices]:
    """Cut slices into parts of unique indices that keep the order within a row.

    Args:
        slices: Any; the parts have int64 indices.

    Example:
        >>> values, indices = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4, 0, 4])
        >>> slices = IndexedSlices(values, indices)
        >>> [part.values.tolist() for part in rounds_of(slices)]
        [[2.0, 1.0], [3.0]]
    """
    indices = slices.indices.long()
    order = torch.argsort(indices, stable=True)
    ranked = indices[order]
    positions = torch.arange(len(indices), device=indices.device)
    starts = torch.ones_like(positions, dtype=torch.bool)
    starts[1:] = ranked[1:] != ranked[:-1]
    occurrence = positions - torch.cummax(torch.where(starts, positions, 0), 0).values
    for number in range(int(occurrence.max()) + 1 if len(indices) else 0):
        chosen = order[occurrence == number]
        yield IndexedSlices(slices.values[chosen], indices[chosen], slices.dense_shape)


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    if not tensor.is_contiguous():
        return extent(tensor)
    start = tensor.data_ptr()
    return start, start + tensor.nbytes


def _resolved(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whose negation is done."""
    return tensor.detach().resolve_neg() if tensor.is_neg() else tensor


def _as_read(tensor: torch.Tensor, written: Spans) -> torch.Tensor:
    """A tensor without gaps, apart from what is written."""
    tensor = tensor.contiguous()
    return tensor if written.are_apart_from(tensor) else tensor.detach().clone()
