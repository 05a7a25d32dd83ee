"""Advice for names without a meaning: a way out, or the name that was meant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it

from thalweg.compiler.advice import advice_for
from thalweg.compiler.interpret import interpret
from thalweg.compiler.rule import Rule
from thalweg.compiler.spelling import SPELLINGS

NEAR = ["flip", "sort", "stack", "device", "data", "isclose", "median", "softmax"]
NEAR += ["masked_select", "copysign", "normalize", "cumsum", "lgamma", "svd"]


@pytest.mark.parametrize("name", NEAR)
def test_a_name_of_torch_is_no_slip_of_the_pen(name: str) -> None:
    advice = advice_for(name, SPELLINGS)
    assert "Did you mean" not in advice
    assert advice.endswith(".")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("sqrtt", "sqrt"), ("maximun", "maximum"), ("adcmul", "addcmul")],
)
def test_a_slip_of_the_pen_is_told_the_nearest_name(name: str, meant: str) -> None:
    assert advice_for(name, SPELLINGS) == f"Did you mean {meant!r}?"


def test_names_of_parts_of_torch_have_the_advice_of_the_plain_ones() -> None:
    plain = advice_for("erfc", SPELLINGS)
    assert advice_for("special_erfc", SPELLINGS) == plain


def test_a_name_that_is_far_from_all_gets_the_list() -> None:
    assert "comparisons, torch.where" in advice_for("xyzzy", SPELLINGS)


@pytest.mark.parametrize(
    "name", ["math.gamma", "handle", "name", "assign", "value", "log_sigmoid"]
)
def test_what_is_far_from_all_names_gets_no_guess(name: str) -> None:
    assert "Did you mean" not in advice_for(name, SPELLINGS)


LARGEST = torch.finfo(torch.float64).max
WIDE = [-math.inf, -1e3, -30.0, -4.5, -1.5, -0.5, 0.0, 0.25, 1.5, 7.0, 40.0, 1e3]


@dataclass(frozen=True)
class Formula:
    """What is advised, as it is written there, and the function it stands for."""

    text: str
    theirs: Callable[[Any, Any], Any]
    values: tuple[float, ...] = tuple(WIDE[1:])
    names: tuple[tuple[str, str], ...] = ()
    after: str = ""

    def of(self, a: Any, b: Any) -> Any:
        known: dict[str, Any] = {"torch": torch, "math": math, "a": a, "b": b, "x": a}
        for name, text in self.names:
            known[name] = eval(text, known)
        return eval(f"({self.text}){self.after}", known)


VARIANCE = "torch.sum((x - torch.mean(x)) ** 2) / (n - 1)"
COUNT = (("n", "x.numel()"),)
FORMULAS: dict[str, Formula] = {
    "erfc": Formula("1 - torch.erf(x)", lambda a, b: torch.erfc(a)),
    "frac": Formula("x - torch.trunc(x)", lambda a, b: torch.frac(a)),
    "var": Formula(VARIANCE, lambda a, b: a.var(), names=COUNT),
    "std": Formula(VARIANCE, lambda a, b: a.std(), names=COUNT, after="** 0.5"),
    "log10": Formula(
        "torch.log(x) * (1 / math.log(10))", lambda a, b: torch.log10(a), (0.1, 2.0)
    ),
    "nan_to_num": Formula(
        "torch.where(torch.isnan(x), 0.0, torch.clamp(x, -m, m))",
        lambda a, b: torch.nan_to_num(a),
        (*WIDE, math.inf, math.nan),
        (("m", f"{LARGEST!r}"),),
    ),
    "relu6": Formula("torch.clamp(x, 0.0, 6.0)", lambda a, b: F.relu6(a)),
    "count_nonzero": Formula("torch.sum(x != 0)", lambda a, b: torch.count_nonzero(a)),
    "fmod": Formula("a - b * torch.trunc(a / b)", lambda a, b: torch.fmod(a, b)),
    "remainder": Formula(
        "a - b * torch.floor(a / b)", lambda a, b: torch.remainder(a, b)
    ),
    "normalize": Formula(
        "x / torch.clamp(torch.linalg.vector_norm(x, dim=dim, keepdim=True), "
        "min=1e-12)",
        lambda a, b: F.normalize(a),
        names=(("dim", "1"),),
    ),
    "softmax": Formula(
        "e / torch.sum(e, -1, True)",
        lambda a, b: torch.softmax(a, -1),
        names=(("e", "torch.exp(x - torch.amax(x, -1, True))"),),
    ),
    "log_sigmoid": Formula(
        "torch.clamp(x, max=0.0) - torch.log1p(torch.exp(-torch.abs(x)))",
        lambda a, b: F.logsigmoid(a),
    ),
    "isclose": Formula(
        "torch.abs(a - b) <= atol + rtol * torch.abs(b)",
        lambda a, b: torch.isclose(a, b),
        names=(("atol", "1e-8"), ("rtol", "1e-5")),
    ),
    "math.remainder": Formula(
        "a - b * torch.floor(a / b + 0.5)",
        lambda a, b: a.clone().map_(b, math.remainder),
        (-7.3, 0.4, 2.2, 9.9),
    ),
    "atan": Formula("torch.atan2(x, torch.ones_like(x))", lambda a, b: torch.atan(a)),
    "copysign": Formula(
        "torch.where(b < 0, -torch.abs(a), torch.abs(a))",
        lambda a, b: torch.copysign(a, b),
    ),
    "dist": Formula("torch.linalg.vector_norm(a - b)", lambda a, b: torch.dist(a, b)),
    "mse_loss": Formula("torch.mean((a - b) ** 2)", lambda a, b: F.mse_loss(a, b)),
    "l1_loss": Formula("torch.mean(torch.abs(a - b))", lambda a, b: F.l1_loss(a, b)),
    "softsign": Formula("x / (1 + torch.abs(x))", lambda a, b: F.softsign(a)),
    "floor_divide": Formula(
        "torch.floor(a / b)", lambda a, b: torch.floor_divide(a, b)
    ),
    "bool": Formula("x != 0", lambda a, b: a.bool()),
    "float": Formula(
        "torch.where(mask, 1.0, 0.0)",
        lambda a, b: (a > b).double(),
        names=(("mask", "a > b"),),
    ),
    "dot": Formula("torch.sum(a * b)", lambda a, b: torch.dot(a[0], b[0])),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_advice_computes_the_same(name: str) -> None:
    formula = FORMULAS[name]
    advice = advice_for(name, SPELLINGS)
    for text in (formula.text, *(text for n, text in formula.names if n in "en")):
        assert text in advice
    a = torch.tensor(formula.values, dtype=torch.float64)[None]
    b = torch.where(a > 2.0, -1.5, 2.25).to(a)
    expected = formula.theirs(a, b)
    found = formula.of(a, b).to(expected)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    def rule(var: Any, grad: Any) -> Any:
        return formula.of(var, grad) * 1.0

    (new,) = interpret(Rule.of(rule), {}, (a, b), {})
    wide = expected.double().expand_as(a)
    torch.testing.assert_close(new, wide, rtol=1e-12, atol=1e-12)
