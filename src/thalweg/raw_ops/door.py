"""Doors on rules: check the arguments of a raw op, then run its rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch

from thalweg.compiler.rule import Rule
from thalweg.errors import describe, message
from thalweg.raw_ops.indices import checked_rows, indices_of
from thalweg.state import IndexedSlices, handle_of
from thalweg.step import launch_dense, launch_rows
from thalweg.step.batch import Call, current_batch, flush
from thalweg.step.single import relaunch

__all__ = [
    "apply_dense",
    "apply_rows",
    "check_not_negative",
    "check_not_positive",
    "check_positive",
    "numbers_of",
    "resource_of",
]

RuleFunction = Callable[..., Any]

_rule_of = cache(Rule.of)
_NUMBERS = {float}


def apply_dense(
    op: str,
    function: RuleFunction,
    resources: Mapping[str, Any],
    gradient: Mapping[str, Any],
    scalars: Mapping[str, Any],
    **flags: bool,
) -> None:
    """Run a rule on whole variables.

    Args:
        op: Name of the raw op, for messages.
        function: The rule.
        resources: Variable and slots by argument name, in the rule's order.
        gradient: The gradient under its argument name.
        scalars: Numbers or 0-d tensors by the rule's names.
        **flags: The rule's flags.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes differ, a dtype is not floating, a scalar is not 0-d,
            or a device differs; nothing is written then.
    """
    rule = _rule_of(function)
    numbers = numbers_of(op, scalars)
    given = [*resources.values(), *gradient.values()]
    batch = current_batch()
    if batch is not None:
        checked = partial(_apply, op, rule, resources, gradient, numbers, flags)
        batch.append(Call(rule, flags, given, numbers, checked))
    elif not relaunch(rule, flags, given, numbers):
        _apply(op, rule, resources, gradient, numbers, flags)


def _apply(
    op: str,
    rule: Rule,
    resources: Mapping[str, Any],
    gradient: Mapping[str, Any],
    numbers: Mapping[str, float],
    flags: Mapping[str, bool],
) -> None:
    """Look at everything that was given, then run a rule on whole variables."""
    tensors = _resources(op, resources)
    ((name, grad),) = gradient.items()
    grad = _gradient(op, name, grad, tensors[0])
    if grad.shape != tensors[0].shape:
        raise ValueError(
            _shape_message(op, name, grad, next(iter(resources)), tensors[0])
        )
    launch_dense(rule, flags, [*tensors, grad], numbers)


def apply_rows(
    op: str,
    function: RuleFunction,
    resources: Mapping[str, Any],
    grad: Any,
    indices: Any,
    scalars: Mapping[str, Any],
    *,
    check_indices: bool | None,
    **flags: bool,
) -> None:
    """Run a rule on rows; duplicates of an index act one after the other.

    Args:
        op: Name of the raw op, for messages.
        function: The rule.
        resources: Variable and slots by argument name, in the rule's order.
        grad: Shape [N, …]: row i belongs to row ``indices[i]`` of the variable.
        indices: Shape [N], int32 or int64.
        scalars: Numbers or 0-d tensors by the rule's names.
        check_indices: Whether indices are checked at once; see `check_deferred`.
        **flags: The rule's flags.

    Raises:
        TypeError: If a resource is no tensor, a scalar no number, or the indices
            are no integers.
        ValueError: If shapes differ, a dtype is not floating, or an index is out of
            range; nothing is written then.
    """
    tensors = _resources(op, resources)
    grad = _gradient(op, "grad", grad, tensors[0])
    indices = indices_of(op, indices, tensors[0])
    if indices.ndim != 1:
        raise ValueError(
            message(op, "indices of one dimension", describe(indices), "Flatten them.")
        )
    if grad.shape != indices.shape + tensors[0].shape[1:]:
        raise ValueError(
            message(
                op,
                f"grad of shape {tuple(indices.shape + tensors[0].shape[1:])}",
                describe(grad),
                "Pass one row for each index.",
            )
        )
    numbers = numbers_of(op, scalars)
    with checked_rows(op, indices, tensors, check_indices) as safe:
        slices = IndexedSlices(grad, safe)
        launch_rows(_rule_of(function), flags, tensors, slices, numbers, "sequence")


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
    if isinstance(value, (int, float)):
        return float(value)
    if hasattr(value, "shape") and tuple(value.shape) != ():
        raise ValueError(
            message(
                f"{op}: {name}",
                "a scalar",
                describe(value),
                "Pass a number or 0-d tensor.",
            )
        )
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            message(
                f"{op}: {name}",
                "a number or a 0-d tensor",
                describe(value),
                "Pass one.",
            )
        ) from None


def numbers_of(op: str, scalars: Mapping[str, Any]) -> Mapping[str, float]:
    """The numbers that scalar arguments stand for, by name."""
    if set(map(type, scalars.values())) == _NUMBERS:
        return scalars
    return {
        name: value if type(value) is float else number_of(op, name, value)
        for name, value in scalars.items()
    }


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


def _resources(op: str, resources: Mapping[str, Any]) -> list[torch.Tensor]:
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
            raise ValueError(_shape_message(op, name, tensor, first, tensors[0]))
        tensors.append(tensor)
    return tensors


def _gradient(op: str, name: str, grad: Any, var: torch.Tensor) -> torch.Tensor:
    if not isinstance(grad, torch.Tensor):
        grad = torch.as_tensor(grad, dtype=var.dtype, device=var.device)
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


def _dtype_message(op: str, name: str, got: torch.Tensor) -> str:
    advice = "Pass torch.view_as_real of it." if got.is_complex() else "Cast it."
    return message(f"{op}: {name}", "a floating tensor", describe(got), advice)


def _number_message(op: str, name: str, expected: str, number: float) -> str:
    action = "Nothing was written; pass another number."
    return message(f"{op}: {name}", expected, repr(number), action)


def _shape_message(
    op: str, name: str, got: torch.Tensor, var_name: str, var: torch.Tensor
) -> str:
    return message(
        op,
        f"{name} of the shape of {var_name}, {tuple(var.shape)}",
        describe(got),
        f"{var_name} and {name} must have the same shape.",
    )
