"""The root that turns declarations into a constructor, for people and type checkers."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from thalweg.compiler.rule import Rule
from thalweg.errors import describe, message, nearest
from thalweg.optimizers.declarations import (
    SLOTS_OF_OPTIONS,
    Flag,
    Hyper,
    Slot,
    State,
    declared_of,
    plain_number,
)
from thalweg.optimizers.slot_checks import check_slot, check_slot_names

__all__ = [
    "Declared",
    "checked_name",
    "checked_states",
    "declared_values",
    "default_name",
    "missing_attribute",
    "unexpected_option",
    "unknown_hyperparameter",
]

_OWN_MODULES = "thalweg.optimizers."
_STEP = "step"
_names_in_use: dict[str, itertools.count[int]] = {}
_RESERVED = ("self", "name", "options", _STEP)


class Declared:
    """Collects what a class declares and writes its constructor.

    A class with declared hyperparameters or flags gets
    ``__init__(hyperparameters…, *, name=None, **options)``; an ``__init__`` of its
    own wins, and that of `Optimizer` takes what is declared by keyword. The order of
    ``update``'s arguments is checked here, when the class is made.
    """

    _positional_options: tuple[str, ...] = ()
    """Options that a constructor takes by position, too, behind the declared ones."""
    _hypers_declared: Mapping[str, Hyper] = {}
    _flags_declared: Mapping[str, Flag] = {}
    _slots_declared: Mapping[str, Slot] = {}
    _states_declared: Mapping[str, State] = {}
    _slot_conditions: tuple[str, ...] = ()
    """What slots ask ``when`` of, beside flags."""
    _rule_follows_numbers: bool = False
    """Whether nothing but hyperparameters and flags says what the rule is."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._hypers_declared = declared_of(cls, Hyper)
        cls._flags_declared = declared_of(cls, Flag)
        slots = declared_of(cls, Slot)
        cls._slots_declared = {s.name or name: s for name, s in slots.items()}
        for name, slot in cls._slots_declared.items():
            check_slot(f"{cls.__name__}.{name}", slot)
        cls._states_declared = declared_of(cls, State)
        conditions = {s.when for s in slots.values() if s.when is not None}
        cls._slot_conditions = tuple(sorted(conditions - cls._flags_declared.keys()))
        cls._rule_follows_numbers = _follows_numbers(cls)
        own = vars(cls)
        declares = any(isinstance(v, (Hyper, Flag)) for v in own.values())
        if declares and "__init__" not in own:
            _write_constructor(cls)
        if own.get("update") is not None:
            _check_update(cls, own["update"])


def _follows_numbers(cls: type[Declared]) -> bool:
    """True where no class from elsewhere has a say: it may look at anything."""
    asked = {"rule", "rule_flags", "active_slots", "use_ema", *cls._slot_conditions}
    others = [k for k in cls.__mro__ if not k.__module__.startswith(_OWN_MODULES)]
    return not any(asked & vars(other).keys() for other in others)


def _write_constructor(cls: type[Declared]) -> None:
    """Give a class ``__init__(hyperparameters…, *, name=None, **options)``."""
    signature = _constructor_signature(cls)

    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}: {error}. It takes {signature}.") from None
        bound.apply_defaults()
        values = dict(bound.arguments)
        values.pop("self")
        name, options = values.pop("name"), values.pop("options")
        known = {**cls._hypers_declared, **cls._flags_declared}
        options |= {n: values.pop(n) for n in [*values] if n not in known}
        self._construct(cls, name, options, values)
        self._refuse_scaled_decay()
        if type(self).__init__ is construct:  # else more may be set behind it
            check_slot_names(self, self._slots_declared)
        if not self._applies_by_hand:  # such a class may make others in a step
            known = {*self._slots_declared, *SLOTS_OF_OPTIONS}
            self._settings.check_slot_names(type(self).__name__, known)

    construct.__signature__ = signature  # type: ignore[attr-defined]
    construct.__name__ = "__init__"
    construct.__qualname__ = f"{cls.__qualname__}.__init__"
    construct.__doc__ = f"Make a new `{cls.__name__}`."
    cls.__init__ = construct  # type: ignore[method-assign]


def checked_name(where: str, name: Any) -> str | None:
    """The name that a constructor was given, or None.

    Raises:
        TypeError: If it is something else than a string.
    """
    if name is not None and not isinstance(name, str):
        action = "Pass a string; further options are given by name."
        raise TypeError(
            message(f"{where}: name", "a string or None", describe(name), action)
        )
    return name


def default_name(cls: type[Declared]) -> str:
    """The class name; in snake case, numbered, if a class declares nothing."""
    if cls._hypers_declared or cls._flags_declared:
        return cls.__name__
    snake = re.sub(
        r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__
    ).lower()
    number = next(_names_in_use.setdefault(snake, itertools.count()))
    return f"{snake}_{number}" if number else snake


def checked_states(cls: type[Declared], given: Any) -> dict[str, Any]:
    """What ``next_states`` gave for the states that a class declares.

    Raises:
        TypeError: If it is no mapping, has another name, or a value is no number.
    """
    where, known = f"{cls.__name__}.next_states", cls._states_declared
    if not isinstance(given, Mapping):
        action = "Return a dictionary; what is not named stays."
        text = message(where, "new values by name", describe(given), action)
        raise TypeError(text)
    for name, value in given.items():
        if name not in known:
            expected = "the names of declared states"
            text = message(where, expected, repr(name), nearest(name, known))
            raise TypeError(text)
        number = plain_number(value)
        is_held = isinstance(number, torch.Tensor) and number.ndim == 0
        if not (is_held or isinstance(number, (int, float))):
            expected, action = f"a number as the new {name!r}", "Return one number."
            raise TypeError(message(where, expected, describe(value), action))
    return {name: plain_number(value) for name, value in given.items()}


def declared_values(owner: type[Declared], options: dict[str, Any]) -> dict[str, Any]:
    """Values of what a class declares, taken out of a constructor's options.

    Args:
        owner: The class.
        options: What a constructor was given by name; declared names leave it.

    Returns:
        Given values, then defaults. A hyperparameter that has neither is left out: an
        ``__init__`` of the class's own may set it behind this.
    """
    hypers = owner._hypers_declared
    known = {*hypers, *owner._flags_declared}
    values = {name: options.pop(name) for name in [*options] if name in known}
    _refuse_parameters(owner.__name__, values.get("learning_rate"))
    if "learning_rate" in hypers and options.get("lr") is not None:
        values["learning_rate"] = options["lr"]
    for name, field in hypers.items():
        is_none = field.takes_none and values.get(name, field) is None
        if is_none or not (name in values or field.is_required):
            values[name] = field.default
    return values


def unexpected_option(cls: type[Declared], name: str, options: Iterable[str]) -> str:
    """What to do about a keyword that no constructor of a class takes."""
    has_rate = "learning_rate" in cls._hypers_declared
    if name == "learning_rate" and not cls._hypers_declared:
        return (
            "Declare it: learning_rate: tw.Hyper = tw.Hyper(default=0.01). Or call "
            "self._set_hyper('learning_rate', learning_rate) behind super().__init__()."
        )
    known = [o for o in options if has_rate or o != "lr"]  # its old name alone
    return nearest(name, (*cls._hypers_declared, *known))


def unknown_hyperparameter(
    cls: type[Declared], name: str, known: Iterable[str]
) -> KeyError:
    """An error about a hyperparameter that an optimizer of a class does not have."""
    if name in cls._hypers_declared:
        expected, got = f"a value of {name!r}", "none, and it has no default"
        action = f"Set self.{name} in __init__, or pass {name}= to super().__init__."
        return KeyError(message(cls.__name__, expected, got, action))
    expected = "the name of a hyperparameter"
    return KeyError(message(cls.__name__, expected, repr(name), nearest(name, known)))


def missing_attribute(optimizer: Declared, name: str) -> AttributeError:
    """An error about an attribute that an optimizer does not have.

    Args:
        optimizer: The optimizer; its constructor may not have come so far.
        name: Name of the attribute.
    """
    where = type(optimizer).__name__
    if "_hyper" not in vars(optimizer):
        action = "Call it there first; declared hyperparameters are set by it."
        expected, got = "super().__init__(name) in its __init__", f"{name!r} before it"
        return AttributeError(message(where, expected, got, action))
    text = f"{where} has no attribute {name!r}."
    if name.startswith("_"):
        return AttributeError(text)
    if hasattr(torch.optim.Optimizer, name) or name in ("param_groups", "state"):
        return AttributeError(
            f"{text} It is a name of torch's optimizers; tw.as_torch(optimizer, model) "
            "has them, and this one is used through minimize or apply_gradients."
        )
    question = nearest(name, [n for n in dir(optimizer) if not n.startswith("_")])
    return AttributeError(f"{text} {question}" if question.startswith("Did") else text)


def _refuse_parameters(where: str, rate: Any) -> None:
    """Refuse what torch's optimizers are given first; ``lr=`` would hide it."""
    if isinstance(rate, (torch.nn.Module, Iterator, list, tuple)):
        raise TypeError(
            message(
                f"{where}: learning_rate",
                "a number, a LearningRateSchedule or a callable",
                describe(rate),
                "Variables are handed to minimize or apply_gradients, or to "
                "Model.fit; an optimizer over parameters, as torch has it, is in "
                "thalweg.optim.",
            )
        )


def _constructor_signature(cls: type[Declared]) -> inspect.Signature:
    """The signature that the declarations of a class ask for."""
    kind = inspect.Parameter
    parameters = [kind("self", kind.POSITIONAL_OR_KEYWORD)]
    declared = declared_of(cls, (Hyper, Flag))
    _refuse_reserved(cls, declared)
    for name, field in declared.items():
        required = isinstance(field, Hyper) and field.is_required
        default = kind.empty if required else field.default
        place = kind.KEYWORD_ONLY if field.kw_only else kind.POSITIONAL_OR_KEYWORD
        parameters.append(kind(name, place, default=default))
    by_place = [n for n in cls._positional_options if n not in declared]
    for name in dict.fromkeys([*by_place, "name"]):
        place = kind.POSITIONAL_OR_KEYWORD if name in by_place else kind.KEYWORD_ONLY
        parameters.append(kind(name, place, default=None))
    parameters.append(kind("options", kind.VAR_KEYWORD))
    parameters.sort(key=lambda parameter: parameter.kind)
    try:
        return inspect.Signature(parameters)
    except ValueError:
        raise TypeError(
            message(
                cls.__name__,
                "hyperparameters without a default before those with one",
                ", ".join(declared),
                "Reorder the declarations or give every one a default.",
            )
        ) from None


def _refuse_reserved(cls: type[Declared], declared: Iterable[str]) -> None:
    """Refuse names that a constructor or a rule has a meaning for."""
    for name in declared:
        if name in _RESERVED:
            raise TypeError(
                message(
                    f"{cls.__name__}.{name}",
                    f"a hyperparameter or flag called none of {', '.join(_RESERVED)}",
                    repr(name),
                    "These names are reserved, for every constructor and for the "
                    "number of the step: call it otherwise.",
                )
            )


def _check_update(cls: type[Declared], update: Any) -> None:
    """Refuse an ``update`` whose arguments were not declared."""
    if not isinstance(update, staticmethod):
        raise TypeError(
            message(
                f"{cls.__name__}.update",
                "a static method",
                type(update).__name__,
                "Put @staticmethod in front of it: a rule knows no optimizer.",
            )
        )
    if "scalars" not in vars(cls):  # else it maps hyperparameters by itself
        _check_arguments(cls, update.__func__)


def _check_arguments(cls: type[Declared], function: Any) -> None:
    """Refuse arguments that the class did not declare, or has in another order."""
    rule = Rule.of(function, cls._flags_declared)
    slots = list(cls._slots_declared)
    if list(rule.slots) != slots:
        order = ", ".join(["var", *slots, "grad", "*", *cls._hypers_declared])
        raise TypeError(
            message(
                f"{cls.__name__}.update",
                f"the slots {slots} between variable and gradient",
                str(list(rule.slots)),
                "Name the arguments as the slots, in the order of declaration, and "
                f"put numbers behind a star: update({order}).",
            )
        )
    known = {*cls._hypers_declared, *cls._flags_declared, *cls._states_declared, _STEP}
    unknown = [name for name in (*rule.scalars, *rule.flags) if name not in known]
    if unknown:
        raise TypeError(
            message(
                f"{cls.__name__}.update",
                f"keyword arguments among {sorted(known)}",
                str(unknown),
                _advice(cls, unknown[0], known),
            )
        )


def _advice(cls: type[Declared], name: str, known: set[str]) -> str:
    value = getattr(cls, name, None)
    if isinstance(value, bool):
        return f"Declare it: {name}: tw.Flag = tw.Flag(default={value!r})."
    if isinstance(value, (int, float)):
        return f"Declare it: {name}: tw.Hyper = tw.Hyper(default={value!r})."
    question = nearest(name, known).partition(" Known")[0]
    hint = f"{question} " if question.startswith("Did") else ""
    return f"{hint}Declare each as a tw.Hyper or a tw.Flag."
