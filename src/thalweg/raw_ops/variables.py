"""TensorFlow's ops that read and assign variables."""

from __future__ import annotations

import math
from typing import Any

import torch

from thalweg.errors import describe, message
from thalweg.raw_ops.calls import explained
from thalweg.raw_ops.checks import as_operand, resource_of, written_of
from thalweg.raw_ops.indices import indices_of, refuse_outside

__all__ = [
    "AssignAddVariableOp",
    "AssignSubVariableOp",
    "AssignVariableOp",
    "ReadVariableOp",
    "ResourceGather",
]


@explained
def ReadVariableOp(
    *, resource: Any, dtype: torch.dtype | None = None, name: str | None = None
) -> torch.Tensor:
    """Read the value of a variable; later writes do not change what was read.

    Args:
        resource: The variable, its handle, or a tensor.
        dtype: Dtype expected, if any.
        name: Accepted.

    Returns:
        A copy that a tape can differentiate.

    Raises:
        TypeError: If the resource is no tensor.
        ValueError: If its dtype is not the one expected.

    Example:
        >>> weight = tw.Variable([1.0])
        >>> tw.raw_ops.ReadVariableOp(resource=weight.handle).tolist()
        [1.0]
    """
    del name
    handle = resource_of("ReadVariableOp", "resource", resource)
    _check_dtype("ReadVariableOp", handle, dtype)
    return handle.clone()


@explained
def ResourceGather(
    *,
    resource: Any,
    indices: Any,
    dtype: torch.dtype | None = None,
    batch_dims: int = 0,
    validate_indices: bool = True,
    name: str | None = None,
) -> torch.Tensor:
    """Gather rows of a variable.

    Args:
        resource: The variable, its handle, or a tensor; shape B + [M] + R, where B
            are the first ``batch_dims`` axes.
        indices: Shape B + I, int32 or int64, in [0, M).
        dtype: Dtype expected, if any.
        batch_dims: Number of axes that both share.
        validate_indices: Accepted; indices are always checked.
        name: Accepted.

    Returns:
        Shape B + I + R; a tape can differentiate it.

    Raises:
        TypeError: If the resource is no tensor or the indices are no integers.
        ValueError: If an index is out of range, the batch axes differ, or the dtype
            is not the one expected.

    Example:
        >>> table = tw.Variable([[1.0], [2.0]])
        >>> tw.raw_ops.ResourceGather(resource=table, indices=[1, 1]).tolist()
        [[2.0], [2.0]]
    """
    del validate_indices, name
    handle = resource_of("ResourceGather", "resource", resource)
    _check_dtype("ResourceGather", handle, dtype)
    indices = as_operand("ResourceGather", "indices", indices, handle)
    batch = handle.shape[:batch_dims]
    if indices.shape[:batch_dims] != batch:
        raise ValueError(
            message(
                "ResourceGather",
                f"indices whose first {batch_dims} axes are {tuple(batch)}",
                describe(indices),
                "Batch axes of resource and indices must agree.",
            )
        )
    rows = handle.reshape(math.prod(batch), *handle.shape[batch_dims:])
    chosen = indices_of("ResourceGather", indices, rows[0])
    refuse_outside("ResourceGather", chosen, rows.shape[1])
    chosen = chosen.long().reshape(rows.shape[0], -1)
    which = torch.arange(rows.shape[0], device=handle.device)[:, None]
    return rows[which, chosen].reshape(*indices.shape, *rows.shape[2:])


@explained
def AssignVariableOp(
    *, resource: Any, value: Any, validate_shape: bool = False, name: str | None = None
) -> None:
    """Replace the value of a variable.

    Args:
        resource: The variable, its handle, or a tensor. Written.
        value: The new value, of the variable's shape; a tensor's shape is fixed, so
            that it is always checked.
        validate_shape: Accepted.
        name: Accepted.

    Raises:
        TypeError: If the resource is no tensor.
        ValueError: If the shape differs; nothing is written then.
    """
    del validate_shape, name
    handle, new = _operands("AssignVariableOp", resource, value)
    with torch.no_grad():
        handle.copy_(new)


@explained
def AssignAddVariableOp(*, resource: Any, value: Any, name: str | None = None) -> None:
    """Add to a variable.

    Args:
        resource: The variable, its handle, or a tensor. Written.
        value: What to add, of the variable's shape.
        name: Accepted.

    Raises:
        TypeError: If the resource is no tensor.
        ValueError: If the shape differs; nothing is written then.
    """
    del name
    handle, delta = _operands("AssignAddVariableOp", resource, value)
    with torch.no_grad():
        handle.add_(delta)


@explained
def AssignSubVariableOp(*, resource: Any, value: Any, name: str | None = None) -> None:
    """Subtract from a variable.

    Args:
        resource: The variable, its handle, or a tensor. Written.
        value: What to subtract, of the variable's shape.
        name: Accepted.

    Raises:
        TypeError: If the resource is no tensor.
        ValueError: If the shape differs; nothing is written then.
    """
    del name
    handle, delta = _operands("AssignSubVariableOp", resource, value)
    with torch.no_grad():
        handle.sub_(delta)


def _operands(op: str, resource: Any, value: Any) -> tuple[torch.Tensor, torch.Tensor]:
    handle = written_of(op, "resource", resource)
    value = as_operand(op, "value", value, handle)
    if value.shape != handle.shape:
        raise ValueError(
            message(
                op,
                f"a value of shape {tuple(handle.shape)}",
                describe(value),
                "Reshape it.",
            )
        )
    return handle, value


def _check_dtype(op: str, handle: torch.Tensor, dtype: torch.dtype | None) -> None:
    if dtype is not None and handle.dtype != dtype:
        raise ValueError(
            message(
                op, f"a resource of dtype {dtype}", describe(handle), "Pass its dtype."
            )
        )
