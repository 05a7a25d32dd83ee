"""Exception types, the one way this package words a refusal, and whom it warns.

Every message has the same parts: where it happened, what was expected, what arrived,
and what to do about it. This module imports neither torch nor NumPy, so that the
command line can name a mistake without paying for either.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterable
from pathlib import Path

_MAX_REPR_LENGTH = 80
_MAX_LISTED = 12
_MAX_CLOSE = 3
_MARGIN = 0.1
_OWN = str(Path(__file__).parent) + os.sep
_OTHER_WORDS = {
    "alpha": ("rho",),
    "b1": ("beta_1", "betas"),
    "b2": ("beta_2", "betas"),
    "beta1": ("beta_1", "betas"),
    "beta2": ("beta_2", "betas"),
    "beta_1": ("betas",),
    "beta_2": ("betas",),
    "betas": ("beta_1", "beta_2"),
    "crossentropyloss": ("sparse_categorical_crossentropy",),
    "ema_decay": ("ema_momentum",),
    "ema_momentum": ("ema_decay",),
    "eps": ("epsilon",),
    "epsilon": ("eps",),
    "eta": ("learning_rate", "lr"),
    "global_clipnorm": ("max_grad_norm",),
    "l1loss": ("mean_absolute_error",),
    "learning_rate": ("lr",),
    "lr": ("learning_rate",),
    "max_grad_norm": ("global_clipnorm",),
    "mseloss": ("mean_squared_error",),
    "rho": ("alpha",),
    "step_size": ("learning_rate", "lr"),
    "use_ema": ("ema_decay",),
    "wd": ("weight_decay",),
}
"""What other libraries call a thing, in lower case, and what it may be called here."""


class TraceError(TypeError):
    """An update rule uses something that the compiler cannot express."""


class RowIndexError(IndexError, ValueError):
    """An index of a sparse gradient names no row of its variable.

    It is both: what the host finds is a wrong argument, what a GPU finds in an earlier
    step is not one of this call.
    """


class CheckpointError(ValueError):
    """A checkpoint does not fit the objects, or its files are not sound."""


def message(where: str, expected: str, got: str, action: str) -> str:
    """Word a refusal: where, what was expected, what arrived, what to do.

    Args:
        where: The public call, with the name of the variable if there is one.
        expected: A phrase, without a full stop.
        got: A phrase, without a full stop; see `describe`.
        action: One or more whole sentences.

    Returns:
        "where: expected E; got G. ACTION".

    Example:
        >>> message("assign", "shape (2,)", "shape (3,)", "Reshape the value.")
        'assign: expected shape (2,); got shape (3,). Reshape the value.'
    """
    text = f"{where}: expected {expected}; got {got}."
    return f"{text} {action}" if action else text


def describe(value: object) -> str:
    """Say in a few words what a value is, without printing its numbers.

    Tensors are named by dtype, shape and device; rows (`IndexedSlices`) by their
    count too; NumPy arrays by dtype and shape; anything else by type and short text.

    Args:
        value: Anything at all.

    Returns:
        A phrase that fits behind "got".

    Example:
        >>> describe(None), describe(3), describe([1, 2])
        ('None', '3 (int)', 'a list of 2 items')
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if all(hasattr(value, name) for name in ("values", "indices", "dense_shape")):
        return _describe_rows(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return _describe_array(value)
    if isinstance(value, (list, tuple, dict, set, frozenset)):
        return with_article(f"{type(value).__name__} of {_count(len(value))}")
    if "\n" in repr(value) or type(value).__repr__ is object.__repr__:
        # An address, or the first of many lines, says less than the class.
        return f"an object of {type(value).__module__}.{type(value).__qualname__}"
    return f"{_short(value)} ({type(value).__name__})"


def with_article(text: str) -> str:
    """Put "a" or "an" before a phrase, such as one of `describe`.

    Args:
        text: A phrase that begins with the name of a dtype or a class.

    Returns:
        The phrase with its article.

    Example:
        >>> with_article("int64 tensor"), with_article("uint8 tensor")
        ('an int64 tensor', 'a uint8 tensor')
    """
    # A "u" begins unsigned integers and names such as UserDict, spoken with a "y".
    return f"{'an' if text[:1].lower() in tuple('aeio') else 'a'} {text}"


def nearest(name: object, known: Iterable[str]) -> str:
    """Suggest the known names that are closest to an unknown one.

    Args:
        name: What the user wrote.
        known: The names that would have been understood.

    Returns:
        "Did you mean 'adam'? Known: adam, sgd.", without the question when nothing
        comes close. Where something does, a long list is left out.

    Example:
        >>> nearest("Adm", ["sgd", "adam"])
        "Did you mean 'adam'? Known: adam, sgd."
        >>> nearest("betas", ["beta_1", "beta_2", "epsilon"])
        "Did you mean 'beta_1' or 'beta_2'? Known: beta_1, beta_2, epsilon."
    """
    names = sorted(set(known))
    if not names:
        return "Nothing is known here."
    listing = f"Known: {', '.join(names)}."
    close = _closest(str(name).lower(), names)
    if not close:
        return listing
    question = f"Did you mean {' or '.join(map(repr, close))}?"
    return question if len(names) > _MAX_LISTED else f"{question} {listing}"


def level_of_caller() -> int:
    """The `stacklevel` by which a warning shows the line that called this package.

    Python 3.12 has `skip_file_prefixes` for this.

    Returns:
        A level for a `warnings.warn` in the function that asks.

    Example:
        >>> level_of_caller()  # the next frame up is no longer of the package
        1
    """
    own = inspect.currentframe()
    frame, level = own.f_back if own else None, 1
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        frame, level = frame.f_back, level + 1
    return level


def _closest(name: str, names: list[str]) -> list[str]:
    """Up to a few names that one may have meant, the likeliest first."""
    said = [one for one in _OTHER_WORDS.get(name, ()) if one in names]
    if said:
        return said
    folded = {known_name.lower(): known_name for known_name in reversed(names)}
    found = difflib.get_close_matches(name, folded, n=_MAX_CLOSE)
    likeness = {f: difflib.SequenceMatcher(None, f, name).ratio() for f in found}
    # What is much less like it than the first would only distract.
    least = max(likeness.values(), default=0.0) - _MARGIN
    near = [one for one in found if likeness[one] >= least]
    return [folded[one] for one in sorted(near, key=lambda f: (-likeness[f], f))]


def _describe_array(value: object) -> str:
    kind = "array" if type(value).__module__.startswith("numpy") else "tensor"
    shape = tuple(getattr(value, "shape", ()))
    text = f"{_dtype_name(value)} {kind} of shape {shape}"
    device = getattr(value, "device", None)
    return text if kind == "array" or device is None else f"{text} on {device}"


def _describe_rows(value: object) -> str:
    shape = tuple(getattr(getattr(value, "values", None), "shape", ()))
    if not shape:
        return f"{_short(value)} ({type(value).__name__})"
    dense = getattr(value, "dense_shape", None)
    rows = f"{shape[0]} row{'' if shape[0] == 1 else 's'}"
    total = "unknown shape" if dense is None else f"shape {tuple(dense)}"
    kind = f"{_dtype_name(value)} IndexedSlices with {rows} of shape {shape[1:]}"
    return f"{kind} of a variable of {total} on {getattr(value, 'device', None)}"


def _dtype_name(value: object) -> str:
    return str(getattr(value, "dtype", "")).removeprefix("torch.")


def _count(number: int) -> str:
    return f"{number} item{'' if number == 1 else 's'}"


def _short(value: object) -> str:
    text = repr(value)
    if len(text) <= _MAX_REPR_LENGTH:
        return text
    return text[: _MAX_REPR_LENGTH - 1] + "…"
