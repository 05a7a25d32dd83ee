"""Float64 arithmetic on Python numbers that never raises.

Python raises where IEEE 754 has an answer: ``1.0 / 0.0``, ``math.log(0.0)``,
``math.exp(1000.0)``. The scalar part of a rule must behave the same in Python and in
the generated text, so these functions return the infinity or NaN the C library gives.
Where Python does not raise, it calls the same C library function.
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = [
    "ceil",
    "cos",
    "div",
    "exp",
    "exp2",
    "expm1",
    "floor",
    "hypot",
    "log",
    "log1p",
    "log2",
    "maximum",
    "minimum",
    "power",
    "reciprocal",
    "rsqrt",
    "sigmoid",
    "sign",
    "sin",
    "sqrt",
]


def div(a: float, b: float) -> float:
    """The quotient, with 0/0 = NaN and x/0 = ±inf.

    Example:
        >>> div(1.0, -0.0), div(0.0, 0.0)
        (-inf, nan)
    """
    if b != 0:
        return a / b
    if a == 0 or a != a:
        return math.nan
    return math.copysign(math.inf, math.copysign(1.0, a) * math.copysign(1.0, b))


def sqrt(x: float) -> float:
    """The square root, NaN below zero."""
    return math.sqrt(x) if x >= 0 else math.nan


def rsqrt(x: float) -> float:
    """One over the square root, both rounded."""
    return div(1.0, sqrt(x))


def reciprocal(x: float) -> float:
    """One over x."""
    return div(1.0, x)


def sign(x: float) -> float:
    """-1, 0 or 1; 0 for NaN."""
    return float((x > 0) - (x < 0))


def maximum(a: float, b: float) -> float:
    """The larger one; NaN if one of them is NaN."""
    if a > b:
        return a
    return a if a != a else b


def minimum(a: float, b: float) -> float:
    """The smaller one; NaN if one of them is NaN."""
    if a < b:
        return a
    return a if a != a else b


def exp(x: float) -> float:
    """The exponential; inf on overflow."""
    return _call(math.exp, x, overflow=math.inf)


def expm1(x: float) -> float:
    """exp(x) − 1; inf on overflow."""
    return _call(math.expm1, x, overflow=math.inf)


def log(x: float) -> float:
    """The natural logarithm; -inf at 0, NaN below."""
    if x == 0:
        return -math.inf
    return math.log(x) if x > 0 else math.nan


def log1p(x: float) -> float:
    """log(1 + x); -inf at -1, NaN below."""
    if x == -1:
        return -math.inf
    return math.log1p(x) if x > -1 else math.nan


def log2(x: float) -> float:
    """The logarithm to base 2; -inf at 0, NaN below."""
    if x == 0:
        return -math.inf
    return math.log2(x) if x > 0 else math.nan


def exp2(x: float) -> float:
    """2 to the power x; inf on overflow."""
    return _call(math.exp2, x, overflow=math.inf)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(−x))."""
    return div(1.0, 1.0 + exp(-x))


def sin(x: float) -> float:
    """The sine; NaN at an infinity."""
    return _call(math.sin, x, overflow=math.nan)


def cos(x: float) -> float:
    """The cosine; NaN at an infinity."""
    return _call(math.cos, x, overflow=math.nan)


def floor(x: float) -> float:
    """The largest whole number <= x, as a float; infinities and NaN stay."""
    return _round(math.floor, x)


def ceil(x: float) -> float:
    """The smallest whole number >= x, as a float; infinities and NaN stay."""
    return _round(math.ceil, x)


def power(x: float, y: float) -> float:
    """C's pow: inf on overflow, ±inf for 0 to a negative power, NaN outside.

    Example:
        >>> power(0.0, -1.0), power(-8.0, 0.5), power(-10.0, 999.0)
        (inf, nan, -inf)
    """
    try:
        return math.pow(x, y)
    except OverflowError:
        return -math.inf if x < 0 and _is_odd(y) else math.inf
    except ValueError:
        if x != 0:
            return math.nan
        return math.copysign(math.inf, x) if _is_odd(y) else math.inf


def hypot(x: float, y: float) -> float:
    """C's hypot: the root of x² + y² without overflow in between.

    `math.hypot` has a formula of its own; the absolute value of a complex number is
    the C library's.

    Example:
        >>> hypot(3.0, 4.0), hypot(1.7e308, 1.7e308), hypot(math.inf, math.nan)
        (5.0, inf, inf)
    """
    try:
        return abs(complex(x, y))
    except OverflowError:
        return math.inf


def _is_odd(y: float) -> bool:
    return math.fmod(y, 2.0) in (1.0, -1.0)


def _call(function: Callable[[float], float], x: float, overflow: float) -> float:
    try:
        return function(x)
    except OverflowError:
        return overflow
    except ValueError:
        return math.nan


def _round(function: Callable[[float], int], x: float) -> float:
    if not math.isfinite(x):
        return float(x)
    # floor(-0.0) and ceil(-0.5) are -0.0 in C; Python's whole numbers have no sign.
    return math.copysign(float(function(x)), x)
