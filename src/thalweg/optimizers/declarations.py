"""What an optimizer class declares: hyperparameters, flags, slots and state.

The declarations are descriptors on the class. A type checker sees ``Hyper`` and
``Flag`` as fields of a dataclass, so that constructors and reads are typed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import numpy as np
import torch

from thalweg.errors import message
from thalweg.schedules import LearningRateSchedule
from thalweg.step import EMA, EMA_MOMENTUM, LOW_PRECISION_COPY

__all__ = [
    "ACCUMULATOR",
    "OPTION_BOUNDS",
    "SLOTS_OF_OPTIONS",
    "Flag",
    "Hyper",
    "HyperValue",
    "Layout",
    "Scale",
    "Slot",
    "State",
    "declared_of",
    "plain_number",
    "scale",
]

_Number = float | int | np.floating[Any] | np.integer[Any] | torch.Tensor
HyperValue = _Number | LearningRateSchedule | Callable[..., Any]
Layout = Literal["like", "row", "scalar"]
"""The shape of a slot beside its variable."""
ACCUMULATOR = "gradient_accumulator"
"""Slot of a variable's dense gradients: their sum in a cycle, at its end their mean."""
SLOTS_OF_OPTIONS = (EMA, LOW_PRECISION_COPY, ACCUMULATOR)
"""Slots that options make beside those that a class declares."""
_MISSING: Any = object()


def plain_number(value: Any) -> Any:
    """A NumPy number or bool as the Python one it is; anything else as it is.

    Example:
        >>> plain_number(np.int64(3)), plain_number(np.array(0.5)), plain_number("a")
        (3, 0.5, 'a')
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.floating):
        return float(value)
    return value.item() if isinstance(value, (np.integer, np.bool_)) else value


class Hyper:
    """A hyperparameter: a number, a schedule, or a callable that gives a number.

    A NumPy number is taken as the Python number it is. Reading the hyperparameter
    from an optimizer gives the number in force as a ``float``. It is a
    cell of the kernel's scalar table, never a constant of the generated code, so
    changing it compiles nothing.

    Args:
        default: Value when the constructor gets none. Without it the argument is
            required.
        low: Smallest value allowed.
        high: Largest value allowed.
        below: Smallest value that is too large.
        above: Largest value that is too small.
        takes_none: Whether a constructor takes None for the default, as Keras 2 does
            for every ``epsilon``.
        kw_only: Whether a constructor takes it by name only.

    Raises:
        ValueError: On assignment, for NaN or a number outside the bounds.
        TypeError: On assignment of anything that is not a number, a 0-d tensor, a
            `LearningRateSchedule` or a callable.

    Example:
        >>> class Descent(tw.Optimizer):
        ...     learning_rate: tw.Hyper = tw.Hyper(default=0.1, low=0.0)
        ...     @staticmethod
        ...     def update(var, grad, *, learning_rate):
        ...         return var - learning_rate * grad
        >>> Descent().learning_rate
        0.1
    """

    def __init__(
        self,
        *,
        default: HyperValue = _MISSING,
        low: float | None = None,
        high: float | None = None,
        below: float | None = None,
        above: float | None = None,
        takes_none: bool = False,
        kw_only: bool = False,
    ) -> None:
        self.default = default
        self.low = low
        self.high = high
        self.below = below
        self.above = above
        self.takes_none = takes_none
        self.kw_only = kw_only
        self.name = "hyperparameter"

    def __repr__(self) -> str:
        parts = [] if self.is_required else [f"default={self.default!r}"]
        names = ("low", "high", "below", "above")
        bounds = {name: getattr(self, name) for name in names}
        parts += [f"{n}={bound!r}" for n, bound in bounds.items() if bound is not None]
        parts += ["takes_none=True"] if self.takes_none else []
        parts += ["kw_only=True"] if self.kw_only else []
        return f"Hyper({', '.join(parts)})"

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @property
    def is_required(self) -> bool:
        """Whether the constructor must be given a value."""
        return self.default is _MISSING

    @overload
    def __get__(self, instance: None, owner: type) -> Hyper: ...
    @overload
    def __get__(self, instance: object, owner: type) -> float: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance.hyper_in_force(self.name)

    def __set__(self, instance: object, value: HyperValue) -> None:
        optimizer: Any = instance
        optimizer._set_hyper(self.name, value)

    def check(self, where: str, value: Any) -> Any:
        """Refuse a value that this hyperparameter cannot take.

        Args:
            where: Text that begins the message.
            value: What was given.

        Returns:
            The value; a NumPy number as a Python number.

        Raises:
            TypeError: If it is neither number nor schedule nor callable.
            ValueError: If it is NaN or out of bounds.
        """
        value = plain_number(value)
        is_held = isinstance(value, torch.Tensor) and value.ndim == 0
        number = value.item() if is_held else value
        if callable(number):
            return value
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise TypeError(
                message(
                    f"{where}: {self.name}",
                    "a number, a LearningRateSchedule or a callable",
                    f"{number!r} ({type(number).__name__})",
                    "Pass one of these.",
                )
            )
        if not self.allows(float(number)):
            raise ValueError(
                message(
                    f"{where}: {self.name}",
                    self.bounds(),
                    repr(number),
                    "Pass a value in this range.",
                )
            )
        return value

    def allows(self, value: float) -> bool:
        """Whether a number lies within the bounds; NaN never does."""
        return (
            not math.isnan(value)
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
            and (self.above is None or value > self.above)
        )

    def bounds(self) -> str:
        """The allowed range in words."""
        parts = [
            f">= {self.low}" if self.low is not None else "",
            f"> {self.above}" if self.above is not None else "",
            f"<= {self.high}" if self.high is not None else "",
            f"< {self.below}" if self.below is not None else "",
        ]
        return "a number " + (" and ".join(p for p in parts if p) or "(not NaN)")


class Flag:
    """A Python bool that the rule may branch on; each value is another kernel.

    Args:
        default: Value when the constructor gets none.
        kw_only: Whether a constructor takes it by name only.

    Example:
        >>> tw.optimizers.Adam(amsgrad=True).amsgrad
        True
    """

    def __init__(self, *, default: bool, kw_only: bool = False) -> None:
        self.default = default
        self.kw_only = kw_only
        self.name = "flag"

    def __repr__(self) -> str:
        further = ", kw_only=True" if self.kw_only else ""
        return f"Flag(default={self.default!r}{further})"

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Flag: ...
    @overload
    def __get__(self, instance: object, owner: type) -> bool: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance._flags[self.name]

    def __set__(self, instance: object, value: bool | np.bool_) -> None:
        optimizer: Any = instance
        value = plain_number(value)
        if not isinstance(value, bool):
            raise TypeError(
                message(
                    f"{type(instance).__name__}: {self.name}",
                    "True or False",
                    f"{value!r} ({type(value).__name__})",
                    "Pass a bool.",
                )
            )
        optimizer._flags[self.name] = value


@dataclass(frozen=True)
class Slot:
    """A tensor that the optimizer keeps beside every variable.

    Attributes:
        shape: ``"like"`` the variable, one number a ``"row"`` (the first axis), or
            one ``"scalar"``.
        initial: First value: a number, ``"var"`` for a copy of the variable, or the
            name of a hyperparameter.
        dtype: Storage dtype, or its name; by default the variable's, or float32 where
            that is a half-precision type.
        when: Name of an attribute of the optimizer; the slot exists where it is true.
            Elsewhere ``update`` gets None for it, and returns None or leaves it out.
        name: Name of the slot, by default that of the class attribute.

    Example:
        >>> class Signum(tw.Optimizer):
        ...     learning_rate: tw.Hyper = tw.Hyper(default=0.1)
        ...     m = tw.Slot()
        ...     @staticmethod
        ...     def update(var, m, grad, *, learning_rate):
        ...         m_new = 0.9 * m + grad
        ...         return var - learning_rate * torch.sign(m_new), m_new
    """

    shape: Layout = "like"
    initial: float | str = 0.0
    dtype: torch.dtype | str | None = None
    when: str | None = None
    name: str | None = None

    def shape_beside(self, variable: torch.Tensor) -> tuple[int, ...]:
        """The shape of this slot of a variable."""
        if self.shape == "row":
            return tuple(variable.shape[:1]) + (1,) * (variable.ndim - 1)
        return () if self.shape == "scalar" else tuple(variable.shape)


@dataclass(frozen=True)
class State:
    """One number that the optimizer keeps for itself, such as Nadam's cache.

    The rule may take it as a scalar; `next_states` says what it is after a step.
    Reading it from an optimizer gives the variable that holds it, one of ``weights``.

    Attributes:
        initial: First value.
        name: Name of the class attribute.
    """

    initial: float = 0.0
    name: str = field(default="", init=False, compare=False)

    def __set_name__(self, owner: type, name: str) -> None:
        object.__setattr__(self, "name", name)

    @overload
    def __get__(self, instance: None, owner: type) -> State: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Any: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance.state_variables()[self.name]


@dataclass(frozen=True)
class Scale:
    """A factor on a hyperparameter, for ``per_variable``."""

    factor: float

    def __repr__(self) -> str:
        return f"scale({self.factor!r})"


def scale(factor: float) -> Scale:
    """Multiply a hyperparameter instead of replacing it, in ``per_variable``.

    Args:
        factor: A finite number.

    Returns:
        The value to put into the ``per_variable`` table.

    Raises:
        TypeError: If the factor is no number.
        ValueError: If it is NaN or infinite.

    Example:
        >>> layer_wise = {"layers.0.*": {"learning_rate": tw.scale(0.8)}}
        >>> tw.optimizers.SGD(0.1, per_variable=layer_wise).learning_rate
        0.1
    """
    factor = plain_number(factor)
    if isinstance(factor, bool) or not isinstance(factor, (int, float)):
        got = f"{factor!r} ({type(factor).__name__})"
        raise TypeError(message("scale", "a number", got, "Pass a factor."))
    if not math.isfinite(factor):
        action = "Pass a factor that is finite."
        raise ValueError(message("scale", "a number", repr(factor), action))
    return Scale(float(factor))


def declared_of(cls: type, kinds: type[Any] | tuple[type[Any], ...]) -> dict[str, Any]:
    """Declarations of some kinds on a class and its bases, in the order written."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, kinds):
                found[name] = value
            else:
                found.pop(name, None)
    return found


def _bound(name: str, default: float, high: float | None = None) -> Hyper:
    bound = Hyper(default=default, low=0.0, high=high)
    bound.name = name
    return bound


OPTION_BOUNDS = {
    "learning_rate": _bound("learning_rate", 0.0),
    "decay": _bound("decay", 0.0),
    "weight_decay": _bound("weight_decay", 0.0),
    EMA_MOMENTUM: _bound(EMA_MOMENTUM, 0.99, high=1.0),
}
"""What holds for numbers that every optimizer takes, declared by its class or not."""
