"""The operations a rule may use: reference, C text and Triton text of each.

One row defines one operation everywhere. The *reference* column works on tensors of
one floating dtype and at least one dimension (the interpreter's oracle), the *scalar*
column on Python floats, the text columns on names of values. In a text `{0}`, `{1}`,
`{2}` are the operands and `{f}` is the suffix of the compute type: "f" for float32,
nothing for float64. Fused, in-place and method spellings are not here: `spelling`
reduces them to these rows.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.compiler import ieee

__all__ = ["OPS", "REDUCTIONS", "Op", "Reduction"]

_ONE = (False,)
_TWO = (False, False)


@dataclass(frozen=True, eq=False, repr=False)
class Op:
    """One elementwise operation.

    Attributes:
        name: Its name, that of the torch function where there is one.
        reference: Evaluates it on tensors.
        scalar: Evaluates it on Python floats and bools.
        c: C expression.
        triton: Triton expression; `one` and `zero` are constants of the compute type.
        masks: For each operand, whether it is a mask (a truth value).
        gives_mask: Whether the result is a mask.
        is_exact: Whether all columns give the same bits.
    """

    name: str
    reference: Callable[..., Tensor]
    scalar: Callable[..., float]
    c: str
    triton: str
    masks: tuple[bool, ...] = _ONE
    gives_mask: bool = False
    is_exact: bool = True

    def __post_init__(self) -> None:
        # torch.fx prints the target of a node by these two attributes.
        object.__setattr__(self, "__name__", self.name)
        object.__setattr__(self, "__module__", __name__)

    def __call__(self, *operands: Any) -> Any:
        """Evaluate on tensors, or on Python floats if there is no tensor."""
        is_tensor = any(isinstance(operand, Tensor) for operand in operands)
        return (self.reference if is_tensor else self.scalar)(*operands)

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False, repr=False)
class Reduction:
    """A reduction over the trailing axes or over a whole variable.

    Attributes:
        name: Its name, that of the torch function.
        is_maximum: Fold by `maximum` instead of by addition.
        squares: Square each element, in float64, before folding.
        finish: What is done with the folded value: "", "mean" or "sqrt".
    """

    name: str
    is_maximum: bool = False
    squares: bool = False
    finish: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "__name__", self.name)
        object.__setattr__(self, "__module__", __name__)

    def __call__(self, *operands: Any) -> Any:
        """Reductions have an order of their own, which `reductions` knows."""
        raise TypeError(f"{self.name} is not elementwise")

    def __repr__(self) -> str:
        return self.name


def _maximum(a: Tensor, b: Tensor) -> Tensor:
    # torch.maximum picks another zero of (+0, -0) on some processors.
    return torch.where(a > b, a, torch.where(a != a, a, b))


def _minimum(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a < b, a, torch.where(a != a, a, b))


def _sign(x: Tensor) -> Tensor:
    # torch.sign(NaN) is 0 on a CPU and NaN elsewhere.
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


def _sqrt(x: Tensor) -> Tensor:
    # torch's own root is not correctly rounded on every CPU; NumPy's is the
    # processor's instruction. Elsewhere float32 goes through float64.
    if x.device.type != "cpu":
        return torch.sqrt(x.double()).to(x.dtype)
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    with np.errstate(invalid="ignore"):
        np.sqrt(x.detach().numpy(), out=result.numpy())
    return result


def _reciprocal(x: Tensor) -> Tensor:
    # A one of rank 1: torch divides a number by a tensor in another way.
    return torch.ones(1, dtype=x.dtype, device=x.device) / x


def _rsqrt(x: Tensor) -> Tensor:
    return _reciprocal(_sqrt(x))


def _sigmoid(x: Tensor) -> Tensor:
    return _reciprocal(1.0 + torch.exp(-x))


def _wide(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Evaluate through float64, so that a float32 result is the nearest one."""

    def evaluate(*operands: Tensor) -> Tensor:
        wide = function(*(operand.double() for operand in operands))
        return wide.to(operands[0].dtype)

    return evaluate


def _negative(x: float) -> float:
    return -x


def _square(x: float) -> float:
    return x * x


def _both(a: bool, b: bool) -> bool:
    return a and b


def _either(a: bool, b: bool) -> bool:
    return a or b


def _one_of(a: bool, b: bool) -> bool:
    return a != b


def _choose(condition: bool, a: float, b: float) -> float:
    return a if condition else b


def _same(x: Any) -> Any:
    return x


# In Triton a float32 floor flushes subnormals on the device, a float64 one does not.
_WIDE = "tl.{}({{0}}.to(tl.float64)).to({{0}}.dtype)"
# Triton 3.6 computes -x as 0 - x, which is +0 for a zero; of this LLVM makes a neg.
_NEGATIVE = "{0} * -1.0"


def _arithmetic() -> list[Op]:
    return [
        Op("fill", _same, _same, "{0}", "{0}"),
        Op("add", torch.add, operator.add, "{0} + {1}", "{0} + {1}", _TWO),
        Op("sub", torch.sub, operator.sub, "{0} - {1}", "{0} - {1}", _TWO),
        Op("mul", torch.mul, operator.mul, "{0} * {1}", "{0} * {1}", _TWO),
        Op("div", torch.div, ieee.div, "{0} / {1}", "divide({0}, {1})", _TWO),
        Op("neg", torch.neg, _negative, "-{0}", _NEGATIVE),
        Op("abs", torch.abs, math.fabs, "fabs{f}({0})", "tl.abs({0})"),
        Op("square", torch.square, _square, "{0} * {0}", "{0} * {0}"),
        Op("sqrt", _sqrt, ieee.sqrt, "sqrt{f}({0})", "root({0})"),
        Op(
            "rsqrt",
            _rsqrt,
            ieee.rsqrt,
            "1.0{f} / sqrt{f}({0})",
            "divide(one, root({0}))",
        ),
        Op(
            "reciprocal",
            _reciprocal,
            ieee.reciprocal,
            "1.0{f} / {0}",
            "divide(one, {0})",
        ),
        Op("floor", torch.floor, ieee.floor, "floor{f}({0})", _WIDE.format("floor")),
        Op("ceil", torch.ceil, ieee.ceil, "ceil{f}({0})", _WIDE.format("ceil")),
    ]


def _choices() -> list[Op]:
    return [
        Op(
            "sign",
            _sign,
            ieee.sign,
            "{0} > 0.0{f} ? 1.0{f} : ({0} < 0.0{f} ? -1.0{f} : 0.0{f})",
            "tl.where({0} > zero, one, tl.where({0} < zero, -one, zero))",
        ),
        Op(
            "maximum",
            _maximum,
            ieee.maximum,
            "{0} > {1} ? {0} : ({0} != {0} ? {0} : {1})",
            "tl.where({0} > {1}, {0}, tl.where({0} != {0}, {0}, {1}))",
            _TWO,
        ),
        Op(
            "minimum",
            _minimum,
            ieee.minimum,
            "{0} < {1} ? {0} : ({0} != {0} ? {0} : {1})",
            "tl.where({0} < {1}, {0}, tl.where({0} != {0}, {0}, {1}))",
            _TWO,
        ),
        Op(
            "where",
            torch.where,
            _choose,
            "{0} ? {1} : {2}",
            "tl.where({0}, {1}, {2})",
            (True, False, False),
        ),
    ]


def _transcendental() -> list[Op]:
    def row(name: str, reference: Any, scalar: Any, operands: str = "{0}") -> Op:
        return Op(
            name=name,
            reference=_wide(reference),
            scalar=scalar,
            c=f"{name}{{f}}({operands})",
            triton=f"libdevice.{name}({operands})",
            masks=_TWO if "{1}" in operands else _ONE,
            is_exact=False,
        )

    return [
        row("exp", torch.exp, ieee.exp),
        row("expm1", torch.expm1, ieee.expm1),
        row("log", torch.log, ieee.log),
        row("log1p", torch.log1p, ieee.log1p),
        row("log2", torch.log2, ieee.log2),
        row("exp2", torch.exp2, ieee.exp2),
        row("tanh", torch.tanh, math.tanh),
        row("sin", torch.sin, ieee.sin),
        row("cos", torch.cos, ieee.cos),
        row("erf", torch.erf, math.erf),
        row("pow", torch.pow, ieee.power, "{0}, {1}"),
        row("atan2", torch.atan2, math.atan2, "{0}, {1}"),
        row("hypot", torch.hypot, ieee.hypot, "{0}, {1}"),
        Op(
            "sigmoid",
            _wide(_sigmoid),
            ieee.sigmoid,
            "1.0{f} / (1.0{f} + exp{f}(-{0}))",
            "divide(one, one + libdevice.exp(-{0}))",
            is_exact=False,
        ),
    ]


def _comparisons() -> list[Op]:
    def row(name: str, symbol: str) -> Op:
        text = f"{{0}} {symbol} {{1}}"
        tensors, numbers = getattr(torch, name), getattr(operator, name)
        return Op(name, tensors, numbers, text, text, _TWO, gives_mask=True)

    symbols = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
    return [row(name, symbol) for name, symbol in symbols.items()]


def _tests() -> list[Op]:
    def row(name: str, c: str, triton: str) -> Op:
        reference, scalar = getattr(torch, name), getattr(math, name)
        return Op(name, reference, scalar, c, triton, gives_mask=True)

    return [
        # inf - inf and NaN - NaN are NaN, which equals nothing.
        row("isfinite", "{0} - {0} == 0.0{f}", "{0} - {0} == zero"),
        row("isnan", "{0} != {0}", "{0} != {0}"),
        row("isinf", "fabs{f}({0}) == __builtin_inf{f}()", "tl.abs({0}) == infinity"),
    ]


def _logical() -> list[Op]:
    def row(name: str, scalar: Any, symbol: str) -> Op:
        text = f"{{0}} {symbol} {{1}}"
        masks, reference = (True, True), getattr(torch, name)
        return Op(name, reference, scalar, text, text, masks, gives_mask=True)

    return [
        row("logical_and", _both, "&"),
        row("logical_or", _either, "|"),
        row("logical_xor", _one_of, "^"),
        Op(
            "logical_not",
            torch.logical_not,
            operator.not_,
            "!{0}",
            "{0} == 0",
            (True,),
            gives_mask=True,
        ),
    ]


OPS: dict[str, Op] = {
    op.name: op
    for rows in (_arithmetic, _choices, _transcendental, _comparisons, _tests, _logical)
    for op in rows()
}

REDUCTIONS: dict[str, Reduction] = {
    reduction.name: reduction
    for reduction in (
        Reduction("sum"),
        Reduction("sum_squares", squares=True),
        Reduction("mean", finish="mean"),
        Reduction("amax", is_maximum=True),
        Reduction("vector_norm", squares=True, finish="sqrt"),
    )
}
