"""NumPy's numbers and bools as hyperparameters, flags and options."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import thalweg as tw

NUMBERS = [
    *(np.float16(0.25), np.float32(0.25), np.float64(0.25), np.longdouble(0.25)),
    *(np.array(0.25), np.array(0.25, np.float32)),
    *(np.int64(1), np.uint8(1), np.array(1)),
]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: f"{type(n).__name__}")
def test_a_numpy_number_is_the_python_number_it_is(number: Any) -> None:
    optimizer = tw.optimizers.SGD(number, momentum=number, decay=number)
    optimizer.weight_decay = number
    config = optimizer.get_config()
    for name in ("learning_rate", "momentum", "decay", "weight_decay"):
        assert type(config[name]) in (int, float)
        assert config[name] == getattr(optimizer, name) == float(number)
    assert json.loads(json.dumps(config)) == config
    again = tw.optimizers.SGD(0.5)
    again.learning_rate = number
    assert again.learning_rate == float(number)


@pytest.mark.parametrize("option", ["clipvalue", "clipnorm", "global_clipnorm"])
def test_a_clip_may_be_a_numpy_number(option: str) -> None:
    given: dict[str, Any] = {option: np.float32(0.5)}
    config = tw.optimizers.Adam(**given).get_config()
    assert type(config[option]) is float
    assert config[option] == 0.5


def test_every_further_option_may_be_a_numpy_number() -> None:
    options: dict[str, Any] = {
        "use_ema": np.True_,
        "ema_momentum": np.float32(0.5),
        "ema_overwrite_frequency": np.int64(3),
        "gradient_accumulation_steps": np.int32(2),
        "stochastic_rounding": np.True_,
        "rounding_seed": np.int64(7),
        "per_variable": {
            "*bias": {"weight_decay": np.float32(0.0)},
            "0.*": {"learning_rate": tw.scale(np.float32(0.5))},  # pyright: ignore[reportArgumentType]
        },
    }
    config = tw.optimizers.AdamW(np.float32(0.5), **options).get_config()
    assert json.loads(json.dumps(config)) == config
    assert config["gradient_accumulation_steps"] == 2
    assert config["per_variable"]["0.*"] == {"learning_rate": {"scale": 0.5}}


@pytest.mark.parametrize("asked", [True, False])
def test_switches_may_be_numpy_bools(asked: bool) -> None:
    given: Any = np.bool_(asked)
    assert tw.optimizers.SGD(0.5, use_ema=given).use_ema is asked
    inner = tw.optimizers.SGD(0.5)
    scaled = tw.LossScaleOptimizer(inner, given, np.float32(2.0))  # pyright: ignore[reportArgumentType]
    assert scaled.get_config()["dynamic"] is asked
    with pytest.raises(TypeError, match=r"SGD: use_ema: expected a bool; got 1"):
        tw.optimizers.SGD(0.5, use_ema=np.int64(1))  # pyright: ignore[reportArgumentType]


def test_a_configuration_of_keras_is_taken() -> None:
    config = {"learning_rate": np.float32(0.5), "momentum": np.float32(0.0)}
    optimizer = tw.optimizers.SGD.from_config({"name": "SGD", "decay": 0.0, **config})
    weight = tw.Variable([1.0])
    optimizer.apply_gradients([(torch.ones(1), weight)])
    assert weight.item() == 0.5


def test_a_flag_may_be_a_numpy_bool() -> None:
    config = tw.optimizers.Adam(amsgrad=np.True_).get_config()
    assert config["amsgrad"] is True
    with pytest.raises(TypeError, match=r"amsgrad: expected True or False; got 1"):
        tw.optimizers.Adam(amsgrad=np.int64(1))  # pyright: ignore[reportArgumentType]


def test_slots_and_states_may_begin_with_a_numpy_number() -> None:
    class Counting(tw.Optimizer):
        learning_rate: tw.Hyper = tw.Hyper(default=np.float32(0.5))
        kept = tw.Slot(initial=np.float32(0.25))  # pyright: ignore[reportArgumentType]
        count = tw.State(initial=np.int64(2))  # pyright: ignore[reportArgumentType]

    weight = tw.Variable([1.0])
    optimizer = Counting()
    optimizer.build([weight])
    assert optimizer.get_slot(weight, "kept").item() == 0.25
    assert optimizer.count.item() == 2.0


@pytest.mark.parametrize(
    "value", [np.True_, np.array([0.5]), np.complex64(1), np.str_("a")]
)
def test_what_is_no_number_of_numpy_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="SGD: learning_rate: expected a number"):
        tw.optimizers.SGD(value)
    with pytest.raises(TypeError, match=r"SGD: expected clipnorm >= 0; got .* \("):
        tw.optimizers.SGD(clipnorm=value)


@pytest.mark.parametrize("value", ["a", True, [1.0]])
def test_a_clip_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"Adam: expected clipnorm >= 0; got .*None"):
        tw.optimizers.Adam(clipnorm=value)


@pytest.mark.parametrize("value", [np.float32(-1.0), np.float32("nan"), float("nan")])
def test_a_numpy_number_out_of_bounds_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="learning_rate: expected a number >= 0"):
        tw.optimizers.SGD(value)
    optimizer = tw.optimizers.Adam()
    with pytest.raises(ValueError, match="expected clipnorm >= 0"):
        optimizer.clipnorm = value


def test_a_trained_variable_is_read_as_a_number_without_a_warning() -> None:
    rate = tw.Variable(0.25)
    optimizer = tw.optimizers.SGD(rate)
    assert rate.requires_grad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert optimizer.learning_rate == 0.25
        rate.assign(0.5)
        assert optimizer.learning_rate == 0.5
