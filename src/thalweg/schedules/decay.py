"""Schedules without a cosine: exponential, constant by parts, polynomial, inverse."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from thalweg.errors import describe, message
from thalweg.schedules.schedule import (
    Formula,
    Number,
    as_float,
    as_number,
    at_least,
    power,
)


@final
@dataclass(eq=False, repr=False)
class ExponentialDecay(Formula):
    """Multiply the learning rate by `decay_rate` once every `decay_steps` steps.

    ``initial_learning_rate * decay_rate ** (step / decay_steps)``

    Args:
        initial_learning_rate: The learning rate at step 0.
        decay_steps: How many steps one factor takes; above 0.
        decay_rate: The factor; 0 or more.
        staircase: Round ``step / decay_steps`` down: jumps instead of a slope.
        name: A label that is kept in the config.

    Raises:
        TypeError: If an argument is no number.
        ValueError: If `decay_steps` is not above 0 or `decay_rate` is below 0.

    Example:
        >>> ExponentialDecay(1.0, decay_steps=2, decay_rate=0.25)(1)
        0.5

    Source: Keras 2.6, ``ExponentialDecay``.
    """

    initial_learning_rate: Number
    decay_steps: Number
    decay_rate: Number
    staircase: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, "ExponentialDecay", "decay_rate", as_float(self.decay_rate))

    def _rate(self, step: float) -> float:
        exponent = step / as_float(self.decay_steps)
        if self.staircase:
            exponent = math.floor(exponent)
        rate = as_float(self.initial_learning_rate)
        return rate * power(as_float(self.decay_rate), exponent)


@final
@dataclass(eq=False, repr=False)
class PiecewiseConstantDecay(Formula):
    """Hold one value up to and including each boundary, then take the next.

    ``values[i]`` for ``boundaries[i - 1] < step <= boundaries[i]``

    Args:
        boundaries: Steps in increasing order, ints or floats.
        values: Learning rates, one more than there are boundaries.
        name: A label that is kept in the config.

    Raises:
        TypeError: If an argument is no list of numbers.
        ValueError: If the lengths do not fit, or the boundaries decrease.

    Example:
        >>> schedule = PiecewiseConstantDecay([10, 20], [0.1, 0.01, 0.001])
        >>> schedule(10), schedule(11), schedule(21)
        (0.1, 0.01, 0.001)

    Source: Keras 2.6, ``PiecewiseConstantDecay``.
    """

    boundaries: Sequence[Number]
    values: Sequence[Number]
    name: str | None = None

    def __post_init__(self) -> None:
        where = "PiecewiseConstantDecay"
        boundaries = _numbers(f"{where}: boundaries", self.boundaries)
        values = _numbers(f"{where}: values", self.values)
        if len(boundaries) != len(values) - 1:
            expected = "one value more than there are boundaries"
            got = f"{len(values)} values and {len(boundaries)} boundaries"
            raise ValueError(message(where, expected, got, "Add or drop some."))
        if boundaries != sorted(boundaries):
            action = "Sort them, and the values with them."
            got = str(boundaries)
            raise ValueError(message(where, "increasing boundaries", got, action))

    def _rate(self, step: float) -> float:
        boundaries = [as_float(boundary) for boundary in self.boundaries]
        return as_float(self.values[bisect.bisect_left(boundaries, step)])


@final
@dataclass(eq=False, repr=False)
class PolynomialDecay(Formula):
    """Go from one learning rate to another along ``(1 - t) ** power``.

    ``(initial - end) * (1 - min(step, decay_steps) / decay_steps) ** power + end``;
    with `cycle`, `decay_steps` grows to its first multiple that `step` fits into.

    Args:
        initial_learning_rate: The learning rate at step 0.
        decay_steps: How many steps the way down takes; above 0.
        end_learning_rate: The learning rate at the end.
        power: The exponent, 0 or more; 1 is a straight line.
        cycle: Rise again after the end, less high every time, instead of staying.
        name: A label that is kept in the config.

    Raises:
        TypeError: If an argument is no number.
        ValueError: If `decay_steps` is not above 0 or `power` is below 0.

    Example:
        >>> PolynomialDecay(1.0, decay_steps=4, end_learning_rate=0.0, power=2.0)(2)
        0.25

    Source: Keras 2.6, ``PolynomialDecay``.
    """

    initial_learning_rate: Number
    decay_steps: Number
    end_learning_rate: Number = 0.0001
    power: Number = 1.0
    cycle: bool = False
    name: str | None = None

    def _rate(self, step: float) -> float:
        decay_steps = as_float(self.decay_steps)
        if self.cycle:
            decay_steps *= max(1, math.ceil(step / decay_steps))
        # A quotient one bit above 1 must not become the root of a negative number.
        remaining = max(0.0, 1.0 - step / decay_steps)
        end = as_float(self.end_learning_rate)
        height = as_float(self.initial_learning_rate) - end
        return height * power(remaining, as_float(self.power)) + end


@final
@dataclass(eq=False, repr=False)
class InverseTimeDecay(Formula):
    """Divide the learning rate by a number that grows linearly with the steps.

    ``initial_learning_rate / (1 + decay_rate * step / decay_steps)``

    Args:
        initial_learning_rate: The learning rate at step 0.
        decay_steps: How many steps add `decay_rate` to the divisor; above 0.
        decay_rate: How much the divisor grows; 0 or more.
        staircase: Round ``step / decay_steps`` down: jumps instead of a slope.
        name: A label that is kept in the config.

    Raises:
        TypeError: If an argument is no number.
        ValueError: If `decay_steps` is not above 0 or `decay_rate` is below 0.

    Example:
        >>> InverseTimeDecay(1.0, decay_steps=2, decay_rate=0.5)(4)
        0.5

    Source: Keras 2.6, ``InverseTimeDecay``.
    """

    initial_learning_rate: Number
    decay_steps: Number
    decay_rate: Number
    staircase: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        # A negative rate would lead through a divisor of 0.
        at_least(0, "InverseTimeDecay", "decay_rate", as_float(self.decay_rate))

    def _rate(self, step: float) -> float:
        progress = step / as_float(self.decay_steps)
        if self.staircase:
            progress = math.floor(progress)
        divisor = 1.0 + as_float(self.decay_rate) * progress
        return as_float(self.initial_learning_rate) / divisor


def _numbers(where: str, value: object) -> list[float]:
    if not isinstance(value, (list, tuple)):
        action = "Pass a list of numbers."
        raise TypeError(message(where, "a list", describe(value), action))
    return [as_number(where, item) for item in value]
