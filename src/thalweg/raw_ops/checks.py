"""What raw ops refuse: resources, gradients and numbers that are not what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch.compiler import is_dynamo_compiling

from thalweg.errors import describe, message
from thalweg.state import IndexedSlices, handle_of
from thalweg.step.batch import flush
from thalweg.step.overlaps import are_same_elements, overlap
from thalweg.step.tensors import check_readable, check_writable

__all__ = [
    "FLOATING_DTYPES",
    "apart_from",
    "as_operand",
    "check_not_negative",
    "check_not_positive",
    "check_positive",
    "flag_of",
    "gradient_of",
    "has_l1",
    "number_of",
    "resource_of",
    "resources_of",
    "shape_message",
    "traced_number",
    "written_of",
]

FLOATING_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_NOT_REAL = (str, bytes, complex, np.complexfloating)


def resource_of(op: str, name: str, value: Any) -> torch.Tensor:
    """The tensor that a resource argument stands for."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            message(
                f"{op}: {name}",
                "a Variable, its handle, or a tensor",
                describe(value),
                f"Pass {name}=variable.handle.",
            )
        )
    # What was called before must be done before this op reads or writes.
    flush()
    return handle_of(value)


def written_of(op: str, name: str, value: Any) -> torch.Tensor:
    """The tensor that a resource argument stands for, which can be written.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is sparse, lazily negated, without memory, or has elements
            that share memory.
    """
    tensor = resource_of(op, name, value)
    if not is_dynamo_compiling():  # which has no addresses
        check_writable(op, name, tensor)
    return tensor


def number_of(op: str, name: str, value: Any) -> float:
    """The number that a scalar argument stands for."""
    if isinstance(value, torch.Tensor) and not value.dim():
        try:
            value = value.item()
        except RuntimeError:  # of the meta device, which keeps no numbers
            value = None
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
    except OverflowError:
        where, expected = f"{op}: {name}", "a number of float64"
        raise TypeError(message(where, expected, "a larger int", "Scale it.")) from None
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(
        message(
            f"{op}: {name}",
            "a number or a 0-d tensor",
            describe(value),
            "Pass one.",
        )
    )


def traced_number(op: str, name: str, value: Any) -> Any:
    """A scalar argument while torch traces Python, which may know no number yet.

    Raises:
        TypeError: If it is a text or a complex number, or None.
    """
    wrong = value is None or isinstance(value, (str, bytes, complex))
    return number_of(op, name, value) if wrong else value


def flag_of(op: str, name: str, value: Any) -> bool:
    """The bool that a flag stands for: one of Python, NumPy or torch, 0 or 1.

    Raises:
        TypeError: If it is anything else.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, float, np.integer)) and value in (0, 1):
        return bool(value)
    if isinstance(value, torch.Tensor) and _is_one_bool(value):
        return bool(value.item())
    where, expected = f"{op}: {name}", "True or False"
    raise TypeError(message(where, expected, describe(value), "Pass a bool."))


def _is_one_bool(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds a bool that can be asked for; not while it is compiled."""
    is_bool = tensor.dtype == torch.bool and not tensor.dim()
    return is_bool and not (is_dynamo_compiling() or tensor.is_meta)


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
    """The tensors behind resource arguments: of one shape, floating, each its own.

    Raises:
        TypeError: If one is no tensor.
        ValueError: If one cannot be written, or two share memory.
    """
    tensors: list[torch.Tensor] = []
    first = next(iter(resources))
    for name, value in resources.items():
        tensor = written_of(op, name, value)
        if tensor.dtype not in FLOATING_DTYPES:
            raise ValueError(_dtype_message(op, name, tensor))
        var = tensors[0] if tensors else tensor
        if tensor.shape != var.shape:
            raise ValueError(shape_message(op, name, tensor, first, var))
        if tensor.device != var.device:
            raise ValueError(_device_message(op, name, tensor, var))
        tensors.append(tensor)
    _check_apart(op, list(resources), tensors)
    return tensors


def _check_apart(
    op: str, names: Sequence[str], tensors: Sequence[torch.Tensor]
) -> None:
    """Refuse tensors that share memory: one result would overwrite another."""
    pairs = zip(names, tensors, strict=True)
    for (first, tensor), (second, other) in combinations(pairs, 2):
        if overlap(tensor, other):
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
    if grad.dtype not in FLOATING_DTYPES:
        raise ValueError(_dtype_message(op, name, grad))
    if grad.device != var.device:
        raise ValueError(_device_message(op, name, grad, var))
    return grad


def apart_from(
    read: torch.Tensor, written: Sequence[torch.Tensor], *, by_element: bool = False
) -> torch.Tensor:
    """A tensor that does not change while others are written: itself, or a copy.

    Args:
        read: What an op reads.
        written: What it writes meanwhile.
        by_element: Whether an element is written only once those of the same place
            have been read.
    """
    for tensor in written:
        if overlap(read, tensor) and not (
            by_element and are_same_elements(read, tensor)
        ):
            return read.detach().clone()
    return read


def as_operand(
    op: str, name: str, value: Any, var: torch.Tensor, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """An argument that is read, as a tensor: itself, or one made beside the variable.

    Raises:
        TypeError: If no tensor can be made of it.
        ValueError: If it is a tensor of another layout, or without memory.
    """
    if isinstance(value, torch.Tensor):
        if not (is_dynamo_compiling() or value.is_neg() or value.is_conj()):
            check_readable(op, name, value)
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
    expected = "a tensor of float32, float64, bfloat16 or float16"
    return message(f"{op}: {name}", expected, describe(got), advice)


def _device_message(op: str, name: str, got: torch.Tensor, var: torch.Tensor) -> str:
    expected = f"a tensor on {var.device}, where the variable is"
    return message(f"{op}: {name}", expected, describe(got), "Move it first.")


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


def has_l1(op: str, numbers: Mapping[str, float]) -> tuple[bool, ...]:
    """The flag of proximal rules: whether their weights shrink towards 0 at all."""
    del op
    return (numbers["l1"] > 0,)
