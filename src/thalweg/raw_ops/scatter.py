"""TensorFlow's ops that scatter into variables: one operation on some rows.

Duplicates of an index act one after the other, in order of appearance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from thalweg import rules
from thalweg.compiler.rule import Rule
from thalweg.errors import describe, message
from thalweg.raw_ops.checks import as_operand, resource_of
from thalweg.raw_ops.indices import checked_rows, indices_of
from thalweg.raw_ops.registration import registered
from thalweg.state import IndexedSlices
from thalweg.step import launch_rows

__all__ = [
    "ResourceScatterAdd",
    "ResourceScatterDiv",
    "ResourceScatterMax",
    "ResourceScatterMin",
    "ResourceScatterMul",
    "ResourceScatterSub",
    "ResourceScatterUpdate",
]

RuleFunction = Callable[..., Tensor]


@registered
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
    del name
    _scatter(
        *("ResourceScatterAdd", rules.scatter_add),
        *(resource, indices, updates, check_indices),
    )


@registered
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
            an integer is divided by zero; nothing is written then.

    Example:
        >>> table = tw.Variable([7, -7])
        >>> tw.raw_ops.ResourceScatterDiv(resource=table, indices=[0, 1], updates=2)
        >>> table.tolist()
        [3, -3]
    """
    del name
    _scatter(
        *("ResourceScatterDiv", rules.scatter_div),
        *(resource, indices, updates, check_indices),
    )


@registered
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
    del name
    _scatter(
        *("ResourceScatterMax", rules.scatter_max),
        *(resource, indices, updates, check_indices),
    )


@registered
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
    del name
    _scatter(
        *("ResourceScatterMin", rules.scatter_min),
        *(resource, indices, updates, check_indices),
    )


@registered
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
    del name
    _scatter(
        *("ResourceScatterMul", rules.scatter_mul),
        *(resource, indices, updates, check_indices),
    )


@registered
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
    del name
    _scatter(
        *("ResourceScatterSub", rules.scatter_sub),
        *(resource, indices, updates, check_indices),
    )


@registered
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
    del name
    _scatter(
        *("ResourceScatterUpdate", rules.scatter_update),
        *(resource, indices, updates, check_indices),
    )


@torch.no_grad()
def _scatter(
    op: str,
    function: RuleFunction,
    resource: Any,
    indices: Any,
    updates: Any,
    is_checked: bool | None,
) -> None:
    """Check everything, then run a scatter rule on rows."""
    handle = resource_of(op, "resource", resource)
    indices = indices_of(op, indices, handle)
    updates = _updates(op, updates, indices, handle)
    if function is rules.scatter_div and not handle.is_floating_point():
        _check_divisors(op, updates)
    row = handle.shape[1:]
    values = updates.expand(indices.shape + row).reshape(-1, *row)
    with checked_rows(op, indices.reshape(-1), [handle], is_checked) as safe:
        slices = IndexedSlices(values, safe)
        if handle.is_floating_point():
            launch_rows(Rule.of(function), {}, [handle], slices, {}, "sequence")
        else:
            _scatter_exactly(function, handle, slices)


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


def _check_divisors(op: str, updates: Tensor) -> None:
    if bool((updates == 0).any()):
        raise ValueError(
            message(
                op,
                "integer updates other than 0",
                describe(updates),
                "Updates must not contain 0; nothing was written.",
            )
        )


def _scatter_exactly(
    function: RuleFunction, handle: Tensor, slices: IndexedSlices
) -> None:
    """Scatter into integers, which kernels would round to floating numbers."""
    exact = _divide if function is rules.scatter_div else function
    for part in _rounds(slices):
        rows = handle.index_select(0, part.indices)
        handle.index_copy_(0, part.indices, exact(rows, part.values))


def _divide(resource: Tensor, updates: Tensor) -> Tensor:
    """Divide integers towards zero, as C does."""
    # The processor stops at the smallest integer divided by -1; negation wraps.
    safe = torch.where(updates == -1, 1, updates)
    quotient = torch.div(resource, safe, rounding_mode="trunc")
    return torch.where(updates == -1, -resource, quotient)


def _rounds(slices: IndexedSlices) -> Iterator[IndexedSlices]:
    """Cut slices into parts of unique indices that keep the order within a row."""
    indices = slices.indices.long()
    order = torch.argsort(indices, stable=True)
    ranked = indices[order]
    positions = torch.arange(len(indices), device=indices.device)
    starts = torch.ones_like(positions, dtype=torch.bool)
    starts[1:] = ranked[1:] != ranked[:-1]
    occurrence = positions - torch.cummax(torch.where(starts, positions, 0), 0).values
    for number in range(int(occurrence.max()) + 1 if len(indices) else 0):
        chosen = order[occurrence == number]
        yield IndexedSlices(slices.values[chosen], indices[chosen])
