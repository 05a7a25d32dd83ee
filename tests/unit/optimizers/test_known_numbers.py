"""Numbers known from the step before: never other ones than those in force."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import thalweg as tw


def steps(optimizer: tw.Optimizer, variable: tw.Variable, count: int = 3) -> None:
    for _ in range(count):
        optimizer.apply_gradients([(torch.ones(2), variable)])


def columns(optimizer: tw.Optimizer) -> dict[str, list[float]]:
    return {name: c.tolist() for name, c in optimizer.values_in_force().items()}


def looked_up(optimizer: Any) -> dict[str, list[float]]:
    return {name: c.tolist() for name, c in optimizer._values_at(None).items()}


def is_known(optimizer: Any) -> bool:
    numbers = optimizer._numbers_known
    return numbers.columns(optimizer._hyper, optimizer._table) is not None


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({}, True),
        ({"use_ema": True}, True),
        ({"per_variable": {"w": {"learning_rate": 0.5}}}, True),
        ({"per_variable": {"w": {"learning_rate": lambda: 0.5}}}, False),
        ({"decay": 0.1}, False),
        ({"learning_rate": lambda: 0.25}, False),
    ],
)
def test_what_depends_on_the_count_is_looked_up(
    options: dict[str, Any], *, known: bool
) -> None:
    optimizer = tw.optimizers.Adam(**options)
    variable = tw.Variable([1.0, 2.0], name="w")
    for _ in range(4):
        steps(optimizer, variable, 1)
        assert columns(optimizer) == looked_up(optimizer)
    assert is_known(optimizer) is known


def test_changes_are_seen() -> None:
    optimizer, variable = tw.optimizers.Adam(), tw.Variable([1.0, 2.0])
    steps(optimizer, variable)
    optimizer.learning_rate = 0.5
    assert columns(optimizer) == looked_up(optimizer)
    optimizer.weight_decay = 0.25
    assert columns(optimizer)["weight_decay"] == [0.25]
    steps(optimizer, variable)
    optimizer.iterations.assign(40)
    assert columns(optimizer)["step"] == [41.0]
    optimizer.iterations.data = torch.tensor(7)
    for _ in range(2):
        assert columns(optimizer)["step"] == [8.0]
    steps(optimizer, variable, 1)
    assert int(optimizer.iterations) == 8
    optimizer.iterations.assign(0)
    assert columns(optimizer) == looked_up(optimizer)


def test_the_count_is_a_tensor_like_others() -> None:
    optimizer, variable = tw.optimizers.Adam(), tw.Variable([1.0, 2.0])
    steps(optimizer, variable)
    version = optimizer.iterations._version
    steps(optimizer, variable)
    assert optimizer.iterations._version == version + 3
    assert int(optimizer.iterations) == 6
    assert optimizer.last_step_applied


def test_a_copy_counts_for_itself() -> None:
    optimizer, variable = tw.optimizers.Adam(), tw.Variable([1.0, 2.0])
    steps(optimizer, variable)
    copied, other = copy.deepcopy((optimizer, variable))
    steps(copied, other, 2)
    assert (int(optimizer.iterations), int(copied.iterations)) == (3, 5)
    steps(optimizer, variable, 2)
    assert torch.equal(variable, other)


def rule_of(optimizer: Any, *columns: str) -> Any:
    return optimizer._numbers_known.rule(columns, optimizer._flags)


def test_the_rule_is_that_of_the_step_before() -> None:
    optimizer, variable = tw.optimizers.SGD(), tw.Variable([1.0, 2.0])
    steps(optimizer, variable)
    assert rule_of(optimizer) is optimizer._bound_rule()
    assert rule_of(optimizer, "clipvalue") is None
    optimizer.momentum = 0.5
    steps(optimizer, variable)
    assert rule_of(optimizer) is optimizer._bound_rule()
    assert len(rule_of(optimizer).slots) == 1
    optimizer.nesterov = True
    assert rule_of(optimizer) is None
    steps(optimizer, variable)
    assert rule_of(optimizer) is optimizer._bound_rule()


class Turned(tw.optimizers.SGD):
    """Climbs or descends, as an attribute of its own says."""

    climbs = False

    def rule(self) -> Any:
        return climb if self.climbs else super().rule()


def climb(var: Any, delta: Any, *, alpha: Any) -> Any:
    return var + alpha * delta


def test_a_rule_that_looks_at_other_things_is_asked_in_each_step() -> None:
    optimizer, variable = Turned(0.5), tw.Variable([1.0, 2.0])
    steps(optimizer, variable)
    assert variable.tolist() == [-0.5, 0.5]
    optimizer.climbs = True
    steps(optimizer, variable)
    assert variable.tolist() == [1.0, 2.0]
    assert rule_of(optimizer) is None


def test_an_aggregator_that_is_set_later_is_asked() -> None:
    optimizer, variable = tw.optimizers.SGD(0.5), tw.Variable([1.0, 2.0])
    steps(optimizer, variable)
    assert optimizer._joins_nothing
    optimizer.gradient_aggregator = lambda pairs: [(2.0 * g, v) for g, v in pairs]
    assert not optimizer._joins_nothing
    steps(optimizer, variable, 1)
    assert variable.tolist() == [-1.5, -0.5]
