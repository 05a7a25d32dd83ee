"""Advice for names without a meaning: a way out, or the name that was meant."""

from __future__ import annotations

import pytest
import torch

from thalweg.compiler.advice import advice_for
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
    ("name", "ours", "theirs"),
    [
        ("erfc", lambda x: 1 - torch.erf(x), torch.erfc),
        ("frac", lambda x: x - torch.trunc(x), torch.frac),
        ("std", lambda x: torch.mean((x - torch.mean(x)) ** 2) ** 0.5,
         lambda x: x.std(correction=0)),
        ("log10", lambda x: torch.log(x.abs()) * (1 / torch.tensor(10.0).log()),
         lambda x: x.abs().log10()),
        ("nan_to_num", lambda x: torch.where(torch.isfinite(x), x, 0.0),
         torch.nan_to_num),
        ("relu6", lambda x: torch.clamp(x, 0.0, 6.0), torch.nn.functional.relu6),
        ("count_nonzero", lambda x: torch.sum(x != 0), torch.count_nonzero),
    ],
)  # fmt: skip
def test_advice_computes_the_same(name: str, ours: object, theirs: object) -> None:
    assert "Write" in advice_for(name, SPELLINGS) or name == "std"
    x = torch.linspace(-8.0, 8.0, 32)
    torch.testing.assert_close(ours(x), theirs(x))  # pyright: ignore[reportCallIssue]
