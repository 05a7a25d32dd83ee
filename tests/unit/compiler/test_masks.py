"""Masks are torch's truth values: their sum is one, too, and a number counts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.compiler.interpret import interpret
from thalweg.compiler.rule import Rule
from thalweg.compiler.trace import trace
from thalweg.errors import TraceError

Function = Callable[[Any, Any], Any]
CASES: dict[str, Function] = {
    "+": lambda a, b: a + b,
    "add": lambda a, b: torch.add(a, b),
    "method add": lambda a, b: a.add(b),
    "alpha": lambda a, b: torch.add(a, b, alpha=2) * 1.0 + torch.add(a, b, alpha=-1),
    "alpha of nothing": lambda a, b: torch.add(a, b, alpha=0),
    "bool": lambda a, b: (a + True) * 1.0 + (False + b) * 2.0 + (a * True) * 4.0,
    "sum": lambda a, b: torch.sum(a + b) + (a + b).sum(-1, keepdim=True) + a * 0.0,
    "three": lambda a, b: a + b + ~a,
    "*": lambda a, b: a * b + b,
    "/": lambda a, b: (a / b).nan_to_num(3.0, 5.0) if _is_eager(a) else torch.where(
        torch.isnan(a / b), 3.0, torch.where(torch.isinf(a / b), 5.0, a / b)),
    "&": lambda a, b: (a & b) + b,
    "|": lambda a, b: (a | b) + b,
    "^": lambda a, b: (a ^ b) + b,
    "bits": lambda a, b: torch.bitwise_and(a, other=b) + torch.bitwise_xor(a, b),
    "~": lambda a, b: ~a + b,
    "comparisons": lambda a, b: (a > b) + (a == b) + (a <= b) * 1.0 + (a != b) * 2.0,
    "a mask and a number": lambda a, b: (a + 1) * (b * 2.0) + (a > 0.5) - 1 * b,
    "numbers of masks": lambda a, b: a * 1.0 + b * 1.0 + a.square() + b**2 + a**1 + b,
    "maximum": lambda a, b: torch.maximum(a, b) + a + torch.max(a, b),
    "minimum": lambda a, b: torch.minimum(a, b) + a + torch.min(a, b),
    "where": lambda a, b: torch.where(a, b, ~b) + a + torch.where(a, True, False),
    "where of numbers": lambda a, b: torch.where(a, b, 1.0) + a,
    "masked_fill": lambda a, b: a.masked_fill(b, 0.5) + b,
    "likes": lambda a, b: torch.ones_like(a) + a + torch.full_like(a, 0.5) * b,
    "zeros": lambda a, b: torch.zeros_like(a) + a + b,
    "sign": lambda a, b: torch.sign(a) + b,
    "largest": lambda a, b: a.amax() + b + torch.amax(a, -1, keepdim=True),
    "smallest": lambda a, b: a.amin() + b + torch.min(a),
    "of a total": lambda a, b: (torch.sum(a) > 5.0) + (torch.sum(b) > 5.0) + a * 0.0,
}  # fmt: skip


def _is_eager(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_masks_meet_as_in_torch(name: str, dtype: torch.dtype) -> None:
    function = CASES[name]

    def rule(var: Any, grad: Any) -> Any:
        return function(var > 0.5, grad > 0.25) * 1.0

    x, y = torch.rand(2, 12, 9).to(dtype).unbind()
    (new,) = interpret(Rule.of(rule), {}, (x, y), {})
    assert torch.equal(new.double(), rule(x, y).double().expand_as(new))


class Pair(tw.Optimizer):
    rate: tw.Hyper = tw.Hyper(default=1.0)

    @staticmethod
    def update(var: Any, grad: Any, *, rate: Any) -> Any:
        both = (grad > 0) + (var > 0)
        share = torch.sum(both) / torch.sum(torch.ones_like(grad))
        held = (torch.sum(grad) > 0.0) + (torch.amax(both) + (rate > 0.0))
        kept = torch.where(both, grad > 0, ~both) * held
        return var - rate * both - share - kept * 1.0


def test_a_kernel_adds_masks_as_torch_does() -> None:
    var, grad = torch.randn(256), torch.randn(256)
    variable = tw.Variable(var.clone())
    Pair().apply_gradients([(grad, variable)])
    assert torch.equal(variable.detach(), Pair.update(var, grad, rate=1.0))


def test_truths_of_scalars_alone_are_numbers_as_in_python() -> None:
    def rule(var: Any, grad: Any, *, rate: Any) -> Any:
        many = (rate > 0) + (rate > 1) * (rate > 2) + (rate > 3) - (rate > 9)
        return var * many + (grad > 0) * (rate > 1) + ((grad > 0) + (rate > 1))

    x, y = torch.ones(3), torch.tensor([-1.0, 0.0, 1.0])
    for rate in (0.5, 1.5, 4.0):
        (new,) = interpret(Rule.of(rule), {}, (x, y), {"rate": rate})
        assert torch.equal(new, rule(x, y, rate=rate))


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (lambda a, b: a - b, "numbers; got a difference of masks. Write a & ~b, or a"),
        (lambda a, b: True - b, "a difference of masks"),
        (lambda a, b: torch.sub(a, b, alpha=2), "a difference of masks"),
        (lambda a, b: torch.rsub(a, b), "a difference of masks"),
        (lambda a, b: torch.add(a, b, alpha=0.5), "alpha of masks; got 0.5. As a numb"),
        (lambda a, b: torch.add(a, b, alpha=b.sum()), "got a value of the rule"),
        (lambda a, b: a & 2, "masks for &, |, ^ and ~; got a number"),
        (lambda a, b: a.sum() | b, "Write torch.logical_or, or a comparison"),
        (lambda a, b: ~(a * 2.0), "Write torch.logical_not"),
    ],
)
def test_what_torch_refuses_of_masks_is_refused(function: Function, part: str) -> None:
    def rule(var: Any, grad: Any) -> Any:
        return function(var > 0.5, grad > 0.25)

    with pytest.raises(TraceError) as caught:
        trace(Rule.of(rule), {})
    assert part in str(caught.value)
