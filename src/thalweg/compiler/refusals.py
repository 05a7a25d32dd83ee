"""How tracing refuses: the rule, the user's line, and what to write instead."""

from __future__ import annotations

import inspect
import linecache
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from thalweg.compiler.free_numbers import Outside
from thalweg.compiler.graph import Operand, label_of, operands_of
from thalweg.compiler.spelling import MATH_FUNCTIONS
from thalweg.errors import TraceError, message

__all__ = [
    "COMPOSED_OF",
    "Place",
    "current_place",
    "outside_refusal",
    "place_of_error",
    "place_of_function",
    "refusal",
    "text_of",
    "unknown_math_call",
    "value_refusal",
    "what_was_raised",
]

Place = tuple[str, int]
"""File and line."""

COMPOSED_OF = "composed_of"
"""Attribute of a function made around a rule's own: that one."""

_OWN = Path(__file__).parent
_NO_USERS = (
    # With an end, as other packages may have names that begin like these.
    *(f"{Path(str(library.__file__)).parent}{os.sep}" for library in (torch, np)),
    f"{_OWN}{os.sep}",
    f"{_OWN.with_name('step')}{os.sep}",
    "<frozen",
)
_NUMPY_CALL = re.compile(r"\b(?:np|numpy)\.[\w.]+(?=\()")
_MATH_CALL = re.compile(r"\bmath\.(\w+)\(")
_SYMBOLS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}


def refusal(
    name: str, place: Place | None, expected: str, got: str, action: str
) -> TraceError:
    """An error that names the rule and a line.

    Args:
        name: The rule's name.
        place: Where it happened, if that is known.
        expected: As for `thalweg.errors.message`.
        got: As for `thalweg.errors.message`.
        action: As for `thalweg.errors.message`.
    """
    where = f"rule {name}"
    if place:
        where += f" ({place[0]}:{place[1]})"
    return TraceError(message(where, expected, got, action))


def outside_refusal(name: str, outside: Outside) -> TraceError:
    """An error about what a rule reads besides its arguments.

    Args:
        name: The rule's name.
        outside: What it reads.
    """
    what, action = "number", "Make it a Hyper or a scalar argument."
    if outside.is_bool:
        what = "bool"
        action = "Make it a flag: a tw.Flag, or an argument annotated bool."
    place, got = (outside.file, outside.line), f"the outside {what} {outside.name!r}"
    return refusal(name, place, f"{what}s as keyword-only arguments", got, action)


def value_refusal(
    name: str, place: Place | None, expected: str, got: str, action: str
) -> TraceError:
    """The same where NumPy may be to blame, which then is named."""
    found = _NUMPY_CALL.search(linecache.getline(*place)) if place else None
    if found:
        got = f"{got} (in {found[0]})"
        action = "Use torch: NumPy's functions know no traced values."
    return refusal(name, place, expected, got, action)


def what_was_raised(error: Exception) -> tuple[str, str]:
    """An exception in the words of whom it meets, and what to do about it."""
    text = (
        str(error).partition(", but expected one of")[0].replace("RuleProxy", "value")
    )
    action = "The rule itself raised it."
    if "must be Tensor, not" in text:
        action = "Torch wants a tensor there: write torch.clamp, or torch.full_like."
    elif isinstance(error, (TypeError, ValueError)):
        action = "Use torch functions as torch takes them, math functions, operators."
    return f"{type(error).__name__}: {text}", action


def unknown_math_call(place: Place | None) -> str | None:
    """The function of math in a line that takes no values of a rule, if any."""
    names = _MATH_CALL.findall(linecache.getline(*place)) if place else []
    return next((name for name in names if name not in MATH_FUNCTIONS), None)


def text_of(value: Operand) -> str:
    """A traced value as a user would write it, as far as that is short."""
    if not isinstance(value, fx.Node):
        return f"{value:g}"
    if value.op == "placeholder":
        return label_of(value)
    name = str(value.target)
    if name not in _SYMBOLS:
        return f"{name}(…)"
    one, other = map(text_of, operands_of(value))
    return f"{one} {_SYMBOLS[name]} {other}"


def _is_users(file: str) -> bool:
    return not file.startswith(_NO_USERS)


def current_place() -> Place | None:
    """The innermost line that is the user's."""
    frame = inspect.currentframe()
    while frame is not None and not _is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame else None


def place_of_error(error: BaseException) -> Place | None:
    """The innermost line of the user's that an exception came through."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    places = ((frame.filename, frame.lineno or 0) for frame in frames)
    return next((place for place in places if _is_users(place[0])), None)


def place_of_function(function: Callable[..., Any]) -> Place | None:
    """Where a function is defined, or that which it was composed of."""
    own = getattr(function, COMPOSED_OF, function)
    code = getattr(inspect.unwrap(own), "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code else None
