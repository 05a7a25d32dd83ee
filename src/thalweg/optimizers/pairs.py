"""Checks of (gradient, variable) pairs before a step writes anything."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch

from thalweg.errors import describe, level_of_caller, message
from thalweg.optimizers.variables import check_variable
from thalweg.state import IndexedSlices, as_gradient, handle_of, name_of
from thalweg.step.device_rows import kernels_check_rows
from thalweg.step.tensors import check_readable

__all__ = ["Pairs", "check_pairs", "filter_none", "take_pairs"]

Pairs = list[tuple[Any, Any]]


def take_pairs(grads_and_vars: Iterable[Any]) -> Pairs:
    """Read the pairs once and check the variables.

    Args:
        grads_and_vars: (gradient or None, variable) pairs; a generator will do.

    Returns:
        The pairs, with the tensors that are written as variables and torch's sparse
        gradients as `IndexedSlices`.

    Raises:
        TypeError: If an entry is no pair, is one the wrong way round, or a variable is
            no tensor.
        ValueError: If a variable is integer or complex, or occurs twice.
    """
    pairs: Pairs = []
    seen: set[int] = set()
    for entry in grads_and_vars:
        if not isinstance(entry, (tuple, list)) or len(entry) != 2:
            raise TypeError(
                message(
                    "apply_gradients",
                    "(gradient, variable) pairs",
                    describe(entry),
                    "Pass zip(gradients, variables).",
                )
            )
        if _is_swapped(*entry):
            raise TypeError(
                message(
                    "apply_gradients",
                    "(gradient, variable) pairs, the gradient first",
                    f"({_called(entry[0])}, {describe(entry[1])})",
                    "Pass zip(gradients, variables).",
                )
            )
        handle = check_variable("apply_gradients", entry[1])
        if id(handle) in seen:
            raise ValueError(
                message(
                    "apply_gradients",
                    "every variable once",
                    f"{name_of(handle, 'a variable')} ({describe(handle)}) twice",
                    "Add its gradients up first.",
                )
            )
        seen.add(id(handle))
        pairs.append((as_gradient(entry[0]), handle))
    return pairs


def filter_none(pairs: Pairs, warned: set[tuple[str, ...]]) -> Pairs:
    """Drop pairs without a gradient.

    Args:
        pairs: (gradient or None, variable) pairs.
        warned: Sets of names that were warned of already; a new one is added.

    Returns:
        The pairs that have a gradient.

    Raises:
        ValueError: If there are pairs, and none has a gradient.

    Warns:
        UserWarning: Once for each set of names, if some have none.
    """
    kept = [pair for pair in pairs if pair[0] is not None]
    if len(kept) == len(pairs):
        return kept
    names = tuple(_name(i, v) for i, (g, v) in enumerate(pairs) if g is None)
    if not kept:
        raise ValueError(
            f"No gradients provided for any variable: {list(names)}. Check that the "
            "loss depends on them and that they were read inside the tape."
        )
    if names not in warned:
        warned.add(names)
        warnings.warn(
            f"Gradients do not exist for variables {list(names)} when minimizing the "
            "loss. They are left as they are.",
            UserWarning,
            stacklevel=level_of_caller(),
        )
    return kept


def check_pairs(pairs: Pairs) -> None:
    """Refuse gradients that do not fit their variable.

    Args:
        pairs: (gradient, variable) pairs.

    Raises:
        TypeError: If a gradient is no tensor.
        ValueError: If its shape differs, its dtype is not floating, or an index names
            no row, unless kernels of a device look at the indices.
    """
    for index, (grad, variable) in enumerate(pairs):
        if not isinstance(grad, (torch.Tensor, IndexedSlices)):
            raise TypeError(
                message(
                    "apply_gradients",
                    f"a tensor or IndexedSlices for {_name(index, variable)}",
                    describe(grad),
                    "Convert it with torch.as_tensor.",
                )
            )
        _check_gradient(index, grad, variable)


def _is_swapped(gradient: Any, variable: Any) -> bool:
    """Whether a pair is (variable, gradient), where that can be told.

    A gradient may be a parameter, and a variable a plain tensor; both at once is a
    slip.
    """
    return _is_trained(gradient) and not (
        isinstance(variable, torch.nn.Parameter) or _is_trained(variable)
    )


def _is_trained(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad and value.is_leaf


def _called(variable: torch.Tensor) -> str:
    name = name_of(variable)
    kind = "variable" if isinstance(variable, torch.nn.Parameter) else "tensor"
    return f"the {kind} {name!r}" if name else f"a {kind} that requires a gradient"


def _check_gradient(index: int, grad: Any, variable: torch.Tensor) -> None:
    values = grad.values if isinstance(grad, IndexedSlices) else grad
    if not values.dtype.is_floating_point:
        raise ValueError(
            message(
                "apply_gradients",
                f"a floating gradient for {_name(index, variable)}",
                describe(values),
                "A gradient has the variable's dtype or another floating one.",
            )
        )
    if isinstance(grad, IndexedSlices):
        shape = tuple(variable.shape)
        is_part = len(shape) > 0 and tuple(values.shape[1:]) == shape[1:]
        fits = is_part and grad.dense_shape in (None, shape)
    else:
        fits = grad.shape == variable.shape
    if not fits:
        raise ValueError(
            f"apply_gradients: gradient for {_name(index, variable)!r} has shape "
            f"{tuple(values.shape)}, the variable has {tuple(variable.shape)}. Pass "
            "gradients in the order of the variables they belong to."
        )
    if isinstance(grad, IndexedSlices):
        where = f"apply_gradients: gradient for {_name(index, variable)}"
        check_readable(where, "values", values.detach().resolve_neg())
        check_readable(where, "indices", grad.indices)
        if not kernels_check_rows(variable):
            grad.check_bounds(variable.shape[0])


def _name(index: int, variable: torch.Tensor) -> str:
    return name_of(handle_of(variable)) or f"unnamed_{index}"
