"""How a call of torch's fits a spelling: keywords at their defaults, other names.

Python functions of torch hand on all their keywords, those too that nobody wrote:
`F.relu(x)` arrives as `relu(x, inplace=False)`, `torch.norm(x)` with `out=None`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

__all__ = ["NoMeaningError", "call"]

_DEFAULTS: Mapping[str, tuple[object, ...]] = {
    "out": (None,),
    "inplace": (False,),
    "dtype": (None,),
    "layout": (None,),
    "device": (None,),
    "requires_grad": (False,),
    "pin_memory": (None, False),
    "memory_format": (None, torch.preserve_format, torch.contiguous_format),
}
"""Keywords that change nothing at these values."""

_OTHER_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("input", "self", "a", "x1", "A"), "x"),
    "x2": "other",
    "axis": "dim",
    "keepdims": "keepdim",
}
"""Names that torch takes for the same argument."""

_WRITES = ("out", "inplace")
_ACTIONS = {
    "dtype": "Leave it out: sums run in float64, the rest in the kernel's own type.",
}


class NoMeaningError(TypeError):
    """A call that a spelling does not cover.

    Attributes:
        parts: What was expected, what arrived, and what to do.
    """

    def __init__(self, expected: str, got: str, action: str) -> None:
        super().__init__(f"expected {expected}; got {got}. {action}")
        self.parts = expected, got, action


def call(
    name: str,
    meaning: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """Call a spelling as torch's function of that name is called.

    Args:
        name: Name of the function or method.
        meaning: Its spelling.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Returns:
        What the spelling returns.

    Raises:
        NoMeaningError: If the spelling takes no such arguments.

    Example:
        >>> def total(x, dim=None, keepdim=False):
        ...     return x, dim, keepdim
        >>> call("sum", total, [], {"input": 2, "axis": -1, "out": None})
        (2, -1, False)
    """
    signature = _signature(meaning)
    given: dict[str, Any] = {}
    for keyword, value in kwargs.items():
        if keyword not in signature.parameters:
            defaults = _DEFAULTS.get(keyword, ())
            if any(value is default for default in defaults):
                continue
            keyword = _OTHER_NAMES.get(keyword, keyword)
        given[keyword] = value
    try:
        signature.bind(*args, **given)
    except TypeError:
        raise _misfit(name, signature, args, given) from None
    return meaning(*args, **given)


@cache
def _signature(meaning: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(meaning)
    plain = inspect.Parameter.empty
    return signature.replace(
        parameters=[p.replace(annotation=plain) for p in signature.parameters.values()],
        return_annotation=plain,
    )


def _misfit(
    name: str,
    signature: inspect.Signature,
    args: Sequence[Any],
    given: Mapping[str, Any],
) -> NoMeaningError:
    unknown = [keyword for keyword in given if keyword not in signature.parameters]
    expected = f"{name}{signature}".replace("(x", "(input").replace(" x,", " input,")
    if not unknown:
        count = len(args) + len(given)
        got = f"{count} argument{'s' * (count != 1)}"
        return NoMeaningError(expected, got, "Pass what it names.")
    keyword = unknown[0]
    if keyword in _WRITES:
        action = "Leave it out and give the new value a new name."
        got = f"{keyword}=, a change in place"
        return NoMeaningError("a pure function", got, action)
    return NoMeaningError(
        expected, f"the keyword {keyword!r}", _ACTIONS.get(keyword, "Leave it out.")
    )
