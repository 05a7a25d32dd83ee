"""Many spellings, one operation: what each torch, math or operator call means here.

Everything is reduced to the rows of `op_table`. A spelling is a Python function over
traced values, so a fused form says in plain text in which order it is evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import fx

from thalweg.compiler.op_table import OPS

__all__ = ["ADVICE", "MATH_FUNCTIONS", "METHODS", "OPERATIONS", "SPELLINGS", "emit"]

Value = Any  # a traced value or a number


def emit(name: str, *operands: Value) -> Value:
    """Add one operation of the table to the graph the operands belong to."""
    tracer: Any = next(o.tracer for o in operands if isinstance(o, fx.Proxy))
    return tracer.emit(OPS[name], operands)


def _add(x: Value, other: Value, *, alpha: Value = 1) -> Value:
    return emit("add", x, _scaled(other, alpha))


def _sub(x: Value, other: Value, *, alpha: Value = 1) -> Value:
    return emit("sub", x, _scaled(other, alpha))


def _rsub(x: Value, other: Value, *, alpha: Value = 1) -> Value:
    return emit("sub", other, _scaled(x, alpha))


def _scaled(value: Value, factor: Value) -> Value:
    is_one = not isinstance(factor, fx.Proxy) and factor == 1
    return value if is_one else factor * value


def _div(x: Value, other: Value, *, rounding_mode: str | None = None) -> Value:
    quotient = emit("div", x, other)
    if rounding_mode is None:
        return quotient
    if rounding_mode == "floor":
        return emit("floor", quotient)
    raise TypeError(f"rounding_mode={rounding_mode!r} is not known")


def _pow(x: Value, exponent: Value) -> Value:
    if isinstance(exponent, fx.Proxy):
        return emit("pow", x, exponent)
    special = _POWERS.get(float(exponent))
    return special(x) if special else emit("pow", x, float(exponent))


def _cube(x: Value) -> Value:
    return emit("mul", emit("square", x), x)


_POWERS: dict[float, Callable[[Value], Value]] = {
    1.0: lambda x: x,
    2.0: lambda x: emit("square", x),
    3.0: _cube,
    0.5: lambda x: emit("sqrt", x),
    -0.5: lambda x: emit("rsqrt", x),
    -1.0: lambda x: emit("reciprocal", x),
    -2.0: lambda x: emit("reciprocal", emit("square", x)),
}


def _lerp(x: Value, end: Value, weight: Value) -> Value:
    return x + weight * (end - x)


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
    return emit("where", condition, x, other)


def _where_method(self: Value, condition: Value, other: Value) -> Value:
    return emit("where", condition, self, other)


def _masked_fill(x: Value, mask: Value, value: Value) -> Value:
    return emit("where", mask, value, x)


def _relu(x: Value) -> Value:
    return emit("maximum", x, 0.0)


def _hypot(x: Value, other: Value) -> Value:
    return emit("sqrt", emit("square", x) + emit("square", other))


def _same(x: Value, **_: Value) -> Value:
    return x


def _zeros_like(x: Value) -> Value:
    return x.tracer.fill(x, 0.0)


def _ones_like(x: Value) -> Value:
    return x.tracer.fill(x, 1.0)


def _full_like(x: Value, fill_value: Value) -> Value:
    return x.tracer.fill(x, fill_value)


def _reduction(name: str) -> Callable[..., Value]:
    def spelled(x: Value, dim: Value = None, keepdim: bool = False) -> Value:
        return x.tracer.reduce(name, x, dim, keepdim)

    return spelled


_sum, _amax = _reduction("sum"), _reduction("amax")


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
    if ord == 1:
        return _sum(emit("abs", x), dim, keepdim)
    raise TypeError(f"ord={ord!r} is not known; the orders are 1, 2 and inf")


def _norm(x: Value, p: Value = 2, dim: Value = None, keepdim: bool = False) -> Value:
    return _vector_norm(x, 2 if p == "fro" else p, dim, keepdim)


def _max(x: Value, other: Value = None) -> Value:
    return _amax(x) if other is None else emit("maximum", x, other)


def _min(x: Value, other: Value) -> Value:
    return emit("minimum", x, other)


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
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "rsub": _rsub,
    "multiply": _row_of_table("mul"),
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
    "hypot": _hypot,
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
    "linalg_vector_norm": _vector_norm,
    "norm": _norm,
    "max": _max,
    "min": _min,
}
"""Name of a torch, math or operator function or of a method -> its meaning."""

METHODS: dict[str, Callable[..., Value]] = {**SPELLINGS, "where": _where_method}
"""The same for methods, one of which orders its operands in another way."""

OPERATIONS = (
    "Write it with arithmetic, comparisons, torch.where, maximum, minimum, abs, sign, "
    "sqrt, exp, log and the like."
)
"""What to write where no name is near."""

_MATRIX_ADVICE = (
    "A rule is elementwise: multiply matrices before it, in a gradient transformer, or "
    "in a class that overrides `_resource_apply_dense`."
)
_SHAPE_ADVICE = "A rule is elementwise; it sees its tensors in their own shape."

ADVICE: dict[str, str] = {
    "floordiv": "Write torch.floor(a / b).",
    "floor_divide": "Write torch.floor(a / b).",
    "mod": "Write a - b * torch.floor(a / b).",
    "remainder": "Write a - b * torch.floor(a / b).",
    "getitem": "A rule is elementwise; it cannot index its tensors.",
    "matmul": _MATRIX_ADVICE,
    "mm": _MATRIX_ADVICE,
    "bmm": _MATRIX_ADVICE,
    "einsum": _MATRIX_ADVICE,
    "view": _SHAPE_ADVICE,
    "reshape": _SHAPE_ADVICE,
    "transpose": _SHAPE_ADVICE,
    "t": _SHAPE_ADVICE,
    "round": "Write torch.floor(x + 0.5).",
    "to": "The kernel converts when it loads and stores; drop the conversion.",
    "float": "The kernel converts when it loads and stores; drop the conversion.",
    "double": "The kernel converts when it loads and stores; drop the conversion.",
    "half": "The kernel converts when it loads and stores; drop the conversion.",
    "bfloat16": "The kernel converts when it loads and stores; drop the conversion.",
    "item": "A number cannot leave the kernel; keep computing with the value.",
    "rand_like": "A rule is a pure function; make the random number a scalar.",
    "randn_like": "A rule is a pure function; make the random number a scalar.",
    "log10": "Write torch.log(x) * (1 / math.log(10)).",
}
"""What to write instead, where the closest name would mislead."""

MATH_FUNCTIONS: tuple[str, ...] = (
    "atan2", "ceil", "cos", "erf", "exp", "exp2", "expm1", "fabs", "floor", "hypot",
    "isfinite", "isinf", "isnan", "log", "log1p", "log2", "pow", "sin", "sqrt", "tanh",
)  # fmt: skip
"""Functions of `math` that a rule may call on its scalars."""
