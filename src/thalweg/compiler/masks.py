"""Masks: truth values, and what torch makes of them.

What torch makes of masks alone is a mask again, their sum too; a number meets one as 1
and 0. Of scalars alone, Python's own truth values are meant, whose sum is a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from thalweg.compiler.arguments import NoMeaningError
from thalweg.compiler.graph import is_made_of, is_mask
from thalweg.compiler.op_table import OPS

__all__ = [
    "are_truths",
    "count",
    "emit",
    "is_truth",
    "on_truths",
    "truth",
    "unless_truths",
]

Value = Any  # a traced value or a number


def emit(name: str, *operands: Value) -> Value:
    """Add one operation of the table to the graph the operands belong to.

    What is computed of numbers alone is a number.
    """
    tracers: list[Any] = [o.tracer for o in operands if isinstance(o, fx.Proxy)]
    return tracers[0].emit(OPS[name], operands) if tracers else OPS[name](*operands)


def is_truth(value: Value) -> bool:
    """Whether a value is a mask or a bool."""
    if isinstance(value, fx.Proxy):
        return is_mask(value.node)
    return isinstance(value, (bool, np.bool_))


def are_truths(*values: Value) -> bool:
    """Whether torch has truth values only, one of them a tensor of such."""
    return all(map(is_truth, values)) and any(map(_is_of_tensors, values))


def _is_of_tensors(value: Value) -> bool:
    if not isinstance(value, fx.Proxy):
        return False
    tracer: Any = value.tracer
    return not is_made_of(tracer.rule.scalars, value.node)


def truth(x: Value) -> Value:
    """A number as a mask: where it is not 0."""
    return emit("ne", x, 0.0)


def count(x: Value) -> Value:
    """A mask as 1 and 0; a number as it is."""
    return emit("where", x, 1.0, 0.0) if is_truth(x) else x


def unless_truths(name: str, logical: str) -> Callable[..., Value]:
    """A row of the table for numbers, another one for masks alone."""

    def spelled(x: Value, other: Value) -> Value:
        return emit(logical if are_truths(x, other) else name, x, other)

    return spelled


def on_truths(name: str) -> Callable[..., Value]:
    """The logical operation as a bitwise one, which numbers have another one for."""

    def checked(*operands: Value) -> Value:
        if all(map(is_truth, operands)):
            return emit(name, *operands)
        action = f"Write torch.{name}, or a comparison, which gives a mask."
        raise NoMeaningError("masks for &, |, ^ and ~", "a number", action)

    def one(x: Value) -> Value:
        return checked(x)

    def two(x: Value, other: Value) -> Value:
        return checked(x, other)

    return two if len(OPS[name].masks) == 2 else one
