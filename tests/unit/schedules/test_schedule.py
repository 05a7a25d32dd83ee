"""What every schedule does with its step, its arguments and its config."""

from __future__ import annotations

import copy
import json
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch

from thalweg import schedules
from thalweg.schedules.schedule import as_float, as_number, at_least, power
from thalweg.state import Variable

DECAY = schedules.InverseTimeDecay(1.0, decay_steps=2, decay_rate=0.5)

EXAMPLES = [
    schedules.ExponentialDecay(0.1, 3, 0.5, staircase=True, name="decay"),
    schedules.PiecewiseConstantDecay([3, 6], [0.1, 0.05, 0.01]),
    schedules.PolynomialDecay(0.1, 8, power=2, cycle=True),
    schedules.InverseTimeDecay(0.1, 2, 0.5),
    schedules.CosineDecay(0.1, 6, warmup_target=0.2, warmup_steps=3),
    schedules.CosineDecayRestarts(0.1, 4, t_mul=1.5, m_mul=0.5),
    schedules.LinearCosineDecay(0.1, 6),
    schedules.NoisyLinearCosineDecay(0.1, 6, seed=3),
]


@pytest.mark.parametrize(
    "step",
    [
        4,
        4.0,
        np.int64(4),
        np.float32(4),
        np.array(4),
        torch.tensor(4),
        torch.tensor(4.0, requires_grad=True),
        torch.tensor(4, dtype=torch.int32),
        Variable(4, trainable=False),
    ],
    ids=lambda step: type(step).__name__,
)
def test_a_step_is_any_number(step: torch.Tensor) -> None:
    rate = DECAY(step)
    assert type(rate) is float
    assert rate == 0.5


def test_a_fraction_of_a_step_counts() -> None:
    assert DECAY(torch.tensor(3.0)) == DECAY(3.0) == 1.0 / 1.75


@pytest.mark.parametrize(
    "step", ["4", None, True, [4], torch.tensor([4]), torch.tensor(True)]
)
def test_a_step_that_is_no_number_is_refused(step: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="InverseTimeDecay: step: expected a number"):
        DECAY(step)


@pytest.mark.parametrize("step", [-1, -0.5, torch.tensor(-3), float("nan")])
def test_a_step_before_the_first_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match="InverseTimeDecay"):
        DECAY(step)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda item: type(item).__name__)
def test_config_makes_an_equal_schedule(schedule: schedules.ExponentialDecay) -> None:
    config = json.loads(json.dumps(schedule.get_config()))
    again = type(schedule).from_config(config)
    assert again.get_config() == schedule.get_config()
    assert [again(step) for step in range(20)] == [schedule(s) for s in range(20)]


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda item: type(item).__name__)
def test_copies_and_pickles(schedule: schedules.ExponentialDecay) -> None:
    for again in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert again(5) == schedule(5)
        assert again.get_config() == schedule.get_config()


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda item: type(item).__name__)
def test_a_schedule_is_hashable_and_shows_its_arguments(
    schedule: schedules.ExponentialDecay,
) -> None:
    assert schedule in {schedule: 1}
    name, rate = type(schedule).__name__, getattr(schedule, "decay_steps", "")
    assert repr(schedule).startswith(f"{name}(")
    assert str(rate) in repr(schedule)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda item: type(item).__name__)
def test_its_text_makes_an_equal_one(schedule: schedules.ExponentialDecay) -> None:
    again = eval(repr(schedule), vars(schedules).copy())
    assert type(again) is type(schedule)
    assert again.get_config() == schedule.get_config()
    assert "None" not in repr(schedule)


def test_its_text_leaves_defaults_out() -> None:
    text = repr(schedules.CosineDecay(torch.tensor(0.5), 10))
    assert text == "CosineDecay(initial_learning_rate=0.5, decay_steps=10)"
    text = repr(schedules.CosineDecay(1.0, 10, warmup_target=2.0, name="w"))
    assert text.endswith("decay_steps=10, name='w', warmup_target=2.0)")


def test_a_tensor_argument_is_read_at_every_call() -> None:
    rate = Variable(1.0, trainable=False)
    schedule = schedules.ExponentialDecay(rate, torch.tensor(2), np.float64(0.25))
    assert schedule(2) == 0.25
    rate.assign(4.0)
    assert schedule(2) == 1.0
    config = schedule.get_config()
    assert config["initial_learning_rate"] == 4.0
    assert type(config["decay_steps"]) is int
    assert json.loads(json.dumps(config)) == config


def test_an_attribute_may_be_changed() -> None:
    schedule = schedules.ExponentialDecay(1.0, 2, 0.25)
    schedule.initial_learning_rate = 8.0
    assert schedule(2) == 2.0


@pytest.mark.parametrize("wrong", ["0.1", None, True, torch.zeros(2), [0.1]])
def test_an_argument_that_is_no_number_is_refused(wrong: float) -> None:
    with pytest.raises(TypeError, match="CosineDecay: initial_learning_rate: expected"):
        schedules.CosineDecay(wrong, 10)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), torch.tensor(torch.inf)])
def test_an_argument_that_is_not_finite_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="CosineDecay"):
        schedules.CosineDecay(wrong, 10)


@pytest.mark.parametrize("decay_steps", [0, -1, 0.0, torch.tensor(0)])
@pytest.mark.parametrize(
    "kind",
    [
        schedules.PolynomialDecay,
        schedules.CosineDecay,
        schedules.CosineDecayRestarts,
        schedules.LinearCosineDecay,
        schedules.NoisyLinearCosineDecay,
    ],
)
def test_decay_steps_are_above_zero(
    kind: type[schedules.CosineDecay], decay_steps: float
) -> None:
    with pytest.raises(ValueError, match="decay_steps > 0; got "):
        kind(0.1, decay_steps)


def test_a_schedule_of_ones_own() -> None:
    class Halved(schedules.LearningRateSchedule):
        def __init__(self, rate: float) -> None:
            self.rate = rate

        def __call__(self, step: float | torch.Tensor) -> float:
            return self.rate * 0.5 ** int(step)

        def get_config(self) -> dict[str, float]:
            return {"rate": self.rate}

    again = Halved.from_config(Halved(2.0).get_config())
    assert isinstance(again, Halved)
    assert again(2) == 0.5


def test_a_schedule_without_its_methods_says_which() -> None:
    class Empty(schedules.LearningRateSchedule):
        pass

    with pytest.raises(NotImplementedError, match=r"Define Empty\.__call__"):
        Empty()(1)
    with pytest.raises(NotImplementedError, match=r"Define Empty\.get_config"):
        Empty().get_config()


def test_as_float_leaves_the_graph() -> None:
    assert as_float(torch.tensor(2, dtype=torch.int8)) == 2.0
    assert as_float(torch.tensor(0.5, requires_grad=True)) == 0.5


def test_as_number_keeps_ints() -> None:
    assert type(as_number("here", np.int32(3))) is int
    assert type(as_number("here", torch.tensor(3.0))) is float
    with pytest.raises(ValueError, match="here: expected a number; got NaN"):
        as_number("here", float("nan"))


def test_at_least_returns_the_number_or_refuses_it() -> None:
    assert at_least(1, "here", "size", 1) == 1
    with pytest.raises(ValueError, match=re.escape("here: expected size >= 1; got 0")):
        at_least(1, "here", "size", 0)


def test_power_has_no_overflow_error() -> None:
    assert power(2.0, 3) == 8.0
    assert power(0.0, 0) == 1.0
    assert power(10.0, 1e6) == float("inf")


@pytest.mark.parametrize("given", ["no", 1, None])
def test_a_switch_is_a_bool(given: Any) -> None:
    part = r"ExponentialDecay: staircase: expected True or False; got .*Pass a bool"
    with pytest.raises(TypeError, match=part):
        schedules.ExponentialDecay(0.1, 2, 0.5, staircase=given)
    with pytest.raises(TypeError, match="PolynomialDecay: cycle: expected True or"):
        schedules.PolynomialDecay(0.1, 2, cycle=given)
    config = DECAY.get_config() | {"staircase": given}
    with pytest.raises(TypeError, match="InverseTimeDecay: staircase"):
        schedules.InverseTimeDecay.from_config(config)
