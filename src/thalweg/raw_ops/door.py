"""Doors on rules: check the arguments of a raw op, then run its rule."""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ParamSpec

from torch.compiler import is_compiling, is_dynamo_compiling

from thalweg.compiler.rule import Rule, RuleFunction
from thalweg.raw_ops.calls import MISSING, refuse_call, wired
from thalweg.raw_ops.checks import (
    apart_from,
    flag_of,
    gradient_of,
    number_of,
    resources_of,
    shape_message,
    traced_number,
)
from thalweg.raw_ops.registration import Operator, is_traced
from thalweg.step import launch_dense
from thalweg.step.batch import Action, Deed, batch_in_force, flush
from thalweg.step.single import launcher_of

__all__ = ["Door", "Examination"]

Examination = Callable[[str, Mapping[str, float]], tuple[bool, ...]]
"""Given an op's name, and its numbers and flags by name, refuses wrong ones, and gives
those of the rule's flags that follow from them: the first."""
Parameters = ParamSpec("Parameters")

_CONSTANT = frozenset((float, int, bool))
_MOST_KNOWN = 1024


class _Layout(struct.Struct):
    """How numbers are kept; unlike its base it can be copied, with the op it is of."""

    @classmethod
    def of(cls, settings: Sequence[str]) -> _Layout:
        """One number for each setting."""
        return cls(f"{len(settings)}d")

    def __reduce__(self) -> tuple[Any, ...]:
        return _Layout, (self.format,)


class Door:
    """A raw op that updates whole variables by a rule.

    What is done with some settings is found out once: a *deed* is the same object
    whenever the numbers are the same, bit for bit. Deeds are kept by the bytes of
    their numbers. Most calls have the settings of the call before, which is seen
    sooner than a key is made; so the last settings are kept beside.

    Args:
        op: Name of the op, for messages.
        function: The rule, whose arguments have the op's names.
        examine: See `Examination`. By default no flag follows from numbers.
    """

    behind_gradient: tuple[str, ...] = ()
    """Names of arguments that are handed on behind the gradient."""
    can_wait = True
    """Whether calls in a batch are launched at its end."""

    def __init__(
        self, op: str, function: RuleFunction, examine: Examination | None = None
    ) -> None:
        self._op = op
        self.rule = Rule.of(function)
        self._examine = examine
        self.operator: Operator | None = None
        self._gradient = self.rule.gradient
        self._num_scalars = len(self.rule.scalars)
        self._layout = _Layout.of((*self.rule.scalars, *self.rule.flags))
        self._actions: dict[tuple[float, ...], Action] = {}
        self._deeds: dict[bytes, Deed] = {}
        self._last: tuple[tuple[Any, ...] | None, Any] = None, None

    def serves(
        self, function: Callable[Parameters, None]
    ) -> Callable[Parameters, None]:
        """Make a raw op that calls `run`, and does nothing else, known to torch.

        Args:
            function: Name, signature and description of the op; its arguments have
                the names of the rule's; the gradient may be ``grad`` instead. Flags
                are annotated ``bool``.

        Returns:
            The op.

        Example:
            >>> op = torch.ops.thalweg.ResourceApplyGradientDescent.default
            >>> op._schema.arguments[0].alias_info.is_write
            True
        """
        names = inspect.signature(function).parameters
        if self._gradient not in names:
            self._gradient = "grad"
        settings = [n for n in (*self.rule.scalars, *self.rule.flags) if n in names]
        self._layout = _Layout.of(settings)
        op = wired(function, self.run, self.given_names, settings)
        self.operator = Operator.of(op)
        self.operator.define()
        return op

    def run(self, given: tuple[Any, ...], settings: tuple[Any, ...]) -> None:
        """Run the rule on a variable; inside of a batch, at its end.

        Args:
            given: Variable, slots, gradient, and what stands behind it.
            settings: A number or 0-d tensor for each scalar of the rule, in its order;
                then its flags, except for those that follow from the numbers.

        Raises:
            TypeError: If a resource is no tensor or a scalar no number.
            ValueError: If shapes differ, a dtype is not floating, a scalar is not
                0-d, or a device differs; nothing is written then.
        """
        # True while torch traces Python; asking for every kind of compiling is slower.
        if is_dynamo_compiling() and self.operator is not None:
            self.trace(self.operator, given, settings)
            return
        batch = batch_in_force()
        settings_before, deed = self._last
        try:
            # A complex number, or a tensor, may equal one of them.
            is_known = settings == settings_before and type(sum(settings)) in _CONSTANT
        except (RuntimeError, TypeError, ValueError):  # what cannot be compared
            is_known = False
        if not is_known:
            if is_compiling() and self.operator is not None:
                self.trace(self.operator, given, settings)
                return
            deed = self._deed_of(settings)
        if batch is not None:
            if self.can_wait:
                batch.add_deed(deed)
                batch.add_tensors(given)
                return
            flush()
        action, numbers = deed
        if action.again(given, numbers):
            return
        if is_traced() and self.operator is not None:
            self.trace(self.operator, given, settings)
        else:
            action.now(given, numbers)

    def trace(
        self, operator: Operator, given: tuple[Any, ...], settings: tuple[Any, ...]
    ) -> None:
        """Hand a call on to torch; see `run`.

        Args:
            operator: The op as torch knows it.
            given: As for `run`.
            settings: As for `run`.

        Raises:
            TypeError: If an argument is missing, or a scalar or a flag is none. What
                tensors hold, and how they lie, is looked at when the call is run.
        """
        names, first_flag = self._setting_names(settings), self._num_scalars
        self._refuse_missing((*self.given_names, *names), (*given, *settings))
        numbers = zip(names, settings[:first_flag], strict=False)
        flags = zip(names[first_flag:], settings[first_flag:], strict=True)
        looked_at = [
            *(traced_number(self._op, name, value) for name, value in numbers),
            *(flag_of(self._op, name, value) for name, value in flags),
        ]
        operator(self._named(given, looked_at))

    def _deed_of(self, settings: tuple[Any, ...]) -> Deed:
        """What is done with these settings: the same object for the same numbers."""
        is_constant = _CONSTANT.issuperset(map(type, settings))
        numbers: Sequence[Any] = settings
        if not is_constant:
            numbers = [
                v if type(v) in _CONSTANT else self._number(place, v, settings)
                for place, v in enumerate(settings)
            ]
        try:
            key = self._layout.pack(*numbers)
        except struct.error:  # an int that is too large is refused, unless it is a flag
            places = enumerate(settings)
            key = self._layout.pack(*(self._number(*p, settings) for p in places))
        deed = self._deeds.get(key)
        if deed is None:
            self._check_flags(settings)
            if len(self._deeds) >= _MOST_KNOWN:
                self._deeds.clear()
            deed = self._deeds.setdefault(key, self._new_deed(self._layout.unpack(key)))
        # A tensor may hold another number later; zero equals minus zero.
        is_telling = is_constant and all(deed[1])
        self._last = settings if is_telling else None, deed
        return deed

    def _number(self, place: int, value: Any, settings: Sequence[Any]) -> float:
        """What one of the settings is now."""
        if value is MISSING:
            self._refuse_missing(self._setting_names(settings), settings)
        if place < self._num_scalars:
            return number_of(self._op, self.rule.scalars[place], value)
        return flag_of(self._op, self._setting_names(settings)[place], value)

    def _check_flags(self, settings: Sequence[Any]) -> None:
        """Refuse numbers for flags; numbers that are known have been looked at."""
        names = self._setting_names(settings)[self._num_scalars :]
        for name, value in zip(names, settings[self._num_scalars :], strict=True):
            flag_of(self._op, name, value)

    def _new_deed(self, numbers: tuple[float, ...]) -> Deed:
        """What is done with these numbers, and flags behind them."""
        scalars, flags = numbers[: self._num_scalars], numbers[self._num_scalars :]
        if self._examine is not None:
            named = dict(zip(self._setting_names(numbers), numbers, strict=True))
            flags = (*self._examine(self._op, named), *flags)
        action = self._actions.get(flags)  # 0.0 and 1.0 are found as False and True
        if action is None:
            flags = tuple(map(bool, flags))
            action = self._actions.setdefault(flags, self._action(flags))
        return action, scalars

    def _action(self, flags: Sequence[bool]) -> Action:
        """What is done with these flags."""
        named = dict(zip(self.rule.flags, flags, strict=True))
        return Action(self.rule, named, self._again(named), partial(self._now, named))

    def _again(
        self, flags: Mapping[str, bool]
    ) -> Callable[[Sequence[Any], Sequence[float]], bool]:
        return launcher_of(self.rule, flags).again

    def _now(
        self, flags: Mapping[str, bool], given: Sequence[Any], numbers: Sequence[float]
    ) -> None:
        """Look at everything that was given, then run the rule."""
        op, rule = self._op, self.rule
        self._refuse_missing(self.given_names, given)
        tensors = resources_of(op, dict(zip(rule.outputs, given, strict=False)))
        grad = gradient_of(op, self._gradient, given[-1], tensors[0])
        if grad.shape != tensors[0].shape:
            raise ValueError(
                shape_message(op, self._gradient, grad, rule.var, tensors[0])
            )
        grad = apart_from(grad, tensors, by_element=True)
        scalars = dict(zip(rule.scalars, numbers, strict=True))
        launch_dense(rule, flags, [*tensors, grad], scalars)

    def _refuse_missing(self, names: Sequence[str], given: Sequence[Any]) -> None:
        """Refuse a call in which one of these was not passed."""
        missing = [n for n, v in zip(names, given, strict=True) if v is MISSING]
        if missing and self.operator is not None:
            arguments = self.operator.arguments
            passed = dict.fromkeys(arguments.keys() - set(missing))
            refuse_call(self._op, arguments, (), passed)

    @property
    def given_names(self) -> Sequence[str]:
        """Names of the arguments that are handed on as they are."""
        return (*self.rule.outputs, self._gradient, *self.behind_gradient)

    def _setting_names(self, settings: Sequence[Any]) -> Sequence[str]:
        """Names of the settings; flags that follow from numbers are no arguments."""
        rule = self.rule
        num_derived = len(rule.scalars) + len(rule.flags) - len(settings)
        return (*rule.scalars, *rule.flags[num_derived:])

    def _named(self, given: Sequence[Any], settings: Sequence[Any]) -> dict[str, Any]:
        """What was given, by the names of the rule, which are those of the op."""
        names = (*self.given_names, *self._setting_names(settings))
        return dict(zip(names, (*given, *settings), strict=True))
