"""Hyperparameters of an optimizer: storage, the number in force, configuration."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from thalweg import schedules
from thalweg.errors import level_of_caller, message
from thalweg.optimizers.declarations import OPTION_BOUNDS, Hyper, Scale
from thalweg.optimizers.declared import (
    Declared,
    missing_attribute,
    unknown_hyperparameter,
)
from thalweg.optimizers.per_variable import Settings
from thalweg.optimizers.scalar_table import ScalarTable
from thalweg.optimizers.torch_formula import TORCH_FORMULA, flags_in_config
from thalweg.state import Variable
from thalweg.step import EMA_MOMENTUM, STEP

__all__ = ["HyperparameterAccess", "takes_step", "warn_lr_is_deprecated"]

_ZERO_IS_NONE = ("ema_overwrite_frequency", "gradient_accumulation_steps")
_CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")


class HyperparameterAccess(Declared):
    """The part of `Optimizer` that keeps hyperparameters.

    Numbers, schedules and callables live in ``_hyper`` by name. Declared
    hyperparameters are descriptors over that table; names that an own ``__init__``
    sets with ``_set_hyper`` are reached as attributes, too.
    """

    _hyper: dict[str, Any]
    _flags: dict[str, bool]
    _settings: Settings
    _table: ScalarTable
    _name: str

    if not TYPE_CHECKING:  # a type checker shall reject wrong names

        def __getattr__(self, name: str) -> Any:
            hyper = self.__dict__.get("_hyper", {})
            key = self._key_of(name)
            if key in hyper:
                return self.hyper_in_force(key)
            if key == "weight_decay":
                return None
            if hyper and hasattr(type(self), name):  # what its getter lacks, it says
                return object.__getattribute__(self, name)
            raise missing_attribute(self, name)

        def __setattr__(self, name: str, value: Any) -> None:
            key = self._key_of(name)
            is_option = key == "weight_decay" and key not in self._hypers_declared
            if is_option and value is None:
                self._settings.refuse_scaled_decay(type(self).__name__)
                self._hyper.pop(key, None)
            elif key in self.__dict__.get("_hyper", ()) or is_option:
                self._set_hyper(key, value)
            else:
                super().__setattr__(name, value)

    def _key_of(self, name: str) -> str:
        """The hyperparameter that a name means; ``lr`` is an old one, or its own."""
        is_old = name == "lr" and name not in self._hypers_declared
        return "learning_rate" if is_old else name

    def _refuse_scaled_decay(self) -> None:
        """Refuse factors on a weight decay if there is none."""
        if "weight_decay" not in self._hyper:
            self._settings.refuse_scaled_decay(type(self).__name__)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__dict__.get("_hyper", ())})

    def __repr__(self) -> str:
        if "_settings" not in self.__dict__:  # its constructor has not come so far
            return object.__repr__(self)
        names = dict.fromkeys((*self._hypers_declared, *self._hyper))
        given = {n: self._hyper[n] for n in names if n in self._hyper}
        given |= {n: f for n, f in self._flags.items() if f}
        given |= {"use_ema": True} if EMA_MOMENTUM in self._hyper else {}
        given |= {c: v for c in _CLIPS if (v := getattr(self, c)) is not None}
        given |= self._settings.get_config(lambda _, value: value)
        if given.get("decay") == 0.0:
            del given["decay"]
        shown = ", ".join(f"{name}={_shown(value)}" for name, value in given.items())
        return f"{type(self).__name__}({shown})"

    @property
    def iterations(self) -> Variable:
        """Number of applied steps."""
        raise NotImplementedError

    # -- the Keras 2 protocol -------------------------------------------------

    def _set_hyper(self, name: str, value: Any) -> None:
        """Set a hyperparameter: a number, a 0-d tensor, a schedule or a callable."""
        declared = self._hypers_declared.get(name) or OPTION_BOUNDS.get(name)
        bound = declared or Hyper(default=0.0)
        if isinstance(value, Mapping):
            value = schedules.deserialize(value)
        if declared is None:
            bound.name = name
        self._hyper[name] = bound.check(type(self).__name__, value)

    def _get_hyper(self, name: str, dtype: torch.dtype | None = None) -> Any:
        """Value of a hyperparameter as Keras gives it.

        A schedule comes back as it is; a callable is called; a number is a number,
        whatever ``dtype`` asks for: rounding happens where it meets a tensor.
        """
        del dtype
        value = self._hyper.get(name)
        if isinstance(value, schedules.LearningRateSchedule):
            return value
        return self.hyper_in_force(name)

    def _held(self, name: str) -> Any:
        """A hyperparameter as it was set."""
        if name not in self._hyper:
            raise unknown_hyperparameter(type(self), name, self._hyper)
        return self._hyper[name]

    def _refuse_unset(self) -> None:
        """Refuse a declared hyperparameter that an ``__init__`` has not set."""
        for name in self._hypers_declared:
            self._held(name)

    def _decayed_lr(self, dtype: torch.dtype | None = None) -> float:
        """The learning rate of the next step: schedule, then ``decay``."""
        del dtype
        return self._decayed(self.hyper_in_force("learning_rate"))

    def _decayed(self, learning_rate: float) -> float:
        decay = self.hyper_in_force("decay")
        if decay == 0.0:
            return learning_rate
        return learning_rate / (1.0 + decay * int(self.iterations))

    def _serialize_hyperparameter(self, name: str) -> Any:
        """A hyperparameter as a value that JSON can hold."""
        return self._as_plain(name, self._held(name))

    def _as_plain(self, name: str, value: Any) -> Any:
        """What may be given for a hyperparameter, as a value that JSON can hold."""
        if isinstance(value, Scale):
            return {"scale": value.factor}
        if isinstance(value, schedules.LearningRateSchedule):
            return schedules.serialize(value)
        if isinstance(value, (int, float)):
            return value
        return self._number(name, value)

    # -- reading --------------------------------------------------------------

    def hyper_in_force(self, name: str) -> float:
        """The number that the next step would use, before ``decay``.

        Args:
            name: Name of a hyperparameter.

        Returns:
            The number; a schedule is called with ``iterations``, another callable
            with ``iterations`` or nothing, as its signature says.

        Raises:
            ValueError: If a schedule or callable gives NaN or leaves the bounds.
            KeyError: If there is no such hyperparameter.
        """
        if name not in self._hyper:
            raise unknown_hyperparameter(type(self), name, self._hyper)
        return self._number(name, self._hyper[name])

    def _number(self, name: str, value: Any, step: int | None = None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        if callable(value) and not isinstance(value, torch.Tensor):
            shown = (
                self.iterations if step is None else torch.tensor(step, device="cpu")
            )
            value = value(shown) if takes_step(value) else value()
        number = float(value.detach() if isinstance(value, torch.Tensor) else value)
        declared = self._hypers_declared.get(name) or OPTION_BOUNDS.get(name)
        if declared is not None and not declared.allows(number):
            raise ValueError(
                message(
                    f"{self._name}: {name} at iteration "
                    f"{int(self.iterations) if step is None else step}",
                    declared.bounds(),
                    repr(number),
                    "Mend the schedule or callable that gave it.",
                )
            )
        return number

    def values_in_force(self) -> dict[str, np.ndarray]:
        """All hyperparameters and the step number, one row for each setting.

        Returns:
            For each name a float64 array; ``learning_rate`` after ``decay``.

        Raises:
            ValueError: If a schedule or callable gives NaN or leaves its bounds.
        """
        return self._values_at(None)

    def _values_at(self, step: int | None) -> dict[str, np.ndarray]:
        """The same after so many applied steps; None: after `iterations`."""
        number_of = self._number if step is None else partial(self._number, step=step)
        applied = int(self.iterations) if step is None else step
        numbers = {name: number_of(name, value) for name, value in self._hyper.items()}
        for name in self._table.names:
            numbers.setdefault(name, 0.0)
        numbers[STEP] = applied + 1.0
        if applied == 0 and EMA_MOMENTUM in numbers:
            numbers[EMA_MOMENTUM] = 0.0  # an average starts from the first update
        values = self._table.values(numbers, number_of)
        if numbers["decay"] == 0.0 or "learning_rate" not in values:
            return values
        decayed = values["learning_rate"] / (1.0 + numbers["decay"] * applied)
        return {**values, "learning_rate": decayed}

    # -- configuration --------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as a dictionary that JSON can hold.

        Returns:
            Name, hyperparameters, flags, and the options that are not at their
            default. Aggregator and transformers are functions and are left out.

        Example:
            >>> tw.optimizers.SGD(0.5).get_config()["learning_rate"]
            0.5
        """
        config: dict[str, Any] = {"name": self._name}
        clips = {c: v for c in _CLIPS if (v := getattr(self, c)) is not None}
        config |= {c: self._as_plain(c, v) for c, v in clips.items()}
        if self._hypers_declared or self._flags_declared:
            config |= {
                n: self._serialize_hyperparameter(n) for n in self._config_names()
            }
            config |= flags_in_config(self._flags, self._flags_declared)
        return config | self._settings.get_config(self._as_plain)

    def _config_names(self) -> list[str]:
        names = dict.fromkeys(self._hypers_declared)
        if "learning_rate" in names:
            names = {"learning_rate": None, "decay": None} | names
        if "weight_decay" in self._hyper:
            names["weight_decay"] = None
        if EMA_MOMENTUM in self._hyper:
            names[EMA_MOMENTUM] = None
        return list(names)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Any:
        """Make an optimizer from what `get_config` gave.

        Args:
            config: Constructor arguments; ``lr`` is read as ``learning_rate`` unless
                the constructor has it, the dictionary of a schedule as that schedule.
            custom_objects: Own schedule classes by name.

        Returns:
            A new optimizer without slots, its iterations at 0.

        Raises:
            TypeError: If an entry is not an argument of the constructor.
        """
        arguments = dict(config)
        if "lr" in arguments and "lr" not in inspect.signature(cls).parameters:
            arguments["learning_rate"] = arguments.pop("lr")
        for name in _ZERO_IS_NONE:
            if type(arguments.get(name)) is int and arguments[name] == 0:
                del arguments[name]  # Keras 3's other word for None
        known = {*cls._hypers_declared, *OPTION_BOUNDS, "per_variable"}
        for name in known & arguments.keys():
            arguments[name] = _with_schedules(arguments[name], custom_objects)
        return cls(**arguments)

    def hyperparameters(self) -> dict[str, Any]:
        """Hyperparameters and flags as plain values, for a checkpoint.

        Returns:
            A dictionary of numbers, bools and, for schedules, dictionaries.
        """
        return {
            **{name: self._serialize_hyperparameter(name) for name in self._hyper},
            **self._flags,
        }

    @property
    def hyperparameters_added_later(self) -> Mapping[str, bool]:
        """Switches that older versions did not have, as those acted.

        A checkpoint holds them only where they stand otherwise.
        """
        return {TORCH_FORMULA: False} if TORCH_FORMULA in self._flags else {}

    def restore_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Take back what `hyperparameters` gave.

        Args:
            values: Numbers, bools and schedule dictionaries by name.

        Raises:
            TypeError: If a flag is neither True nor False.
            ValueError: If a name is unknown or a value out of bounds; nothing is
                changed then.
        """
        unknown = [n for n in values if n not in self._hyper and n not in self._flags]
        if unknown:
            raise ValueError(
                message(
                    f"{type(self).__name__}.restore_hyperparameters",
                    f"names among {[*self._hyper, *self._flags]}",
                    str(unknown),
                    "Restore into an optimizer of the same class and options.",
                )
            )
        put_back = self.keep_hyperparameters()
        try:
            for name, value in values.items():
                self._restore_one(name, value)
        except Exception:
            put_back()
            raise

    def keep_hyperparameters(self) -> Callable[[], None]:
        """Note all hyperparameters, functions too; returns what puts them back."""
        hyper, flags = dict(self._hyper), dict(self._flags)

        def put_back() -> None:
            self._hyper, self._flags = hyper, flags

        return put_back

    def _restore_one(self, name: str, value: Any) -> None:
        if name in self._flags:
            self._flags_declared[name].__set__(self, value)  # checks it
            return
        current = self._hyper[name]
        if callable(current) and not isinstance(value, Mapping):
            return  # an own function cannot be saved; the number it gave is no match
        self._set_hyper(name, value)


def _with_schedules(value: Any, custom_objects: Mapping[str, Any] | None) -> Any:
    """The same mapping with schedules in place of their dictionaries, inside too."""
    if not isinstance(value, Mapping):
        return value
    if {"class_name", "config"} <= value.keys():
        return schedules.deserialize(value, custom_objects)
    return {key: _with_schedules(v, custom_objects) for key, v in value.items()}


def _shown(value: Any) -> str:
    """A hyperparameter or option as its constructor would be given it."""
    if isinstance(value, torch.Tensor):
        return f"{value.item():g}"
    return getattr(value, "__qualname__", None) or repr(value)


def warn_lr_is_deprecated() -> None:
    """Say that ``lr`` is an old name of ``learning_rate``."""
    warnings.warn(
        "The `lr` argument is deprecated, use `learning_rate` instead.",
        UserWarning,
        stacklevel=level_of_caller(),
    )


def takes_step(function: Any) -> bool:
    """Whether a callable wants ``iterations``; Keras's callables take nothing."""
    if isinstance(function, schedules.LearningRateSchedule):
        return True
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )
