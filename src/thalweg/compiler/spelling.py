"""Many spellings, one operation: what each torch, math or operator call means here.

Everything is reduced to the rows of `op_table`. A spelling is a Python function over
traced values, so a fused form says in plain text in which order it is evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from torch import fx

from thalweg.compiler.arguments import NoMeaningError
from thalweg.compiler.masks import (
    are_truths,
    count,
    emit,
    is_truth,
    on_truths,
    truth,
    unless_truths,
)
from thalweg.compiler.op_table import OPS

__all__ = ["MATH_FUNCTIONS", "MATH_SPELLINGS", "METHODS", "SPELLINGS", "emit"]

Value = Any  # a traced value or a number

_NO_MATRICES = (
    "A rule has no norms of matrices; torch.linalg.vector_norm(x, ord) takes all "
    "elements as one vector."
)
_AS_NUMBERS = "As a number, a mask is torch.where(mask, 1.0, 0.0)."


def _scaled(value: Value, factor: Value) -> Value:
    is_one = not isinstance(factor, fx.Proxy) and factor == 1
    return value if is_one else factor * value


def _add(x: Value, other: Value, *, alpha: Value = 1) -> Value:
    if not are_truths(x, other):
        return emit("add", x, _scaled(other, alpha))
    if not isinstance(alpha, int):
        got = "a value of the rule" if isinstance(alpha, fx.Proxy) else repr(alpha)
        raise NoMeaningError("an int as alpha of masks", got, _AS_NUMBERS)
    return emit("logical_or", x, other) if alpha else x


def _sub(x: Value, other: Value, *, alpha: Value = 1) -> Value:
    if are_truths(x, other):
        action = f"Write a & ~b, or a ^ b for where they differ. {_AS_NUMBERS}"
        raise NoMeaningError("numbers", "a difference of masks", action)
    return emit("sub", x, _scaled(other, alpha))


def _rsub(x: Value, other: Value, *, alpha: Value = 1) -> Value:
    return _sub(other, x, alpha=alpha)


def _div(x: Value, other: Value, *, rounding_mode: str | None = None) -> Value:
    quotient = emit("div", x, other)
    if rounding_mode is None:
        return quotient
    if rounding_mode == "trunc":
        return _trunc(quotient)
    raise NoMeaningError(
        "rounding_mode=None or 'trunc'",
        f"rounding_mode={rounding_mode!r}",
        "Write torch.floor(a / b), which may be one more just below a whole number.",
    )


def _trunc(x: Value) -> Value:
    return emit("where", emit("lt", x, 0.0), emit("ceil", x), emit("floor", x))


def _pow(x: Value, exponent: Value) -> Value:
    if isinstance(exponent, fx.Proxy):
        return emit("pow", x, exponent)
    special = _POWERS.get(float(exponent))
    return special(x) if special else emit("pow", x, float(exponent))


def _cube(x: Value) -> Value:
    return emit("mul", emit("square", x), x)


_POWERS: dict[float, Callable[[Value], Value]] = {
    1.0: count,
    2.0: lambda x: emit("square", x),
    3.0: _cube,
    0.5: lambda x: emit("sqrt", x),
    -0.5: lambda x: emit("rsqrt", x),
    -1.0: lambda x: emit("reciprocal", x),
    -2.0: lambda x: emit("reciprocal", emit("square", x)),
}


def _lerp(x: Value, end: Value, weight: Value) -> Value:
    """From x for a weight of a size below a half, else from the end, as in torch.

    Torch may fuse the last product and sum. The bits are torch's where that product is
    exact, as with weights of 0, 0.25, 0.5, 0.75 and 1, which gives the end itself.
    """
    way = end - x
    if isinstance(weight, Real):
        part = float(weight)
        return x + part * way if abs(part) < 0.5 else end - (1 - part) * way
    is_small = emit("lt", emit("abs", weight), 0.5)
    base = emit("where", is_small, x, end)
    return base - emit("where", is_small, -weight, 1 - weight) * way


def _addcmul(x: Value, tensor1: Value, tensor2: Value, *, value: Value = 1) -> Value:
    return x + _scaled(tensor1, value) * tensor2


def _addcdiv(x: Value, tensor1: Value, tensor2: Value, *, value: Value = 1) -> Value:
    return x + _scaled(tensor1, value) / tensor2


def _clamp(
    x: Value,
    min: Value = None,  # noqa: A002 - torch's keyword
    max: Value = None,  # noqa: A002 - torch's keyword
) -> Value:
    if min is not None:
        x = emit("maximum", x, min)
    return x if max is None else emit("minimum", x, max)


def _clamp_min(x: Value, min: Value) -> Value:  # noqa: A002 - torch's keyword
    return emit("maximum", x, min)


def _clamp_max(x: Value, max: Value) -> Value:  # noqa: A002 - torch's keyword
    return emit("minimum", x, max)


def _where(condition: Value, x: Value, other: Value) -> Value:
    chosen = emit("where", condition, x, other)
    return truth(chosen) if is_truth(x) and is_truth(other) else chosen


def _where_method(x: Value, condition: Value, other: Value) -> Value:
    return _where(condition, x, other)


def _masked_fill(x: Value, mask: Value, value: Value) -> Value:
    filled = emit("where", mask, value, x)
    return truth(filled) if is_truth(x) else filled


def _relu(x: Value) -> Value:
    return emit("maximum", x, 0.0)


def _leaky_relu(x: Value, negative_slope: Value = 0.01) -> Value:
    return emit("where", emit("gt", x, 0.0), x, x * negative_slope)


def _softplus(x: Value, beta: Value = 1.0, threshold: Value = 20.0) -> Value:
    scaled = _scaled(x, beta)
    smooth = emit("log1p", emit("exp", scaled)) / beta
    return emit("where", emit("gt", scaled, threshold), x, smooth)


def _silu(x: Value) -> Value:
    return x / (1.0 + emit("exp", -x))


def _hardtanh(x: Value, min_val: Value = -1.0, max_val: Value = 1.0) -> Value:
    return _clamp(x, min_val, max_val)


def _same(x: Value, **_: Value) -> Value:
    return x


def _zeros_like(x: Value) -> Value:
    return _full_like(x, 0.0)


def _ones_like(x: Value) -> Value:
    return _full_like(x, 1.0)


def _full_like(x: Value, fill_value: Value) -> Value:
    filled = x.tracer.fill(x, fill_value)
    return truth(filled) if is_truth(x) else filled


def _sign(x: Value) -> Value:
    return x if are_truths(x) else emit("sign", x)


def _reduction(name: str) -> Callable[..., Value]:
    def spelled(x: Value, dim: Value = None, keepdim: bool = False) -> Value:
        return x.tracer.reduce(name, x, dim, keepdim)

    return spelled


_sum = _reduction("sum")


def _amax(x: Value, dim: Value = None, keepdim: bool = False) -> Value:
    largest = x.tracer.reduce("amax", x, dim, keepdim)
    return truth(largest) if is_truth(x) else largest


def _amin(x: Value, dim: Value = None, keepdim: bool = False) -> Value:
    smallest = -_amax(-x, dim, keepdim)
    return truth(smallest) if is_truth(x) else smallest


def _vector_norm(
    x: Value,
    ord: Value = 2,  # noqa: A002 - torch's keyword
    dim: Value = None,
    keepdim: bool = False,
) -> Value:
    if ord == 2:
        return x.tracer.reduce("vector_norm", x, dim, keepdim)
    if ord == math.inf:
        return _amax(emit("abs", x), dim, keepdim)
    if ord == -math.inf:
        return _amin(emit("abs", x), dim, keepdim)
    if ord == 1:
        return _sum(emit("abs", x), dim, keepdim)
    if ord == 0:
        return _sum(truth(x), dim, keepdim)
    action = "Write torch.sum(torch.abs(x) ** p) ** (1 / p), with dim where it has one."
    if isinstance(ord, str):
        action = _NO_MATRICES
    expected = "a norm of order 0, 1, 2, inf or -inf"
    raise NoMeaningError(expected, f"order {ord!r}", action)


def _norm(x: Value, p: Value = 2, dim: Value = None, keepdim: bool = False) -> Value:
    return _vector_norm(x, 2 if p in (None, "fro") else p, dim, keepdim)


def _linalg_norm(
    x: Value,
    ord: Value = None,  # noqa: A002 - torch's keyword
    dim: Value = None,
    keepdim: bool = False,
) -> Value:
    has_one_axis = isinstance(dim, int) or (dim is not None and len(dim) == 1)
    if ord is None or (ord == "fro" and not has_one_axis):
        return _vector_norm(x, 2, dim, keepdim)
    if has_one_axis:
        return _vector_norm(x, ord, dim, keepdim)
    expected = "linalg.norm without an order, or of one axis"
    raise NoMeaningError(expected, f"order {ord!r}", _NO_MATRICES)


_mul = unless_truths("mul", "logical_and")
_larger = unless_truths("maximum", "logical_or")
_smaller = unless_truths("minimum", "logical_and")


def _extreme(
    name: str, over_all: Callable[..., Value], of_two: Callable[..., Value]
) -> Callable[..., Value]:
    def spelled(
        x: Value, other: Value = None, keepdim: Value = None, *, dim: Value = None
    ) -> Value:
        if isinstance(other, int) or (dim, keepdim) != (None, None):
            action = f"Write torch.a{name}(x, dim, keepdim=True)."
            raise NoMeaningError(f"two values, or one, for {name!r}", "an axis", action)
        return over_all(x) if other is None else of_two(x, other)

    return spelled


def _logarithm(x: Value, base: Value = None) -> Value:
    natural = emit("log", x)
    return natural if base is None else natural / emit("log", base)


def _row_of_table(name: str) -> Callable[..., Value]:
    def one(x: Value) -> Value:
        return emit(name, x)

    def two(x: Value, other: Value) -> Value:
        return emit(name, x, other)

    return two if len(OPS[name].masks) == 2 else one


_ALIASES = {
    "absolute": "abs",
    "fabs": "abs",
    "negative": "neg",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
    "special_expit": "sigmoid",
    "special_exp2": "exp2",
    "special_expm1": "expm1",
    "special_log1p": "log1p",
    "special_erf": "erf",
    "arctan2": "atan2",
}
_BITWISE = {
    "and_": "logical_and",
    "or_": "logical_or",
    "xor": "logical_xor",
    "bitwise_and": "logical_and",
    "bitwise_or": "logical_or",
    "bitwise_xor": "logical_xor",
    "invert": "logical_not",
    "bitwise_not": "logical_not",
}

SPELLINGS: dict[str, Callable[..., Value]] = {
    **{name: _row_of_table(name) for name in OPS if name not in ("fill", "where")},
    **{alias: _row_of_table(name) for alias, name in _ALIASES.items()},
    **{alias: on_truths(name) for alias, name in _BITWISE.items()},
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "multiply": _mul,
    "maximum": _larger,
    "minimum": _smaller,
    "sign": _sign,
    "div": _div,
    "divide": _div,
    "truediv": _div,
    "true_divide": _div,
    "pow": _pow,
    "float_power": _pow,
    "lerp": _lerp,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp_min,
    "clamp_max": _clamp_max,
    "where": _where,
    "masked_fill": _masked_fill,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "softplus": _softplus,
    "silu": _silu,
    "hardtanh": _hardtanh,
    "trunc": _trunc,
    "fix": _trunc,
    "pos": _same,
    "positive": _same,
    "clone": _same,
    "detach": _same,
    "contiguous": _same,
    "zeros_like": _zeros_like,
    "ones_like": _ones_like,
    "full_like": _full_like,
    "sum": _sum,
    "mean": _reduction("mean"),
    "amax": _amax,
    "amin": _amin,
    "linalg_vector_norm": _vector_norm,
    "linalg_norm": _linalg_norm,
    "norm": _norm,
    "max": _extreme("max", _amax, _larger),
    "min": _extreme("min", _amin, _smaller),
}
"""Name of a torch, math or operator function or of a method -> its meaning."""

METHODS: dict[str, Callable[..., Value]] = {**SPELLINGS, "where": _where_method}
"""The same for methods, one of which orders its operands in another way."""

MATH_FUNCTIONS: tuple[str, ...] = (
    "atan2", "ceil", "cos", "erf", "exp", "exp2", "expm1", "fabs", "floor", "hypot",
    "isfinite", "isinf", "isnan", "log", "log1p", "log2", "pow", "sin", "sqrt", "tanh",
)  # fmt: skip
"""Functions of `math` that a rule may call on its scalars."""

MATH_SPELLINGS: dict[str, Callable[..., Value]] = {**SPELLINGS, "log": _logarithm}
"""The same for these, one of which takes more operands."""
