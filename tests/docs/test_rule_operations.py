"""The page of a rule's operations names those of the compiler, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.codegen.test_operations import BOUNDS
from thalweg.compiler import Rule, interpret
from thalweg.compiler.op_table import OPS, REDUCTIONS
from thalweg.compiler.spelling import MATH_FUNCTIONS, METHODS, SPELLINGS

PAGE = Path(__file__).parents[2] / "docs" / "rule-operations.md"
SECTIONS = dict(
    re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
)
WORD = re.compile(r"[a-z_][a-z_0-9]*")
NO_NAMES = {"x", "y", "z", "s", "torch", "nn", "functional"}
KEYWORDS = {"alpha", "value", "rounding_mode"}


def rows(section: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]]
    return [[cell.strip() for cell in row] for row in cells]


def spans(text: str) -> list[str]:
    return [span.replace("\\|", "|") for span in re.findall(r"`([^`]+)`", text)]


def names(text: str) -> set[str]:
    found = {word for span in spans(text) for word in WORD.findall(span)}
    return found - NO_NAMES - KEYWORDS


def test_every_operation_is_there_with_what_it_promises() -> None:
    promised = {spans(row[0])[0]: row[2] for row in rows("One element")}
    expected = {
        name: "exact" if op.is_exact else f"{BOUNDS.get(name, 2)} ulp"
        for name, op in OPS.items()
        if name != "fill"
    }
    assert promised == expected


def test_every_spelling_is_there_and_no_other() -> None:
    tables = ("One element", "Spelt out", "Many elements")
    cells = [cell for name in tables for row in rows(name) for cell in row]
    told = set().union(*map(names, cells))
    (same,) = (x for x in SECTIONS["One element"].split("\n") if "`pos`" in x)
    told |= names(same)
    assert told == set(SPELLINGS) == set(METHODS)


def test_an_other_spelling_is_the_same_operation() -> None:
    for operation, others, _ in rows("One element"):
        name = spans(operation)[0]
        for other in names(others) - {name}:
            assert traced(SPELLINGS[other], name) == traced(SPELLINGS[name], name)


def traced(meaning: Callable[..., Any], name: str) -> list[float]:
    masks = OPS[name].masks
    given = torch.linspace(-2.0, 2.0, 9), torch.linspace(3.0, -1.0, 9)

    def rule(var: Any, grad: Any) -> Any:
        pair = (var, grad)
        values = [v > 0 if is_mask else v for v, is_mask in zip(pair, masks)]  # noqa: B905
        return meaning(*values) * 1.0

    (found,) = interpret(Rule.of(rule), {}, given, {})
    return found.nan_to_num(1234.0).tolist()


@pytest.mark.parametrize("row", rows("Spelt out"), ids=lambda row: row[0])
def test_what_is_spelt_out_has_these_bits(row: list[str]) -> None:
    (call,), (formula,) = map(spans, row)
    number = 0.75 if ">= 0.5" in row[0] else 0.3
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1000, generator=generator) for _ in range(3)]
    one, other = (evaluated(text, tensors, number) for text in (call, formula))
    assert torch.equal(one, other)


def evaluated(text: str, tensors: list[torch.Tensor], number: float) -> torch.Tensor:
    source = f"lambda x, y, z, *, s: (({text}) + 0 * (x + y + z + s), y)"
    rule = Rule.of(eval(source, {"torch": torch}))
    return interpret(rule, {}, tensors, {"s": number})[0]


def test_every_reduction_and_function_of_numbers_is_there() -> None:
    spelled = {"sum_squares": "sum", "vector_norm": "linalg_vector_norm"}
    first = {spans(row[0])[0] for row in rows("Many elements")}
    assert {spelled.get(name, name) for name in REDUCTIONS} | {"amin"} == first
    told = SECTIONS["Numbers"].split("`math`:")[1].split("; `log`")[0]
    assert sorted(spans(told)) == sorted(MATH_FUNCTIONS)
