"""From what a caller passes to the tensor that is stored or written."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from thalweg.errors import describe, message, with_article
from thalweg.state.huge_pages import prefer_huge_pages
from thalweg.state.placement import Placement, distribute, is_sharded, place

# What torch raises for a value that it cannot read.
_REFUSALS = (TypeError, ValueError, RuntimeError, OverflowError)


def is_differentiable(dtype: torch.dtype) -> bool:
    """Return whether tensors of this dtype can require a gradient."""
    return dtype.is_floating_point or dtype.is_complex


def initial_data(
    value: Any, dtype: torch.dtype | None, device: torch.device | str | None
) -> torch.Tensor:
    """Return the data of a new variable, placed, sharing memory with nothing.

    Args:
        value: Tensor, array, number, nested list, or a function returning one.
        dtype: Dtype to convert to, or None to keep it.
        device: Device to move to, or None for the placement in force.

    Raises:
        TypeError: If the value cannot be made a dense tensor.
    """
    if callable(value) and not isinstance(value, torch.Tensor):
        value = value()
    source = _dense("Variable", value, dtype).detach()
    data = source.to(dtype=dtype, device=device)
    if device is None:
        data = place(data)
    if is_sharded(data) or data.data_ptr() == source.data_ptr():
        data = _copy(data)
    return data.resolve_conj().resolve_neg()


def _copy(data: torch.Tensor) -> torch.Tensor:
    if is_sharded(data) or data.is_conj() or data.is_neg():
        return data.clone(memory_format=torch.preserve_format)
    copy = torch.empty_like(data)
    prefer_huge_pages(copy)  # before its pages are there
    return copy.copy_(data)


def operand(where: str, value: Any, target: torch.Tensor) -> torch.Tensor:
    """Return `value` as a tensor that can be written to `target` elementwise.

    Args:
        where: The call, for the message of an error.
        value: Tensor, array, number or nested list of target's shape.
        target: The tensor that will be written.

    Raises:
        TypeError: If the value is no dense tensor, or target cannot hold its numbers.
        ValueError: If the shapes differ.
    """
    tensor = _dense(where, value, target.dtype).detach()
    if tensor.shape != target.shape:
        raise ValueError(
            message(
                where,
                f"shape {tuple(target.shape)}",
                describe(tensor),
                "Reshape the value; nothing is broadcast.",
            )
        )
    if not torch.can_cast(tensor.dtype, target.dtype):
        raise TypeError(
            message(
                where,
                f"numbers that {with_article(describe(target))} can hold",
                describe(tensor),
                "Convert the value first.",
            )
        )
    if is_sharded(target):
        return distribute(tensor, Placement.of(target))
    # Reading a tensor through other strides while it is written gives neither value.
    return tensor.clone() if _overlaps(tensor, target) else tensor.to(target.device)


def _overlaps(tensor: torch.Tensor, target: torch.Tensor) -> bool:
    if tensor.device != target.device or is_sharded(tensor):
        return False
    return (
        tensor.untyped_storage().data_ptr() == target.untyped_storage().data_ptr()
    ) and (tensor.data_ptr(), tensor.stride()) != (target.data_ptr(), target.stride())


def _dense(where: str, value: Any, dtype: torch.dtype | None) -> torch.Tensor:
    """Return a dense tensor; Python numbers take `dtype` where they can."""
    if not isinstance(value, torch.Tensor):
        return _from_python(where, value, dtype)
    if value.layout != torch.strided:
        raise TypeError(
            message(
                where,
                "a dense value",
                f"{describe(value)}, layout {value.layout}",
                "Call to_dense() first.",
            )
        )
    return value


def _from_python(where: str, value: Any, dtype: torch.dtype | None) -> torch.Tensor:
    try:
        tensor = torch.as_tensor(_readable(value))
        if dtype is None or not (
            tensor.is_floating_point() and is_differentiable(dtype)
        ):
            return tensor
        # Read again: 0.1 must reach a float64 variable with all its digits.
        return torch.as_tensor(_readable(value), dtype=dtype)
    except _REFUSALS as error:
        raise TypeError(
            message(
                where,
                "a tensor, array, number or nested list of numbers",
                describe(value),
                "Convert it to one.",
            )
        ) from error


def _readable(value: Any) -> Any:
    """Return the value, or a copy of an array whose memory torch cannot look at."""
    if not isinstance(value, np.ndarray):
        return value
    array = cast("np.ndarray[Any, Any]", value)
    is_plain = array.flags.writeable and all(step >= 0 for step in array.strides)
    return array if is_plain else array.copy()
