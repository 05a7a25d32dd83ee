"""A rule that is another formula at its second call is refused by line."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.compiler.purity import is_users
from thalweg.compiler.rule import Rule
from thalweg.compiler.trace import trace
from thalweg.errors import TraceError

CALLS = {"count": [0]}


def _random(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * random.random() * grad


def _clock(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * grad / time.perf_counter_ns()


def _generator(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - torch.rand(()).item() * grad


def _count(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * _counted() * grad


def _counted() -> int:
    CALLS["count"][0] += 1
    return CALLS["count"][0]


def _other_operation(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - grad if _counted() % 2 else var * grad


@pytest.mark.parametrize(
    "function", [_random, _clock, _generator, _count, _other_operation]
)
def test_what_varies_is_refused_by_line(function: Any) -> None:
    with pytest.raises(TraceError) as caught:
        trace(Rule.of(function), {})
    line = function.__code__.co_firstlineno + 1
    place = f"rule {function.__name__} ({__file__}:{line})"
    assert str(caught.value).startswith(f"{place}: expected the same formula at every")
    assert "a scalar argument" in str(caught.value)


def test_an_operation_more_is_seen_too() -> None:
    def rule(var: Any, grad: Any) -> Any:
        for _ in range(_counted()):
            grad = -grad
        return grad

    with pytest.raises(TraceError, match="another one at a second call"):
        trace(Rule.of(rule), {})


class Counting(tw.Optimizer):
    learning_rate: tw.Hyper = tw.Hyper(default=0.1)
    calls: Any = [0]  # noqa: RUF012 - shared, as in the mistake that is meant

    def scalars(self, step: Any) -> Any:
        self.calls[0] += 1
        return {"rate": self.learning_rate / self.calls[0]}

    @staticmethod
    def update(var: Any, grad: Any, *, rate: Any) -> Any:
        return var - rate * grad


def test_scalars_that_count_are_refused() -> None:
    var = tw.Variable([1.0])
    with pytest.raises(TraceError, match=r"rule Counting\.update .*the same formula"):
        Counting().apply_gradients([(torch.ones(1), var)])
    assert var.item() == 1.0


def test_a_rule_that_is_the_same_may_hold_any_number() -> None:
    def rule(var: Any, grad: Any, *, lr: Any) -> Any:
        return torch.where(grad > lr, float("nan"), -0.0) + var * 0.0

    names = [node.name for node in trace(Rule.of(rule), {}).graph.nodes]
    assert names[-1] == "output"


def test_own_rules_are_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def noted(*_: object) -> None:
        called.append("compared")

    monkeypatch.setattr("thalweg.compiler.trace.first_difference", noted)
    trace(Rule.of(tw.rules.gradient_descent), {})
    assert called == []

    def rule(var: Any, grad: Any) -> Any:
        return var - grad

    trace(Rule.of(rule), {})
    assert called == ["compared"]


def test_a_package_of_a_similar_name_is_the_user_s() -> None:
    for near in (tw, torch):
        path = f"{Path(str(near.__file__)).parent}_extra/rule.py"
        text = "def rule(var, grad):\n    return var.flip(0)"
        names: dict[str, Any] = {}
        exec(compile(text, path, "exec"), names)
        with pytest.raises(TraceError, match=re.escape(f"({path}:2)")):
            trace(Rule.of(names["rule"]), {})
        exec(compile(text.replace("flip(0)", "add(1)"), path, "exec"), names)
        assert is_users(trace(Rule.of(names["rule"]), {}).graph)
