"""TensorFlow's ops that scatter into variables: one operation on some rows.

Duplicates of an index act one after the other, in order of appearance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg import rules
from thalweg.compiler.rule import RuleFunction
from thalweg.errors import describe, message
from thalweg.raw_ops.checks import FLOATING_DTYPES, as_operand, written_of
from thalweg.raw_ops.indices import indices_of
from thalweg.raw_ops.row_door import RowDoor
from thalweg.state import IndexedSlices
from thalweg.step.row_updates import rounds_of

__all__ = [
    "ResourceScatterAdd",
    "ResourceScatterDiv",
    "ResourceScatterMax",
    "ResourceScatterMin",
    "ResourceScatterMul",
    "ResourceScatterSub",
    "ResourceScatterUpdate",
]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_COPIED_AS = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}


class _ScatterDoor(RowDoor):
    """A raw op of one operation on rows; integers are exact."""

    def _again(
        self, flags: Mapping[str, bool]
    ) -> Callable[[Sequence[Any], Sequence[float]], bool]:
        again = super()._again(flags)
        if self.rule.function is not rules.scatter_div:
            return again
        return lambda given, numbers: _are_divisors(given[1]) and again(given, numbers)

    def _operands(self, given: Sequence[Any]) -> tuple[list[Tensor], Tensor, Tensor]:
        op, function = self._op, self.rule.function
        resource, updates, indices, _ = given
        handle = written_of(op, "resource", resource)
        _check_dtype(op, handle, is_copied=function is rules.scatter_update)
        indices = indices_of(op, indices, handle)
        updates = _updates(op, updates, indices, handle)
        # As TensorFlow, which looks at floats on the CPU only: elsewhere it would wait.
        if function is rules.scatter_div and (
            updates.is_cpu or not handle.is_floating_point()
        ):
            _check_divisors(op, updates)
        row = handle.shape[1:]
        values = updates.expand(indices.shape + row)
        return [handle], values.reshape(indices.numel(), *row), indices.reshape(-1)

    def _launch(
        self,
        flags: Mapping[str, bool],
        tensors: Sequence[Tensor],
        slices: IndexedSlices,
        numbers: Sequence[float],
    ) -> None:
        if tensors[0].is_floating_point():
            super()._launch(flags, tensors, slices, numbers)
        else:
            _scatter_exactly(self.rule.function, tensors[0], slices)


_scatter_add = _ScatterDoor("ResourceScatterAdd", rules.scatter_add)
_scatter_div = _ScatterDoor("ResourceScatterDiv", rules.scatter_div)
_scatter_max = _ScatterDoor("ResourceScatterMax", rules.scatter_max)
_scatter_min = _ScatterDoor("ResourceScatterMin", rules.scatter_min)
_scatter_mul = _ScatterDoor("ResourceScatterMul", rules.scatter_mul)
_scatter_sub = _ScatterDoor("ResourceScatterSub", rules.scatter_sub)
_scatter_update = _ScatterDoor("ResourceScatterUpdate", rules.scatter_update)


@_scatter_add.serves
def ResourceScatterAdd(
    *,
    resource: Any,
    indices: Any,
    updates: Any,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Add to rows: resource[indices[i]] += updates[i].

    Args:
        resource: The variable, its handle, or a tensor; shape [M] + R. Written.
        indices: Shape I, int32 or int64, in [0, M).
        updates: Shape I + R, or a scalar; of the resource's dtype.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If the resource is no tensor or the indices are no integers.
        ValueError: If shapes or dtypes do not fit, an index is out of range;
            nothing is written then.

    Example:
        >>> counts = tw.Variable([0, 0])
        >>> tw.raw_ops.ResourceScatterAdd(resource=counts, indices=[1, 1], updates=1)
        >>> counts.tolist()
        [0, 2]
    """


@_scatter_div.serves
def ResourceScatterDiv(
    *,
    resource: Any,
    indices: Any,
    updates: Any,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Divide rows: resource[indices[i]] /= updates[i].

    Integers are divided towards zero.

    Args:
        resource: The variable, its handle, or a tensor; shape [M] + R. Written.
        indices: Shape I, int32 or int64, in [0, M).
        updates: Shape I + R, or a scalar; of the resource's dtype.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If the resource is no tensor or the indices are no integers.
        ValueError: If shapes or dtypes do not fit, an index is out of range, or
            updates contain 0 (floats on a GPU are divided); nothing is written then.

    Example:
        >>> table = tw.Variable([7, -7])
        >>> tw.raw_ops.ResourceScatterDiv(resource=table, indices=[0, 1], updates=2)
        >>> table.tolist()
        [3, -3]
    """


@_scatter_max.serves
def ResourceScatterMax(
    *,
    resource: Any,
    indices: Any,
    updates: Any,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Take the larger in rows: resource[j] = max(resource[j], updates[i]).

    Here j is indices[i].

    Args:
        resource: The variable, its handle, or a tensor; shape [M] + R. Written.
        indices: Shape I, int32 or int64, in [0, M).
        updates: Shape I + R, or a scalar; of the resource's dtype.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If the resource is no tensor or the indices are no integers.
        ValueError: If shapes or dtypes do not fit, an index is out of range;
            nothing is written then.
    """


@_scatter_min.serves
def ResourceScatterMin(
    *,
    resource: Any,
    indices: Any,
    updates: Any,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Take the smaller in rows: resource[j] = min(resource[j], updates[i]).

    Here j is indices[i].

    Args:
        resource: The variable, its handle, or a tensor; shape [M] + R. Written.
        indices: Shape I, int32 or int64, in [0, M).
        updates: Shape I + R, or a scalar; of the resource's dtype.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If the resource is no tensor or the indices are no integers.
        ValueError: If shapes or dtypes do not fit, an index is out of range;
            nothing is written then.
    """


@_scatter_mul.serves
def ResourceScatterMul(
    *,
    resource: Any,
    indices: Any,
    updates: Any,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Multiply rows: resource[indices[i]] *= updates[i].

    Args:
        resource: The variable, its handle, or a tensor; shape [M] + R. Written.
        indices: Shape I, int32 or int64, in [0, M).
        updates: Shape I + R, or a scalar; of the resource's dtype.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If the resource is no tensor or the indices are no integers.
        ValueError: If shapes or dtypes do not fit, an index is out of range;
            nothing is written then.
    """


@_scatter_sub.serves
def ResourceScatterSub(
    *,
    resource: Any,
    indices: Any,
    updates: Any,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Subtract from rows: resource[indices[i]] -= updates[i].

    Args:
        resource: The variable, its handle, or a tensor; shape [M] + R. Written.
        indices: Shape I, int32 or int64, in [0, M).
        updates: Shape I + R, or a scalar; of the resource's dtype.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If the resource is no tensor or the indices are no integers.
        ValueError: If shapes or dtypes do not fit, an index is out of range;
            nothing is written then.
    """


@_scatter_update.serves
def ResourceScatterUpdate(
    *,
    resource: Any,
    indices: Any,
    updates: Any,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Replace rows: resource[indices[i]] = updates[i].

    The last of several duplicates stays.

    Args:
        resource: The variable, its handle, or a tensor; shape [M] + R. Written.
        indices: Shape I, int32 or int64, in [0, M).
        updates: Shape I + R, or a scalar; of the resource's dtype.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If the resource is no tensor or the indices are no integers.
        ValueError: If shapes or dtypes do not fit, an index is out of range;
            nothing is written then.
    """


def _updates(op: str, updates: Any, indices: Tensor, handle: Tensor) -> Tensor:
    """The updates as a tensor that fits the indices and the variable."""
    updates = as_operand(op, "updates", updates, handle, dtype=handle.dtype)
    if updates.dtype != handle.dtype or updates.device != handle.device:
        raise ValueError(
            message(
                op,
                f"updates of dtype {handle.dtype} on {handle.device}",
                describe(updates),
                "Convert them.",
            )
        )
    shape = indices.shape + handle.shape[1:]
    if updates.ndim > 0 and updates.shape != shape:
        raise ValueError(
            message(
                op,
                f"updates of shape {tuple(shape)} or a scalar",
                describe(updates),
                "The shape of indices must be a prefix of the shape of updates.",
            )
        )
    return updates


def _check_dtype(op: str, handle: Tensor, *, is_copied: bool) -> None:
    """Refuse what has no arithmetic of its own, unless it is only copied."""
    is_number = handle.dtype in (*FLOATING_DTYPES, *_INTEGERS)
    if is_number or (is_copied and not handle.is_floating_point()):
        return
    advice = "Cast it."
    if handle.is_complex():
        advice = "Pass torch.view_as_real of it."
    expected = "a tensor of integers, float32, float64, bfloat16 or float16"
    raise ValueError(message(f"{op}: resource", expected, describe(handle), advice))


def _are_divisors(updates: Any) -> bool:
    """Whether these are numbers in the host's memory, and none is 0."""
    return (
        isinstance(updates, Tensor)
        and updates.is_cpu
        and updates.layout is torch.strided
        and updates.data_ptr() != 0
        and not bool((updates == 0).any())
    )


def _check_divisors(op: str, updates: Tensor) -> None:
    if bool((updates == 0).any()):
        raise ValueError(
            message(
                op,
                "updates other than 0",
                describe(updates),
                "Updates must not contain 0; nothing was written.",
            )
        )


@torch.no_grad()
def _scatter_exactly(
    function: RuleFunction, handle: Tensor, slices: IndexedSlices
) -> None:
    """Scatter into integers, which kernels would round to floating numbers."""
    exact = _divide if function is rules.scatter_div else function
    if handle.dtype in _COPIED_AS:  # torch cannot select from these
        handle = handle.view(_COPIED_AS[handle.dtype])
        slices = slices.with_values(slices.values.view(handle.dtype))
    for part in rounds_of(slices):
        rows = handle.index_select(0, part.indices)
        handle.index_copy_(0, part.indices, exact(rows, part.values))


def _divide(resource: Tensor, updates: Tensor) -> Tensor:
    """Divide integers towards zero, as C does."""
    if not resource.is_signed():  # there -1 would mean the largest number
        return torch.div(resource, updates, rounding_mode="trunc")
    # The processor stops at the smallest integer divided by -1; negation wraps.
    safe = torch.where(updates == -1, 1, updates)
    quotient = torch.div(resource, safe, rounding_mode="trunc")
    return torch.where(updates == -1, -resource, quotient)
