"""Refusals say whose line it is, and name NumPy where it is to blame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from thalweg.compiler.refusals import place_of_function, refusal
from thalweg.compiler.rule import Rule
from thalweg.compiler.trace import trace
from thalweg.errors import TraceError


def _sign(var: Any, grad: Any, *, rate: Any) -> Any:
    return var - rate * np.sign(grad)


def _where(var: Any, grad: Any, *, rate: Any) -> Any:
    return var - np.where(grad > rate, grad, rate)


def _array(var: Any, grad: Any, *, rate: Any) -> Any:
    return var - rate * np.asarray(grad)


def _cumulated(var: Any, grad: Any, *, rate: Any) -> Any:
    return var - rate * np.cumsum(grad)


@pytest.mark.parametrize(
    ("function", "call"),
    [
        (_sign, "np.sign"),
        (_where, "np.where"),
        (_array, "np.asarray"),
    ],
)
def test_numpy_is_named_with_the_line_of_the_rule(
    function: Callable[..., Any], call: str
) -> None:
    with pytest.raises(TraceError) as caught:
        trace(Rule.of(function), {})
    text = str(caught.value)
    assert f"({__file__}:{function.__code__.co_firstlineno + 1})" in text
    assert f"(in {call}). Use torch: NumPy's functions" in text


def test_what_numpy_calls_on_the_values_is_known_too() -> None:
    def rule(var: Any, grad: Any) -> Any:
        return np.sqrt(var) - np.clip(grad, -1, 1) * np.sum(grad)

    nodes = trace(Rule.of(rule), {}).graph.nodes
    assert [n.name for n in nodes][2:-1] == [
        "sqrt", "maximum", "minimum", "sum_1", "mul", "sub",
    ]  # fmt: skip


def test_numbers_of_numpy_are_numbers() -> None:
    def rule(var: Any, grad: Any, *, rate: Any) -> Any:
        return var - np.sqrt(4.0) * rate * grad

    nodes = trace(Rule.of(rule), {}).graph.nodes
    assert any(2.0 in node.args for node in nodes)


def test_other_mistakes_keep_their_advice() -> None:
    def rule(var: Any, grad: Any, *, rate: Any) -> Any:
        return var - np.sqrt(4.0) * torch.cumsum(grad, 0)

    with pytest.raises(TraceError, match="got 'cumsum'") as caught:
        trace(Rule.of(rule), {})
    assert "NumPy" not in str(caught.value)


def test_a_function_without_a_place_is_named_alone() -> None:
    assert place_of_function(len) is None
    error = refusal("r", None, "this", "that", "Do it.")
    assert str(error) == "rule r: expected this; got that. Do it."
