"""Reading and checking what a tape is given, before anything is differentiated."""

from __future__ import annotations

import enum
from typing import Any

import torch

from thalweg.errors import describe, message
from thalweg.gradients import nest
from thalweg.state import IndexedSlices, convert_to_tensor


class UnconnectedGradients(enum.Enum):
    """What stands for the gradient of a source that the target does not depend on."""

    NONE = "none"
    ZERO = "zero"


def fills_with_zeros(unconnected_gradients: UnconnectedGradients | str) -> bool:
    """Return whether unconnected sources get zeros.

    Raises:
        ValueError: If the choice is unknown.
    """
    if unconnected_gradients is UnconnectedGradients.NONE:
        return False
    try:
        return UnconnectedGradients(unconnected_gradients) is UnconnectedGradients.ZERO
    except ValueError:
        raise ValueError(
            message(
                "unconnected_gradients",
                "'none' or 'zero'",
                repr(unconnected_gradients),
                "Unknown value for unconnected_gradients: "
                f"{unconnected_gradients!r}. Pass one of the two.",
            )
        ) from None


def flat_tensors(where: str, value: Any) -> list[torch.Tensor]:
    """Return the tensors of a structure.

    Args:
        where: The method and its argument, for the message.
        value: A tensor or a nested structure of tensors.

    Raises:
        TypeError: If anything in it is not a tensor.
    """
    if isinstance(value, torch.Tensor):
        return [value]
    found = nest.flatten(value)
    for item in found:
        check_tensor(where, item)
    return found


def check_tensor(where: str, value: object) -> None:
    """Raise a TypeError if a value is not a tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            message(
                where,
                "a tensor or variable, or a nested structure of them",
                describe(value),
                "Pass the tensors themselves.",
            )
        )


def check_watchable(value: object) -> None:
    """Raise a ValueError if a value cannot be watched."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(
            message(
                "GradientTape.watch",
                "a tensor, or a nested structure of tensors",
                describe(value),
                f"Passed in object of type {type(value).__name__}, not a tensor.",
            )
        )
    if value.is_inference():
        raise ValueError(
            message(
                "GradientTape.watch",
                "a tensor that autograd may record",
                f"{describe(value)} made in inference mode",
                "Watch a clone() of it, made outside inference mode.",
            )
        )


def seeds_of(
    targets: list[torch.Tensor], output_gradients: Any
) -> list[torch.Tensor | None]:
    """Return a weight for each target, None for ones.

    Args:
        targets: The flat targets.
        output_gradients: A structure with as many leaves, or None for all ones.

    Raises:
        ValueError: If a leaf is None or has not the shape of its target, or there
            are too few or too many.
        TypeError: If a tensor has another dtype than its target.
    """
    if output_gradients is None:
        return [None] * len(targets)
    weights = nest.flatten(output_gradients)
    if len(weights) != len(targets):
        raise ValueError(
            message(
                "output_gradients",
                f"one for each of the {len(targets)} targets",
                str(len(weights)),
                "Pass as many as there are targets.",
            )
        )
    return [_seed(t, w) for t, w in zip(targets, weights, strict=True)]


def check_batches(target: torch.Tensor, source: torch.Tensor) -> None:
    """Raise a ValueError unless both hold the same number of rows."""
    shapes = f"target shape ({tuple(target.shape)}) and source shape "
    shapes += f"({tuple(source.shape)})"
    if target.ndim < 2 or source.ndim < 2 or len(target) != len(source):
        raise ValueError(
            message(
                "GradientTape.batch_jacobian",
                "two tensors of rank >= 2 with the same first dimension",
                shapes,
                f"Need first dimension of {shapes} to match. Both must have rank at "
                "least 2.",
            )
        )


def _seed(target: torch.Tensor, weight: Any) -> torch.Tensor:
    if weight is None:
        raise ValueError(
            message(
                "output_gradients",
                "a tensor for every target",
                "None",
                "Attempt to convert a value (None) to a tensor: pass ones instead.",
            )
        )
    if isinstance(weight, (torch.Tensor, IndexedSlices)):
        weight = convert_to_tensor(weight)
    else:
        weight = torch.as_tensor(weight, dtype=target.dtype, device=target.device)
    if weight.dtype != target.dtype:
        raise TypeError(
            message(
                "output_gradients",
                f"dtype {target.dtype}, as the target has",
                describe(weight),
                "Convert it with to().",
            )
        )
    if weight.shape != target.shape and weight.ndim:
        raise ValueError(
            message(
                "output_gradients",
                f"shape {tuple(target.shape)}, as the target has, or a number",
                describe(weight),
                "Reshape it.",
            )
        )
    return weight if weight.shape == target.shape else weight.expand(target.shape)
