"""How tracing refuses: the rule, the user's line, and what to write instead."""

from __future__ import annotations

import inspect
import linecache
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thalweg.errors import TraceError, message

__all__ = [
    "Place",
    "current_place",
    "place_of_error",
    "place_of_function",
    "refusal",
    "value_refusal",
]

Place = tuple[str, int]
"""File and line."""

_OWN = Path(__file__).parent
_NO_USERS = (
    *(str(Path(str(library.__file__)).parent) for library in (torch, np)),
    str(_OWN),
    str(_OWN.with_name("step")),
    "<frozen",
)
_NUMPY_CALL = re.compile(r"\b(?:np|numpy)\.[\w.]+(?=\()")


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


def value_refusal(
    name: str, place: Place | None, expected: str, got: str, action: str
) -> TraceError:
    """The same where NumPy may be to blame, which then is named."""
    found = _NUMPY_CALL.search(linecache.getline(*place)) if place else None
    if found:
        got = f"{got} (in {found[0]})"
        action = "Use torch: NumPy's functions know no traced values."
    return refusal(name, place, expected, got, action)


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
    """Where a function is defined."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code else None
