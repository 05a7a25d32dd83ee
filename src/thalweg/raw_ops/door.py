"""Doors on rules: check the arguments of a raw op, then run its rule."""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, ParamSpec

from torch.compiler import is_compiling, is_dynamo_compiling

from thalweg.compiler.rule import Rule
from thalweg.errors import describe, message
from thalweg.raw_ops.calls import MISSING, refuse_call, wired
from thalweg.raw_ops.checks import (
    gradient_of,
    number_of,
    numbers_of,
    resources_of,
    shape_message,
)
from thalweg.raw_ops.indices import checked_rows, indices_of
from thalweg.raw_ops.registration import Operator
from thalweg.state import IndexedSlices
from thalweg.step import launch_dense, launch_rows
from thalweg.step.batch import Action, Deed, batch_in_force
from thalweg.step.single import launcher_of

__all__ = [
    "Door",
    "apply_rows",
]

RuleFunction = Callable[..., Any]
Examination = Callable[[Mapping[str, float]], tuple[bool, ...]]
Parameters = ParamSpec("Parameters")

_rule_of = cache(Rule.of)


@cache
def _packer(count: int) -> Callable[..., bytes]:
    return struct.Struct(f"{count}d").pack


_CONSTANT = {float, int, bool}
_MOST_KNOWN = 1024


class Door:
    """A raw op that updates whole variables by a rule.

    Args:
        op: Name of the op, for messages.
        function: The rule, whose arguments have the op's names.
        examine: Given the numbers by name, refuses wrong ones, and gives those of the
            rule's flags that follow from them: the first. By default there are none.
    """

    def __init__(
        self, op: str, function: RuleFunction, examine: Examination | None = None
    ) -> None:
        self._op = op
        self.rule = _rule_of(function)
        self._examine = examine
        self._operator: Operator | None = None
        self._actions: dict[tuple[bool, ...], Action] = {}
        self._num_scalars = len(self.rule.scalars)
        self._known: dict[tuple[Any, ...], Deed] = {}
        self._deeds: dict[bytes, Deed] = {}
        # Settings that tell the call before, its deed, and the numbers they were.
        unknown = [object()] * (len(self.rule.scalars) + len(self.rule.flags))
        self._last: tuple[tuple[Any, ...] | None, Any, list[Any]]
        self._last = None, None, unknown

    def serves(
        self, function: Callable[Parameters, None]
    ) -> Callable[Parameters, None]:
        """Make a raw op that calls `run`, and does nothing else, known to torch.

        Args:
            function: Name, signature and description of the op; its arguments have
                the names of the rule's, and are as those of `registered`.

        Returns:
            The op.
        """
        names = inspect.signature(function).parameters
        settings = [n for n in (*self.rule.scalars, *self.rule.flags) if n in names]
        op = wired(function, self.run, self.rule.tensors, settings)
        self._operator = Operator.of(op)
        self._operator.define()
        return op

    def run(self, tensors: tuple[Any, ...], settings: tuple[Any, ...]) -> None:
        """Run the rule on a variable; inside of a batch, at its end.

        Args:
            tensors: Variable, slots, gradient.
            settings: A number or 0-d tensor for each scalar of the rule, in its order;
                then its flags, except for those that follow from the numbers.

        Raises:
            TypeError: If a resource is no tensor or a scalar no number.
            ValueError: If shapes differ, a dtype is not floating, a scalar is not
                0-d, or a device differs; nothing is written then.
        """
        # True while torch traces Python; asking for every kind of compiling is slower.
        if is_dynamo_compiling() and self._operator is not None:
            self._operator(self._named(tensors, settings))
            return
        batch = batch_in_force()
        # The numbers are most often those of the call before.
        settings_before, deed, _ = self._last
        try:
            # A complex number may equal one of them.
            is_known = settings == settings_before and type(sum(settings)) in _CONSTANT
        except (RuntimeError, TypeError, ValueError):  # what cannot be compared
            is_known = False
        if not is_known:
            if is_compiling() and self._operator is not None:
                self._operator(self._named(tensors, settings))
                return
            deed = (self._deed_of if batch is None else self._kept_deed)(settings)
        if batch is not None:
            batch.add_deed(deed)
            batch.add_tensors(tensors)
            return
        action, numbers = deed
        if action.again(tensors, numbers):
            return
        if is_compiling() and self._operator is not None:
            self._operator(self._named(tensors, settings))
        else:
            action.now(tensors, numbers)

    def _kept_deed(self, settings: tuple[Any, ...]) -> Deed:
        """What is done with these settings: the same object as in an earlier call."""
        try:
            deed = self._known.get(settings)
            if deed is not None and type(sum(settings)) in _CONSTANT:
                return deed
        except TypeError:  # something that cannot be hashed, or added
            pass
        deed = self._deed_of(settings)
        given, _, numbers = self._last
        deed = _keep(self._deeds, _packer(len(numbers))(*numbers), deed)
        if given is not None:
            _keep(self._known, settings, deed)
        self._last = given, deed, numbers
        return deed

    def _deed_of(self, settings: tuple[Any, ...]) -> Deed:
        """What is done with these settings, of which most are those seen last."""
        _, deed_before, numbers_before = self._last
        numbers = numbers_before[: len(settings)]
        is_constant = True
        for place, value in enumerate(settings):
            if value is not numbers[place]:
                is_constant = is_constant and type(value) in _CONSTANT
                numbers[place] = self._number(place, value, settings)
        count = self._num_scalars
        scalars = tuple(numbers[:count])
        is_like = self._examine is None and numbers[count:] == numbers_before[count:]
        if is_like and deed_before is not None:
            action = deed_before[0]
        else:
            action = self._action_of(scalars, numbers[count:])
        deed = action, scalars
        # A tensor may hold another number later; zero equals minus zero.
        is_telling = is_constant and all(scalars)
        self._last = settings if is_telling else None, deed, numbers
        return deed

    def _number(self, place: int, value: Any, settings: tuple[Any, ...]) -> float:
        """What one of the settings is now."""
        if type(value) is float:
            return value
        if value is MISSING:
            self._refuse_missing(self._setting_names(settings), settings)
        if place >= self._num_scalars:
            return bool(value)
        try:
            return number_of(self._op, self.rule.scalars[place], value)
        except OverflowError:
            raise TypeError(
                message(self._op, "numbers of float64", "a larger int", "Scale it.")
            ) from None

    def _action_of(self, scalars: tuple[float, ...], flags: Sequence[Any]) -> Action:
        """What is done with these flags, and those that follow from the numbers."""
        if self._examine is not None:
            named = dict(zip(self.rule.scalars, scalars, strict=True))
            flags = (*self._examine(named), *flags)
        return self._actions.get(tuple(flags)) or self._action(tuple(flags))

    def _action(self, flags: tuple[bool, ...]) -> Action:
        """What is done with these flags."""
        named = dict(zip(self.rule.flags, flags, strict=True))
        again = launcher_of(self.rule, named).again
        action = Action(self.rule, named, again, partial(self._now, named))
        return self._actions.setdefault(flags, action)

    def _now(
        self, flags: Mapping[str, bool], given: Sequence[Any], numbers: Sequence[float]
    ) -> None:
        """Look at everything that was given, then run the rule."""
        op, rule = self._op, self.rule
        self._refuse_missing(rule.tensors, given)
        tensors = resources_of(op, dict(zip(rule.outputs, given, strict=False)))
        grad = gradient_of(op, rule.gradient, given[-1], tensors[0])
        if grad.shape != tensors[0].shape:
            raise ValueError(
                shape_message(op, rule.gradient, grad, rule.var, tensors[0])
            )
        scalars = dict(zip(rule.scalars, numbers, strict=True))
        launch_dense(rule, flags, [*tensors, grad], scalars)

    def _refuse_missing(self, names: Sequence[str], given: Sequence[Any]) -> None:
        """Refuse a call in which one of these was not passed."""
        missing = [n for n, v in zip(names, given, strict=True) if v is MISSING]
        if missing and self._operator is not None:
            arguments = self._operator.arguments
            passed = dict.fromkeys(arguments.keys() - set(missing))
            refuse_call(self._op, arguments, (), passed)

    def _setting_names(self, settings: Sequence[Any]) -> Sequence[str]:
        """Names of the settings; flags that follow from numbers are no arguments."""
        rule = self.rule
        num_derived = len(rule.scalars) + len(rule.flags) - len(settings)
        return (*rule.scalars, *rule.flags[num_derived:])

    def _named(self, tensors: Sequence[Any], settings: Sequence[Any]) -> dict[str, Any]:
        """What was given, by the names of the rule, which are those of the op."""
        names = (*self.rule.tensors, *self._setting_names(settings))
        return dict(zip(names, (*tensors, *settings), strict=True))


def apply_rows(
    op: str,
    function: RuleFunction,
    resources: Mapping[str, Any],
    grad: Any,
    indices: Any,
    scalars: Mapping[str, Any],
    *,
    check_indices: bool | None,
    **flags: bool,
) -> None:
    """Run a rule on rows; duplicates of an index act one after the other.

    Args:
        op: Name of the raw op, for messages.
        function: The rule.
        resources: Variable and slots by argument name, in the rule's order.
        grad: Shape [N, …]: row i belongs to row ``indices[i]`` of the variable.
        indices: Shape [N], int32 or int64.
        scalars: Numbers or 0-d tensors by the rule's names.
        check_indices: Whether indices are checked at once; see `check_deferred`.
        **flags: The rule's flags.

    Raises:
        TypeError: If a resource is no tensor, a scalar no number, or the indices
            are no integers.
        ValueError: If shapes differ, a dtype is not floating, or an index is out of
            range; nothing is written then.
    """
    tensors = resources_of(op, resources)
    grad = gradient_of(op, "grad", grad, tensors[0])
    indices = indices_of(op, indices, tensors[0])
    if indices.ndim != 1:
        raise ValueError(
            message(op, "indices of one dimension", describe(indices), "Flatten them.")
        )
    if grad.shape != indices.shape + tensors[0].shape[1:]:
        raise ValueError(
            message(
                op,
                f"grad of shape {tuple(indices.shape + tensors[0].shape[1:])}",
                describe(grad),
                "Pass one row for each index.",
            )
        )
    numbers = numbers_of(op, scalars)
    with checked_rows(op, indices, tensors, check_indices) as safe:
        slices = IndexedSlices(grad, safe)
        launch_rows(_rule_of(function), flags, tensors, slices, numbers, "sequence")


def _keep(table: dict[Any, Deed], key: Any, deed: Deed) -> Deed:
    """The deed remembered by a key; when there are too many, all are forgotten."""
    if len(table) >= _MOST_KNOWN:
        table.clear()
    return table.setdefault(key, deed)
