"""The rule type: an update function together with the roles of its arguments.

A rule is a plain function ``(var, *slots, grad, *, scalars, flags)`` that returns
the new variable and the new slots in the order of its arguments. Nothing but the
signature says which argument plays which role, so that the formula stays the only
text.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from thalweg.errors import message

__all__ = ["Rule", "RuleFunction"]

RuleFunction = Callable[..., Any]
_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)


@dataclass(frozen=True, eq=False)
class Rule:
    """An update function and the roles of its arguments.

    Rules are equal if they are the same object; `of` gives one for each function.

    Attributes:
        function: The update function itself.
        name: Name that kernels and messages use, with that of its class.
        var: Name of the variable argument, the first one.
        slots: Names of the slot arguments, between variable and gradient.
        gradient: Name of the gradient argument, the last positional one.
        scalars: Names of the per-step numbers.
        flags: Names of the Python bools the function may branch on.

    Example:
        >>> def descent(var, delta, *, alpha):
        ...     return var - alpha * delta
        >>> Rule.of(descent).gradient
        'delta'
    """

    function: RuleFunction
    name: str
    var: str
    slots: tuple[str, ...]
    gradient: str
    scalars: tuple[str, ...]
    flags: tuple[str, ...]

    @classmethod
    def of(cls, function: RuleFunction, flags: Iterable[str] = ()) -> Rule:
        """Read the roles of a function's arguments from its signature.

        Args:
            function: ``(var, *slots, grad, *, scalars, flags)``. A keyword-only
                argument annotated ``bool`` is a flag, any other one a scalar.
            flags: Names of further flags, for functions without annotations.

        Returns:
            The rule; the same object for the same function and flags.

        Raises:
            TypeError: If there are fewer than two positional arguments, or if the
                function takes ``*args`` or ``**kwargs``.
        """
        return _rule_of(function, frozenset(flags))

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensor arguments in order: variable, slots, gradient."""
        return (self.var, *self.slots, self.gradient)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what the function returns, in order: variable, slots."""
        return (self.var, *self.slots)


@cache
def _rule_of(function: RuleFunction, flags: frozenset[str]) -> Rule:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    name = name.rpartition("<locals>.")[2]
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p.name for p in parameters if p.kind in _POSITIONAL]
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    if len(positional) < 2 or len(positional) + len(keywords) != len(parameters):
        raise TypeError(
            message(
                f"rule {name}",
                "a signature (var, *slots, grad, *, scalars)",
                f"({', '.join(str(p) for p in parameters)})",
                "Name every tensor as a positional argument, every number as a "
                "keyword-only one.",
            )
        )
    is_flag = {
        p.name: p.annotation in (bool, "bool") or p.name in flags for p in keywords
    }
    return Rule(
        function=function,
        name=name,
        var=positional[0],
        slots=tuple(positional[1:-1]),
        gradient=positional[-1],
        scalars=tuple(n for n, flag in is_flag.items() if not flag),
        flags=tuple(n for n, flag in is_flag.items() if flag),
    )
