"""What every schedule has: a call, a config, and arguments that were checked.

`LearningRateSchedule` is the class to subclass. `Formula` is the base of the schedules
of this package: a data class whose fields are the arguments and the config.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

import torch

from thalweg.errors import describe, message

Number = float | torch.Tensor

_POSITIVE = frozenset({"decay_steps", "first_decay_steps", "t_mul"})
_NOT_NEGATIVE = frozenset({"initial_variance", "power", "warmup_steps"})
_NOT_NUMBERS = frozenset({"boundaries", "cycle", "name", "seed", "staircase", "values"})
_OPTIONAL = frozenset({"warmup_target"})
_SWITCHES = frozenset({"cycle", "staircase"})


class LearningRateSchedule:
    """A rule for the learning rate; subclass it to write one.

    A subclass overrides `__call__` and, to be saved with an optimizer, `get_config`,
    whose dictionary is what its constructor takes.

    Example:
        >>> class Halved(LearningRateSchedule):
        ...     def __call__(self, step):
        ...         return 0.5 ** int(step)
        >>> Halved()(3)
        0.125

    Source: Keras 2.6, ``keras/optimizer_v2/learning_rate_schedule.py``.
    """

    def __call__(self, step: Number) -> float:
        """Return the learning rate after `step` applied updates.

        Args:
            step: A number or a 0-d tensor, 0 or more.

        Raises:
            NotImplementedError: If a subclass does not override this.
        """
        raise NotImplementedError(self._must_define("__call__"))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal schedule, as plain values.

        Raises:
            NotImplementedError: If a subclass does not override this.
        """
        raise NotImplementedError(self._must_define("get_config"))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make a schedule from the dictionary that `get_config` returned."""
        return cls(**config)

    def _must_define(self, method: str) -> str:
        name = type(self).__name__
        return message(name, f"a {method} method", "none", f"Define {name}.{method}.")


@dataclass(eq=False, repr=False)
class Formula(LearningRateSchedule):
    """A schedule that is a formula of the step and of the fields of its class."""

    def __post_init__(self) -> None:
        where = type(self).__name__
        for argument in fields(self):
            name, value = argument.name, getattr(self, argument.name)
            if name in _SWITCHES:
                _check_switch(where, name, value)
            elif name not in _NOT_NUMBERS and not (value is None and name in _OPTIONAL):
                _check_argument(where, name, value)

    def __call__(self, step: Number) -> float:
        """Return the learning rate after `step` applied updates.

        Args:
            step: A number or a 0-d tensor, 0 or more.

        Raises:
            TypeError: If the step is no number.
            ValueError: If the step is negative or NaN.
        """
        # Nearly every call passes an int, which needs no conversion.
        where = type(self).__name__
        now = step if type(step) is int else as_number(f"{where}: step", step)
        return self._rate(at_least(0, where, "step", now))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments by name; tensors become numbers, tuples lists."""
        return {
            argument.name: _as_plain(getattr(self, argument.name))
            for argument in fields(self)
        }

    def __repr__(self) -> str:
        """The call that makes an equal one, without what is at its default."""
        config = self.get_config()
        shown = (
            f"{argument.name}={config[argument.name]!r}"
            for argument in fields(self)
            if argument.default is MISSING or config[argument.name] != argument.default
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def _rate(self, step: float) -> float:
        raise NotImplementedError(self._must_define("_rate"))


def as_float(value: Number) -> float:
    """Return the number in a number or a 0-d tensor, outside of any graph."""
    return float(_as_plain(value))


def as_number(where: str, value: object) -> float:
    """Return the int or float in a number or a 0-d tensor.

    Raises:
        TypeError: If there is none.
        ValueError: If it is NaN.
    """
    number = _as_plain(value) if getattr(value, "shape", ()) == () else None
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        action = "Pass an int, a float or a tensor of shape ()."
        raise TypeError(message(where, "a number", describe(value), action))
    if math.isnan(number):
        raise ValueError(message(where, "a number", "NaN", "Look where it came from."))
    return number


def at_least(bound: float, where: str, argument: str, number: float) -> float:
    """Return the number, or refuse one below the bound with a ValueError."""
    if number < bound:
        expected, action = f"{argument} >= {bound}", f"Pass {bound} or more."
        raise ValueError(message(where, expected, repr(number), action))
    return number


def power(base: float, exponent: float) -> float:
    """Return ``base ** exponent``, infinite where it is too large for a float."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf


def _as_plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_as_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        value = value.detach()
    return value.item() if hasattr(value, "item") else value


def _check_switch(where: str, argument: str, value: object) -> None:
    if not isinstance(value, bool):
        got = f"{value!r} ({type(value).__name__})"
        expected, action = "True or False", "Pass a bool."
        raise TypeError(message(f"{where}: {argument}", expected, got, action))


def _check_argument(where: str, argument: str, value: object) -> None:
    number = as_number(f"{where}: {argument}", value)
    if math.isinf(number):
        expected = f"a finite {argument}"
        raise ValueError(message(where, expected, repr(number), "Pass a number."))
    if argument in _NOT_NEGATIVE:
        at_least(0, where, argument, number)
    if argument in _POSITIVE and number <= 0:
        action = "Pass a number above 0."
        raise ValueError(message(where, f"{argument} > 0", repr(number), action))
