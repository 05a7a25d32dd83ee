"""Calls of raw ops: all arguments by name, and words for a call that is wrong."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

from torch.compiler import is_dynamo_compiling

from thalweg.errors import describe, message, nearest

__all__ = ["MISSING", "explained", "refuse_call", "wired"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

EMPTY = inspect.Parameter.empty


class _Missing:
    """What an argument without a default is when nothing was passed."""

    def __repr__(self) -> str:
        return "nothing"


MISSING: Any = _Missing()


def refuse_call(
    op: str,
    arguments: Mapping[str, Any],
    positional: Sequence[object] = (),
    given: Mapping[str, object] | None = None,
) -> NoReturn:
    """Refuse a call whose arguments are not those of the op.

    Args:
        op: Name of the op.
        arguments: Its arguments in order, and their defaults.
        positional: What was passed without a name.
        given: What was passed by name.

    Raises:
        TypeError: Always; it has the signature of the op.
    """
    given = given or {}
    listing = ", ".join(
        name if default is EMPTY else f"{name}={default!r}"
        for name, default in arguments.items()
    )
    unknown = [name for name in given if name not in arguments]
    missing = [n for n, d in arguments.items() if d is EMPTY and n not in given]
    if positional:
        got = [f"{describe(positional[0])} without a name"]
        first, second = [*arguments, "name"][:2]
        advice = f"Name each argument: {op}({first}=…, {second}=…)."
    else:
        got = [*(f"no {name}" for name in missing), *map(repr, unknown)]
        advice = "Pass it."
        if unknown:
            # torch cannot trace the search for a name that is near.
            is_traced = is_dynamo_compiling()
            advice = "Use these." if is_traced else nearest(unknown[0], arguments)
    expected = f"the keyword arguments {listing}"
    raise TypeError(message(op, expected, ", ".join(got), advice)) from None


def explained(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let an op that takes keywords only say what a wrong call should have been.

    Args:
        function: The op.

    Returns:
        A function that calls it.
    """
    parameters = inspect.signature(function).parameters
    arguments = {name: p.default for name, p in parameters.items()}

    @functools.wraps(function)
    def call(*args: Parameters.args, **given: Parameters.kwargs) -> Result:
        try:
            return function(*args, **given)
        except TypeError as error:
            # Python itself refused the call: there is no frame of the function.
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:
                refuse_call(function.__name__, arguments, args, given)
            raise

    return call


def wired(
    function: Callable[Parameters, None],
    run: Callable[[tuple[Any, ...], tuple[Any, ...]], None],
    tensors: Sequence[str],
    settings: Sequence[str],
) -> Callable[Parameters, None]:
    """Write the op that a function declares: it hands its arguments on.

    A function around the declared one would take as long as all checks of a call do,
    so that the op's own text is made, as dataclasses make theirs.

    Args:
        function: Name, signature and description of the op; it is not called.
        run: Takes the values of ``tensors`` and ``settings``. What was not passed and
            has no default is `MISSING`.
        tensors: Names of arguments.
        settings: Names of arguments.

    Returns:
        The op.

    Example:
        >>> def Apply(*, var, lr, name=None): ...
        >>> wired(Apply, print, ["var"], ["lr"])(var=1, lr=2)
        (1,) (2,)
    """
    op, parameters = function.__name__, inspect.signature(function).parameters
    arguments = {name: p.default for name, p in parameters.items()}
    declared = ", ".join(
        f"{name}={'missing' if default is EMPTY else repr(default)}"
        for name, default in arguments.items()
    )
    given, others = (
        "".join(f"{name}, " for name in part) for part in (tensors, settings)
    )
    text = f"""
def wire(run, refuse, missing):
    def {op}(*positional, {declared}, **unknown):
        if positional or unknown:
            refuse(positional, unknown)
        run(({given}), ({others}))
    return {op}
"""

    def refuse(positional: Sequence[object], unknown: Mapping[str, object]) -> None:
        refuse_call(op, arguments, positional, {**dict.fromkeys(arguments), **unknown})

    names: dict[str, Any] = {}
    exec(compile(text, f"<raw op {op}>", "exec"), function.__globals__, names)
    return functools.update_wrapper(names["wire"](run, refuse, MISSING), function)
