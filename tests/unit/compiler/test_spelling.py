"""Operators, functions and methods mean the same rows of the table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it

import thalweg as tw
from thalweg.compiler.interpret import interpret
from thalweg.compiler.rule import Rule
from thalweg.compiler.spelling import emit
from thalweg.compiler.trace import trace
from thalweg.errors import TraceError

Function = Callable[[Any, Any], Any]
CASES: dict[str, Function] = {
    "add alpha": lambda x, y: torch.add(x, y, alpha=2),
    "sub alpha": lambda x, y: x.sub(y, alpha=0.5),
    "rsub": lambda x, y: torch.rsub(x, y),
    "lerp": lambda x, y: torch.lerp(x, y, 0.25),
    "lerp method": lambda x, y: x.lerp(y, 0.25),
    "addcmul": lambda x, y: x.addcmul(x, y, value=0.5),
    "addcdiv": lambda x, y: torch.addcdiv(x, y, x, value=-1),
    "clamp": lambda x, y: x.clamp(min=0.2, max=0.8),
    "clip": lambda x, y: torch.clip(x, 0.2, 0.8),
    "clamp_min": lambda x, y: x.clamp_min(0.5),
    "clamp_max": lambda x, y: torch.clamp_max(x, 0.5),
    "where": lambda x, y: torch.where(x > y, x, 0.0),
    "where method": lambda x, y: x.where(x > y, y),
    "masked_fill": lambda x, y: x.masked_fill(x > y, 3.0),
    "relu": lambda x, y: torch.relu(x - y),
    "hypot": lambda x, y: torch.hypot(x, y),
    "trunc div": lambda x, y: torch.div(x - y, y, rounding_mode="trunc"),
    "trunc": lambda x, y: torch.trunc((x - y) * 9) + ((x - y) * 9).fix(),
    "reflected": lambda x, y: 2 - x / 3 + 1 / y,
    "powers": lambda x, y: x**2 + x**3 + y**0.5 + y**-1 + y**-2 + y**-0.5 + x**1,
    "power of a tensor": lambda x, y: x.pow(y),
    "number to a power": lambda x, y: 2.0**x,
    "likes": lambda x, y: torch.zeros_like(x) + torch.ones_like(x) * 3,
    "full_like": lambda x, y: torch.full_like(x, 0.5) - y,
    "mask arithmetic": lambda x, y: (x > y) * x + ~(x > y) * y,
    "logical": lambda x, y: torch.where((x > 0.2) & (y > 0.2) | (x == y), x, -y),
    "truth": lambda x, y: torch.logical_not(x) + torch.logical_xor(x, y),
    "norm": lambda x, y: x / x.norm() + torch.linalg.vector_norm(y),
    "norms": lambda x, y: x / torch.linalg.vector_norm(x, ord=1) + y.norm(torch.inf),
    "max": lambda x, y: torch.max(x, y) - torch.max(x) + torch.min(x, y),
    "sum": lambda x, y: x - torch.sum(y) + y.mean() + x.amax(),
    "same": lambda x, y: +x.detach().clone().contiguous(),
    "abs": lambda x, y: abs(x - y) + (x - y).abs() + torch.absolute(x),
    "expit": lambda x, y: torch.special.expit(x) + torch.sigmoid(y),
    "other names": lambda x, y: torch.pow(input=x, exponent=y) + x.add(other=y),
    "axis": lambda x, y: x - torch.sum(y, axis=-1, keepdims=True),
    "defaults": lambda x, y: x - torch.norm(y) - y.sum(dtype=None) * x.clone(
        memory_format=torch.preserve_format),
    "out of nothing": lambda x, y: torch.add(x, y, out=None),
    "linalg.norm": lambda x, y: x - torch.linalg.norm(y, dtype=None),
    "linalg.norm with an axis": lambda x, y: x - torch.linalg.norm(
        y, dim=-1, keepdim=True) * torch.linalg.norm(y, 1, dim=(-1,), keepdim=True),
    "norms of order 0": lambda x, y: x - torch.linalg.vector_norm(
        torch.relu(y - 0.5), ord=0) * torch.norm(torch.relu(x - 0.3), p=0),
    "norms of order -inf": lambda x, y: x - torch.linalg.vector_norm(
        y, ord=-math.inf) * torch.linalg.vector_norm(-y, -math.inf, -1, keepdim=True),
    "norm with an axis": lambda x, y: x - torch.norm(y, dim=-1, keepdim=True),
    "norm of order 1": lambda x, y: x - torch.norm(y, p=1),
    "amin": lambda x, y: x - y.min() + torch.amin(y, dim=-1, keepdim=True) * x.amin(),
    "F.relu": lambda x, y: F.relu(x - y),
    "F.leaky_relu": lambda x, y: F.leaky_relu(x - y) + F.leaky_relu(y - x, 0.2),
    "F.softplus": lambda x, y: F.softplus(x - y) + F.softplus(30 * x, beta=2.0),
    "F.silu": lambda x, y: F.silu(x - y),
    "F.hardtanh": lambda x, y: F.hardtanh(9 * (x - y)) + F.hardtanh(x, 0.3, 0.4),
    "F.sigmoid": lambda x, y: F.sigmoid(x) + F.tanh(y),
    "F.mse": lambda x, y: x * torch.square(x - y).mean(),
    "hypot of a number": lambda x, y: torch.hypot(x, torch.full_like(x, 0.5)),
    "tests": lambda x, y: torch.where(torch.isfinite(x), x, y),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_spelling_means_what_torch_means(name: str) -> None:
    function = CASES[name]

    def rule(var: Any, grad: Any) -> Any:
        return function(var, grad)

    x = torch.rand(101, dtype=torch.float64) + 0.05
    y = torch.rand(101, dtype=torch.float64) + 0.05
    (new,) = interpret(Rule.of(rule), {}, (x, y), {})
    expected = function(x, y).double().expand(101)
    torch.testing.assert_close(new, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("weight", "names"),
    [(0.25, ["sub", "mul", "add"]), (0.75, ["sub", "mul", "sub"])],
)
def test_fused_forms_are_spelt_out_in_operations_of_the_table(
    weight: float, names: list[str]
) -> None:
    choices = {"weight": weight}

    def rule(var: Any, grad: Any) -> Any:
        return torch.lerp(var, grad, **choices)

    nodes = trace(Rule.of(rule), {}).graph.nodes
    assert [str(n.target) for n in nodes if n.op == "call_function"] == names


EXACT = [0.0, 0.25, 0.5, 0.75, 1.0, -0.25, -1.0, 1.5, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight", [*EXACT, 0.3, 0.7, -0.7, 1.7])
def test_a_weight_counts_from_the_nearer_end_as_in_torch(
    weight: float, dtype: torch.dtype
) -> None:
    choices = {"weight": weight}

    def constant(var: Any, grad: Any) -> Any:
        return torch.lerp(var, grad, **choices)

    def scalar(var: Any, grad: Any, *, w: Any) -> Any:
        return torch.lerp(var, grad, w)

    def tensor(var: Any, m: Any, grad: Any) -> Any:
        return torch.lerp(var, grad, m), m

    x = torch.randn(99, dtype=torch.float64).mul(1e8).to(dtype)
    end, m = torch.randn(99).to(dtype), torch.full((99,), weight, dtype=dtype)
    expected = torch.lerp(x, end, weight)
    found = [
        interpret(Rule.of(constant), {}, (x, end), {})[0],
        interpret(Rule.of(scalar), {}, (x, end), {"w": weight})[0],
        interpret(Rule.of(tensor), {}, (x, m, end), {})[0],
    ]
    for new in found:
        # Where the product is no number of the type, torch may round only once.
        if weight in EXACT:
            assert torch.equal(new, expected)
        torch.testing.assert_close(new, expected)


class ToTheGradient(tw.Optimizer):
    rate: tw.Hyper = tw.Hyper(default=1.0)

    @staticmethod
    def update(var: Any, grad: Any, *, rate: Any) -> Any:
        return torch.lerp(var, grad, rate)


def test_a_kernel_reaches_the_end_at_a_weight_of_one() -> None:
    var = tw.Variable([1e8, -3e8, 7.0])
    grad = torch.tensor([1.25, 0.1, -2.5])
    ToTheGradient().apply_gradients([(grad, var)])
    assert torch.equal(var.detach(), grad)


def test_a_weight_from_outside_is_refused() -> None:
    def rule(var: Any, grad: Any) -> Any:
        return torch.lerp(var, grad, torch.ones(3))

    with pytest.raises(TraceError, match="Pass it as a slot or as a scalar"):
        trace(Rule.of(rule), {})


def test_alpha_of_one_multiplies_nothing() -> None:
    def rule(var: Any, grad: Any) -> Any:
        return torch.add(var, grad, alpha=1)

    nodes = trace(Rule.of(rule), {}).graph.nodes
    assert [str(n.target) for n in nodes if n.op == "call_function"] == ["add"]


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (
            lambda x, y: torch.div(x, y, rounding_mode="floor"),
            "rounding_mode='floor'. Write torch.floor(a / b)",
        ),
        (
            lambda x, y: torch.linalg.vector_norm(x, ord=3),
            "a norm of order 0, 1, 2, inf or -inf; got order 3. Write torch.sum(",
        ),
        (lambda x, y: torch.linalg.norm(x, ord="nuc"), "no norms of matrices; torch."),
        (lambda x, y: torch.linalg.norm(x, 2, (-2, -1)), "got order 2. A rule has no"),
        (lambda x, y: torch.norm(x, p="nuc"), "got order 'nuc'. A rule has no norms"),
        (lambda x, y: torch.linalg.norm(x, dim=-1), "expected keepdim=True with dim"),
        (lambda x, y: x.max(-1), "Write torch.amax(x, dim, keepdim=True)"),
        (lambda x, y: torch.min(x, dim=0), "Write torch.amin(x, dim, keepdim=True)"),
        (lambda x, y: F.relu(x, inplace=True), "inplace=, a change in place"),
        (lambda x, y: torch.add(x, y, out=x), "out=, a change in place"),
        (lambda x, y: torch.sum(x, dtype=torch.float64), "sums run in float64"),
        (lambda x, y: x.lerp(y), "lerp(input, end, weight); got 2 arguments"),
        (lambda x, y: x.clamp(least=0), "got the keyword 'least'. Leave it out"),
        (lambda x, y: x // y, "torch.floor(a / b)"),
        (lambda x, y: x % y, "a - b * torch.floor(a / b)"),
        (lambda x, y: x.float(), "drop the conversion"),
    ],
)
def test_what_has_no_meaning_is_refused(function: Function, part: str) -> None:
    def rule(var: Any, grad: Any) -> Any:
        return function(var, grad)

    with pytest.raises(TraceError) as caught:
        trace(Rule.of(rule), {})
    assert part in str(caught.value)


SPECIAL = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 3.0, -7.0, 1e-45, 3e38, -3e38]
SPECIAL += [float("inf"), -float("inf"), float("nan"), 0.1, 0.7, 4.9, -2.1]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16]
)
def test_a_quotient_is_cut_as_torch_cuts_it(dtype: torch.dtype) -> None:
    def rule(var: Any, grad: Any) -> Any:
        return torch.div(var, grad, rounding_mode="trunc")

    pairs = torch.cartesian_prod(*[torch.tensor(SPECIAL, dtype=torch.float64)] * 2)
    a, b = pairs.to(dtype).unbind(1)
    (new,) = interpret(Rule.of(rule), {}, (a, b), {})
    wide = torch.promote_types(dtype, torch.float32)  # halves are rounded once
    expected = torch.div(a.to(wide), b.to(wide), rounding_mode="trunc").to(dtype)
    assert torch.equal(new.isnan(), expected.isnan())
    assert torch.equal(new.nan_to_num(7.0), expected.nan_to_num(7.0))
    known = ~expected.isnan()
    assert torch.equal(new.signbit()[known], expected.signbit()[known])


def test_a_hypotenuse_does_not_overflow() -> None:
    def rule(var: Any, grad: Any, *, lr: Any) -> Any:
        return torch.hypot(var, grad) + math.hypot(lr, lr) * 0

    for dtype, big in ((torch.float32, 2e38), (torch.float64, 1e308)):
        x = torch.tensor([big, 1e-30, float("inf"), 3.0], dtype=dtype)
        y = torch.tensor([big, 1e-30, float("nan"), 4.0], dtype=dtype)
        (new,) = interpret(Rule.of(rule), {}, (x, y), {"lr": 1e300})
        torch.testing.assert_close(new, torch.hypot(x, y), rtol=1e-6, atol=0)


def test_what_is_computed_of_numbers_is_a_number() -> None:
    assert emit("hypot", 3.0, 4.0) == 5.0
    assert emit("div", 1.0, 0.0) == math.inf


class ByATensor(tw.Optimizer):
    rate: tw.Hyper = tw.Hyper(default=0.75)

    @staticmethod
    def update(var: Any, grad: Any, *, rate: Any) -> Any:
        return torch.lerp(torch.lerp(var, grad, grad), grad, rate)


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
def test_a_kernel_counts_weights_as_the_interpreter_does(rate: float) -> None:
    start, grad = torch.randn(333), torch.rand(333) * 3 - 1.5
    var = tw.Variable(start.clone())
    ByATensor(rate=rate).apply_gradients([(grad, var)])
    rule = Rule.of(ByATensor.update)
    (expected,) = interpret(rule, {}, (start, grad), {"rate": rate})
    assert torch.equal(var.detach(), expected)
