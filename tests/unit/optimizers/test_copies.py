"""A shallow copy of an optimizer has its own numbers; a deep one shares nothing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import thalweg as tw


def made() -> tuple[tw.Variable, tw.Variable, Any]:
    held = tw.Variable([1.0], name="a"), tw.Variable([1.0], name="b")
    optimizer = tw.optimizers.SGD(
        0.5, momentum=0.5, clipvalue=2.0, per_variable={"b": {"learning_rate": 0.25}}
    )
    return *held, optimizer


def step(optimizer: Any, *variables: tw.Variable) -> list[float]:
    before = [v.item() for v in variables]
    optimizer.apply_gradients([(torch.ones(1), v) for v in variables])
    pairs = zip(before, variables, strict=True)
    return [old - new.item() for old, new in pairs]


@pytest.mark.parametrize("is_built", [False, True])
@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("turned", [False, True])
def test_numbers_of_one_are_not_those_of_the_other(
    is_built: bool, how: Callable[[Any], Any], turned: bool
) -> None:
    a, b, optimizer = made()
    if is_built:
        step(optimizer, a, b)
    one, other = (how(optimizer), optimizer)[:: -1 if turned else 1]
    one.learning_rate, one.nesterov, one.clipvalue = 0.125, True, 1.0
    one.weight_decay = 0.5
    one.gradient_transformers.append(lambda pairs: pairs)
    assert (other.learning_rate, other.nesterov) == (0.5, False)
    assert (other.clipvalue, other.weight_decay) == (2.0, None)
    assert other.gradient_transformers == []
    assert one.get_config() != other.get_config()


def test_a_shallow_copy_steps_by_its_own_numbers() -> None:
    a, b, optimizer = made()
    optimizer.momentum = 0.0
    for _ in range(3):  # until numbers are known from the step before
        assert step(optimizer, a, b) == [0.5, 0.25]
    copied = copy.copy(optimizer)
    copied.learning_rate = 2.0
    for _ in range(3):
        assert step(copied, a, b) == [2.0, 0.25]
        assert step(optimizer, a, b) == [0.5, 0.25]
    assert copied.iterations is optimizer.iterations


def test_what_a_shallow_copy_builds_is_its_own() -> None:
    a, b, _ = made()
    optimizer = tw.optimizers.SGD(0.5, momentum=0.5)
    step(optimizer, a)
    copied = copy.copy(optimizer)
    assert copied.get_slot(a, "momentum") is optimizer.get_slot(a, "momentum")
    assert step(copied, b) == [0.5]
    assert len(optimizer.get_weights()) == 2
    assert len(copied.get_weights()) == 3
    assert step(optimizer, b) == [0.5]
    assert optimizer.get_slot(b, "momentum") is not copied.get_slot(b, "momentum")


def test_a_deep_copy_shares_nothing() -> None:
    a, b, optimizer = made()
    step(optimizer, a, b)
    (c, d), copied = copy.deepcopy(((a, b), optimizer))
    copied.learning_rate = 4.0
    assert step(copied, c, d) != step(optimizer, a, b)
    assert copied.get_slot(c, "momentum") is not optimizer.get_slot(a, "momentum")
    assert copied.iterations is not optimizer.iterations


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_shallow_copy_of_a_loss_scale_has_its_own_inner_numbers(
    dynamic: bool,
) -> None:
    weight = tw.Variable([1.0])
    inner = tw.optimizers.SGD(0.5)
    optimizer = tw.mixed_precision.LossScaleOptimizer(inner, dynamic, 4.0)
    optimizer.apply_gradients([(torch.ones(1), weight)])
    copied = copy.copy(optimizer)
    copied.learning_rate = 0.25
    assert (optimizer.learning_rate, copied.learning_rate) == (0.5, 0.25)
    assert copied.inner_optimizer is not inner
    copied.minimize(lambda: weight.sum(), [weight])
    assert weight.item() == 0.25
    assert copied.iterations is optimizer.iterations
    assert float(copied.loss_scale) == float(optimizer.loss_scale) == 4.0
    assert copied.get_config()["dynamic"] is dynamic


class Doubling(tw.distribute.StrategyExtended):
    """As if another replica had the same gradients."""

    def aggregate_gradients(self, pairs: Any) -> Any:
        return [(2 * gradient, variable) for gradient, variable in pairs]


def pickled(optimizer: Any) -> Any:
    return pickle.loads(pickle.dumps(optimizer))


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_copy_reduces_as_the_strategy_it_was_made_under(
    how: Callable[[Any], Any], is_wrapped: bool
) -> None:
    strategy = tw.distribute.Strategy(Doubling())
    with strategy.scope():
        optimizer: Any = tw.optimizers.SGD(0.5)
        weight = tw.Variable([4.0])
    if is_wrapped:
        optimizer = tw.LossScaleOptimizer(optimizer, False, 8.0)
    copied = how(optimizer)
    copied.apply_gradients([(torch.ones(1), weight)])
    assert weight.item() == 3.0
    inner = copied.inner_optimizer if is_wrapped else copied
    assert how is pickled or inner._strategy is strategy


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickled])
def test_a_copy_of_one_without_a_strategy_takes_the_one_in_force(
    how: Callable[[Any], Any],
) -> None:
    copied, weight = how(tw.optimizers.SGD(0.5)), tw.Variable([4.0])
    strategy = tw.distribute.Strategy(Doubling())
    strategy.run(copied.apply_gradients, ([(torch.ones(1), weight)],))
    assert weight.item() == 3.0
