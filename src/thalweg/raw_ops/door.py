"""Doors on rules: check the arguments of a raw op, then run its rule."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, ParamSpec

import torch
from torch.compiler import is_compiling, is_dynamo_compiling

from thalweg.compiler.rule import Rule
from thalweg.errors import describe, message
from thalweg.raw_ops.indices import checked_rows, indices_of
from thalweg.raw_ops.registration import Operator
from thalweg.state import IndexedSlices, handle_of
from thalweg.step import launch_dense, launch_rows
from thalweg.step.batch import Action, Deed, calling, flush
from thalweg.step.single import launcher_of

__all__ = [
    "Door",
    "apply_rows",
    "check_not_negative",
    "check_not_positive",
    "check_positive",
    "numbers_of",
    "resource_of",
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
        self._known_deed = self._known.get
        self._deeds: dict[bytes, Deed] = {}

    def serves(
        self, function: Callable[Parameters, None]
    ) -> Callable[Parameters, None]:
        """Make a raw op that calls `run`, and does nothing else, known to torch.

        Args:
            function: The op; its arguments are as those of `registered`.

        Returns:
            The function itself.
        """
        self._operator = Operator.of(function)
        self._operator.define()
        return function

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
        try:
            # The numbers of a step are most often those of the variable before.
            deed = self._known_deed(settings)
        except TypeError:  # something that cannot be hashed
            deed = None
        if deed is None:
            if is_compiling() and self._operator is not None:
                self._operator(self._named(tensors, settings))
                return
            deed = self._deed_of(settings)
        batch = calling.batch
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

    def _deed_of(self, settings: tuple[Any, ...]) -> Deed:
        """What is done with these settings; most often the same object as before."""
        is_constant = _CONSTANT.issuperset(map(type, settings))
        if is_constant and 0.0 not in settings[: self._num_scalars]:
            deed = self._make(settings)
            _keep(self._known, settings, deed)
            return deed
        # A tensor may hold another number later; zero equals minus zero.
        numbers = settings if is_constant else self._numbers(settings)
        bits = _packer(len(numbers))(*numbers)
        deed = self._deeds.get(bits)
        if deed is None:
            deed = self._make(numbers)
            _keep(self._deeds, bits, deed)
        return deed

    def _numbers(self, settings: tuple[Any, ...]) -> list[Any]:
        """What the settings are now."""
        op, names = self._op, self.rule.scalars
        numbers = list(settings)
        for place, value in enumerate(settings):
            if type(value) not in _CONSTANT:
                is_flag = place >= self._num_scalars
                number = bool(value) if is_flag else number_of(op, names[place], value)
                numbers[place] = number
        return numbers

    def _make(self, settings: Sequence[float]) -> Deed:
        count = self._num_scalars
        try:
            numbers = tuple(map(float, settings[:count]))
        except OverflowError:
            raise TypeError(
                message(self._op, "numbers of float64", "a larger int", "Scale it.")
            ) from None
        flags = tuple(map(bool, settings[count:]))
        if self._examine is not None:
            named = dict(zip(self.rule.scalars, numbers, strict=True))
            flags = (*self._examine(named), *flags)
        return self._actions.get(flags) or self._action(flags), numbers

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
        tensors = _resources(op, dict(zip(rule.outputs, given, strict=False)))
        grad = _gradient(op, rule.gradient, given[-1], tensors[0])
        if grad.shape != tensors[0].shape:
            raise ValueError(
                _shape_message(op, rule.gradient, grad, rule.var, tensors[0])
            )
        scalars = dict(zip(rule.scalars, numbers, strict=True))
        launch_dense(rule, flags, [*tensors, grad], scalars)

    def _named(self, tensors: Sequence[Any], settings: Sequence[Any]) -> dict[str, Any]:
        """What was given, by the names of the rule, which are those of the op."""
        rule = self.rule
        num_derived = len(rule.scalars) + len(rule.flags) - len(settings)
        names = (*rule.tensors, *rule.scalars, *rule.flags[num_derived:])
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
    tensors = _resources(op, resources)
    grad = _gradient(op, "grad", grad, tensors[0])
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


def _keep(table: dict[Any, Any], key: Any, deed: Deed) -> None:
    """Remember a deed; when there are too many of them, all are forgotten."""
    if len(table) >= _MOST_KNOWN:
        table.clear()
    table[key] = deed


def resource_of(op: str, name: str, value: Any) -> torch.Tensor:
    """The tensor that a resource argument stands for."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            message(
                f"{op}: {name}",
                "a Variable, its handle, or a tensor",
                describe(value),
                "Pass var=variable.handle.",
            )
        )
    # What was called before must be done before this op reads or writes.
    flush()
    return handle_of(value)


def number_of(op: str, name: str, value: Any) -> float:
    """The number that a scalar argument stands for."""
    if isinstance(value, torch.Tensor) and not value.dim():
        value = value.item()
        if type(value) is float:
            return value
    if getattr(value, "shape", None):
        raise ValueError(
            message(
                f"{op}: {name}",
                "a scalar",
                describe(value),
                "Pass a number or 0-d tensor.",
            )
        )
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            message(
                f"{op}: {name}",
                "a number or a 0-d tensor",
                describe(value),
                "Pass one.",
            )
        ) from None


def numbers_of(op: str, scalars: Mapping[str, Any]) -> Mapping[str, float]:
    """The numbers that scalar arguments stand for, by name."""
    return {name: number_of(op, name, value) for name, value in scalars.items()}


def check_positive(op: str, name: str, number: float) -> None:
    """Refuse a number that is not above zero."""
    if not number > 0:
        raise ValueError(_number_message(op, name, "a positive scalar", number))


def check_not_negative(op: str, name: str, number: float) -> None:
    """Refuse a number below zero."""
    if not number >= 0:
        raise ValueError(_number_message(op, name, "a non-negative scalar", number))


def check_not_positive(op: str, name: str, number: float) -> None:
    """Refuse a number above zero."""
    if not number <= 0:
        raise ValueError(_number_message(op, name, "a non-positive scalar", number))


def _resources(op: str, resources: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors behind resource arguments, of one shape and floating dtype."""
    tensors: list[torch.Tensor] = []
    shape: torch.Size | None = None
    for name, value in resources.items():
        tensor = resource_of(op, name, value)
        if not tensor.is_floating_point():
            raise ValueError(_dtype_message(op, name, tensor))
        if shape is None:
            shape = tensor.shape
        elif tensor.shape != shape:
            first = next(iter(resources))
            raise ValueError(_shape_message(op, name, tensor, first, tensors[0]))
        tensors.append(tensor)
    return tensors


def _gradient(op: str, name: str, grad: Any, var: torch.Tensor) -> torch.Tensor:
    if not isinstance(grad, torch.Tensor):
        grad = torch.as_tensor(grad, dtype=var.dtype, device=var.device)
    if not grad.is_floating_point() or grad.device != var.device or grad.is_sparse:
        raise ValueError(
            message(
                f"{op}: {name}",
                f"a dense floating tensor on {var.device}",
                describe(grad),
                "Move or convert it first.",
            )
        )
    return grad


def _dtype_message(op: str, name: str, got: torch.Tensor) -> str:
    advice = "Pass torch.view_as_real of it." if got.is_complex() else "Cast it."
    return message(f"{op}: {name}", "a floating tensor", describe(got), advice)


def _number_message(op: str, name: str, expected: str, number: float) -> str:
    action = "Nothing was written; pass another number."
    return message(f"{op}: {name}", expected, repr(number), action)


def _shape_message(
    op: str, name: str, got: torch.Tensor, var_name: str, var: torch.Tensor
) -> str:
    return message(
        op,
        f"{name} of the shape of {var_name}, {tuple(var.shape)}",
        describe(got),
        f"{var_name} and {name} must have the same shape.",
    )
