"""What raw ops refuse: resources, gradients and numbers that are not what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from thalweg.errors import describe, message
from thalweg.state import IndexedSlices, handle_of
from thalweg.step.batch import flush
from thalweg.step.tensors import is_dense

__all__ = [
    "as_operand",
    "check_not_negative",
    "check_not_positive",
    "check_positive",
    "gradient_of",
    "number_of",
    "numbers_of",
    "resource_of",
    "resources_of",
    "shape_message",
]

_NOT_REAL = (str, bytes, complex, np.complexfloating)


def resource_of(op: str, name: str, value: Any) -> torch.Tensor:
    """The tensor that a resource argument stands for."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            message(
                f"{op}: {name}",
                "a Variable, its handle, or a tensor",
                describe(value),
                "Pass var=variable.handle.",
            )
        )
    # What was called before must be done before this op reads or writes.
    flush()
    return handle_of(value)


def number_of(op: str, name: str, value: Any) -> float:
    """The number that a scalar argument stands for."""
    if isinstance(value, torch.Tensor) and not value.dim():
        value = value.item()
        if type(value) is float:
            return value
    if getattr(value, "shape", None):
        raise ValueError(
            message(
                f"{op}: {name}",
                "a scalar",
                describe(value),
                "Pass a number or 0-d tensor.",
            )
        )
    try:
        # What float() would take, or take a part of, though it is no real number.
        if not isinstance(value, _NOT_REAL):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise TypeError(
        message(
            f"{op}: {name}",
            "a number or a 0-d tensor",
            describe(value),
            "Pass one.",
        )
    )


def numbers_of(op: str, scalars: Mapping[str, Any]) -> Mapping[str, float]:
    """The numbers that scalar arguments stand for, by name."""
    return {name: number_of(op, name, value) for name, value in scalars.items()}


def check_positive(op: str, name: str, number: float) -> None:
    """Refuse a number that is not above zero."""
    if not number > 0:
        raise ValueError(_number_message(op, name, "a positive scalar", number))


def check_not_negative(op: str, name: str, number: float) -> None:
    """Refuse a number below zero."""
    if not number >= 0:
        raise ValueError(_number_message(op, name, "a non-negative scalar", number))


def check_not_positive(op: str, name: str, number: float) -> None:
    """Refuse a number above zero."""
    if not number <= 0:
        raise ValueError(_number_message(op, name, "a non-positive scalar", number))


def resources_of(op: str, resources: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors behind resource arguments, of one shape and floating dtype."""
    tensors: list[torch.Tensor] = []
    shape: torch.Size | None = None
    for name, value in resources.items():
        tensor = resource_of(op, name, value)
        if not tensor.is_floating_point():
            raise ValueError(_dtype_message(op, name, tensor))
        if shape is None:
            shape = tensor.shape
        elif tensor.shape != shape:
            first = next(iter(resources))
            raise ValueError(shape_message(op, name, tensor, first, tensors[0]))
        tensors.append(tensor)
    _check_apart(op, list(resources), tensors)
    return tensors


def _check_apart(
    op: str, names: Sequence[str], tensors: Sequence[torch.Tensor]
) -> None:
    """Refuse tensors that share memory: one result would overwrite another."""
    spans = sorted(
        (t.data_ptr(), t.data_ptr() + (t.nbytes if is_dense(t) else 1), name)
        for name, t in zip(names, tensors, strict=True)
        if t.device == tensors[0].device and t.layout is torch.strided and t.numel()
    )
    for (start, end, first), (next_start, _, second) in pairwise(spans):
        if start and next_start < end:
            first, second = sorted((first, second), key=list(names).index)
            raise ValueError(
                message(
                    op,
                    f"{first} and {second} with memory of their own",
                    "one tensor for both, or two that overlap",
                    "Each is written; pass a copy of one. Nothing was written.",
                )
            )


def gradient_of(op: str, name: str, grad: Any, var: torch.Tensor) -> torch.Tensor:
    """A gradient as a dense floating tensor beside its variable."""
    grad = as_operand(op, name, grad, var, dtype=var.dtype)
    if not grad.is_floating_point() or grad.device != var.device or grad.is_sparse:
        raise ValueError(
            message(
                f"{op}: {name}",
                f"a dense floating tensor on {var.device}",
                describe(grad),
                "Move or convert it first.",
            )
        )
    return grad


def as_operand(
    op: str, name: str, value: Any, var: torch.Tensor, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """An argument that is read, as a tensor: itself, or one made beside the variable.

    Raises:
        TypeError: If no tensor can be made of it.
    """
    if isinstance(value, torch.Tensor):
        return value
    try:
        if value is not None and not isinstance(value, IndexedSlices):
            return torch.as_tensor(value, dtype=dtype, device=var.device)
    except (TypeError, ValueError, RuntimeError):
        pass
    advice = "Pass one."
    if value is None:
        advice = "Pass one; leave out variables that have no gradient."
    elif isinstance(value, IndexedSlices):
        advice = "Pass its values and indices to an op on rows, or make it dense."
    raise TypeError(message(f"{op}: {name}", "a tensor", describe(value), advice))


def _dtype_message(op: str, name: str, got: torch.Tensor) -> str:
    advice = "Pass torch.view_as_real of it." if got.is_complex() else "Cast it."
    return message(f"{op}: {name}", "a floating tensor", describe(got), advice)


def _number_message(op: str, name: str, expected: str, number: float) -> str:
    action = "Nothing was written; pass another number."
    return message(f"{op}: {name}", expected, repr(number), action)


def shape_message(
    op: str, name: str, got: torch.Tensor, var_name: str, var: torch.Tensor
) -> str:
    """Words for a tensor that has not the shape of the variable."""
    return message(
        op,
        f"{name} of the shape of {var_name}, {tuple(var.shape)}",
        describe(got),
        f"{var_name} and {name} must have the same shape.",
    )
