"""Doors on rules: check the arguments of a raw op, then run its rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, ParamSpec

import torch

from thalweg.compiler.rule import Rule
from thalweg.errors import describe, message
from thalweg.raw_ops.indices import checked_rows, indices_of
from thalweg.raw_ops.registration import Operator
from thalweg.state import IndexedSlices, handle_of
from thalweg.step import launch_dense, launch_rows
from thalweg.step.batch import Action, calling, flush
from thalweg.step.single import Launcher, launcher_of

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
Parameters = ParamSpec("Parameters")

_rule_of = cache(Rule.of)
_FLOAT = {float}
_MOST_KNOWN = 64


class Door:
    """A raw op that updates whole variables by a rule.

    Args:
        op: Name of the op, for messages.
        function: The rule, whose arguments have the op's names.
    """

    def __init__(self, op: str, function: RuleFunction) -> None:
        self._op = op
        self.rule = _rule_of(function)
        self._operator: Operator | None = None
        self._ways: dict[tuple[Any, ...], tuple[Action, Launcher]] = {}
        self._known: dict[tuple[Any, ...], tuple[float, ...]] = {}

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

    def run(
        self, tensors: tuple[Any, ...], numbers: tuple[Any, ...], *flags: bool
    ) -> None:
        """Run the rule on a variable; inside of a batch, at its end.

        Args:
            tensors: Variable, slots, gradient.
            numbers: A number or 0-d tensor for each scalar of the rule, in its order.
            *flags: Each of the rule's flags, in its order.

        Raises:
            TypeError: If a resource is no tensor or a scalar no number.
            ValueError: If shapes differ, a dtype is not floating, a scalar is not
                0-d, or a device differs; nothing is written then.
        """
        if torch.compiler.is_compiling() and self._operator is not None:
            self._operator(self._named(tensors, numbers, flags))
            return
        action, launcher = self._ways.get(flags) or self._way(flags)
        try:
            # The numbers of a step are most often those of the variable before.
            numbers = self._known[numbers]
        except (KeyError, TypeError):
            numbers = self._floats(numbers)
        batch = calling.batch
        if batch is not None:
            batch.append((action, tensors, numbers))
        elif not launcher.again(tensors, numbers):
            action.now(tensors, numbers)

    def _way(self, flags: tuple[Any, ...]) -> tuple[Action, Launcher]:
        """What is done with these flags, and what does it again."""
        flags = tuple(map(bool, flags))
        if flags not in self._ways:
            named = dict(zip(self.rule.flags, flags, strict=True))
            action = Action(self.rule, named, partial(self._now, named))
            self._ways[flags] = action, launcher_of(self.rule, named)
        return self._ways[flags]

    def _floats(self, numbers: tuple[Any, ...]) -> tuple[float, ...]:
        """What the numbers are now: a tensor may hold another one later."""
        if {*map(type, numbers)} != _FLOAT:
            named = zip(self.rule.scalars, numbers, strict=True)
            return tuple(number_of(self._op, name, number) for name, number in named)
        # Zero would be taken for minus zero.
        if 0.0 not in numbers:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[numbers] = numbers
        return numbers

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

    def _named(
        self, tensors: Sequence[Any], numbers: Sequence[Any], flags: Sequence[bool]
    ) -> dict[str, Any]:
        """What was given, by the names of the rule, which are those of the op."""
        rule = self.rule
        names = (*rule.tensors, *rule.scalars, *rule.flags)
        return dict(zip(names, (*tensors, *numbers, *flags), strict=True))


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
    if isinstance(value, (int, float)):
        return float(value)
    if hasattr(value, "shape") and tuple(value.shape) != ():
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
