"""Recognizing the tensors of an earlier step, without a Python frame for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import torch

try:  # what torch.compile checks the inputs of a frame with; in C++, not public
    from torch._C._dynamo.guards import TensorGuards
except ImportError:  # pragma: no cover - a torch that has moved it
    TensorGuards = None

__all__ = ["Recognition", "recognizer"]

Recognizer = Callable[..., bool]


def recognizer(
    tensors: Sequence[torch.Tensor], *, any_length: bool = False
) -> Recognizer:
    """A function that tells whether tensors are like these.

    Args:
        tensors: Plain tensors or parameters.
        any_length: Whether the first axes may have any length.

    Returns:
        A function of as many tensors. True only if each has the type, dtype, device,
        sizes, strides and dispatch keys (so no lazy negation) of the one in its
        place; False asks for a closer look.

    Example:
        >>> is_like = recognizer([torch.zeros(2, 3)])
        >>> is_like(torch.ones(2, 3)), is_like(torch.ones(3, 2).T)
        (True, False)
    """
    if TensorGuards is None:  # pragma: no cover
        return _never
    sizes: list[Any] = [list(t.shape) for t in tensors]
    if any_length:
        sizes = [[None, *size[1:]] for size in sizes]
    strides: list[Any] = [list(t.stride()) for t in tensors]
    return TensorGuards(
        *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
    ).check


def _never(*_: torch.Tensor) -> bool:  # pragma: no cover
    return False


class Recognition:
    """The variables of a step, and what its gradients were like.

    Attributes:
        variables: The variables, in the order of the gradients.
        gradients: The gradients recognized last, until they are forgotten.

    Args:
        variables: Plain tensors or parameters.
        gradients: Dense gradients, one for each variable.
    """

    def __init__(
        self, variables: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
    ) -> None:
        self.variables = list(variables)
        self.gradients: Sequence[object] | None = None
        self.refresh(gradients)

    def refresh(self, gradients: Sequence[torch.Tensor]) -> None:
        """Recognize tensors like these from now on."""
        self._is_like = recognizer((*gradients, *self.variables))

    def recognizes(
        self, variables: Sequence[object], gradients: Sequence[object]
    ) -> bool:
        """Whether these are the variables, with gradients as they were.

        Fast and strict: False asks for a closer look. Where the variables lie is
        another question.
        """
        known = self.variables
        if len(known) != len(variables) or not all(map(is_, known, variables)):
            return False
        if not self._is_like(*gradients, *variables):
            return False
        self.gradients = gradients
        return True
