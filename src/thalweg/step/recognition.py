"""Recognizing the tensors of an earlier step, in one call for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

try:  # what torch.compile checks the inputs of a frame with; in C++, not public
    from torch._C._dynamo.guards import TensorGuards
except ImportError:  # pragma: no cover - a torch that has moved it
    TensorGuards = None

__all__ = ["recognizer"]

Recognizer = Callable[..., bool]


def recognizer(tensors: Sequence[torch.Tensor]) -> Recognizer:
    """A function that tells whether tensors are like these.

    Args:
        tensors: Plain tensors or parameters.

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
    strides: list[Any] = [list(t.stride()) for t in tensors]
    return TensorGuards(
        *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
    ).check


def _never(*_: torch.Tensor) -> bool:  # pragma: no cover
    return False
