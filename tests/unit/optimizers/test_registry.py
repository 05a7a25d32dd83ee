"""Optimizers by name."""

from __future__ import annotations

import pytest

import thalweg as tw


@pytest.mark.parametrize("name", tw.optimizers.names())
def test_every_name_makes_its_class(name: str) -> None:
    optimizer = tw.optimizers.get(name.upper())
    assert type(optimizer).__name__.lower() == name
    again = tw.optimizers.get(tw.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()


def test_an_unknown_name_is_told_once() -> None:
    with pytest.raises(ValueError, match="Did you mean 'adam'") as refusal:
        tw.optimizers.get("adm")
    assert str(refusal.value).count("rmsprop") == 1


def test_a_class_is_no_optimizer() -> None:
    with pytest.raises(TypeError, match=r"the class Adam\. .*: Adam\(\)\."):
        tw.optimizers.get(tw.optimizers.Adam)
    with pytest.raises(TypeError, match="For example 'adam'"):
        tw.optimizers.get(3)


def test_a_wrapper_is_no_optimizer_by_itself() -> None:
    with pytest.raises(ValueError, match=r"LossScaleOptimizer\(optimizer\)"):
        tw.optimizers.get("LossScaleOptimizer")


KERAS_3 = {
    "weight_decay": None,
    "clipnorm": None,
    "global_clipnorm": None,
    "clipvalue": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
}
"""What Keras 3 writes into every configuration, where nothing is asked for."""


@pytest.mark.parametrize("name", tw.optimizers.names())
def test_a_configuration_of_keras_3_is_taken(name: str) -> None:
    plain = tw.optimizers.get(name)
    rate = {
        "module": "keras.optimizers.schedules",
        "class_name": "ExponentialDecay",
        "config": {"initial_learning_rate": 0.1, "decay_steps": 2, "decay_rate": 0.5},
        "registered_name": None,
    }
    theirs = KERAS_3 | {"name": plain.get_config()["name"], "learning_rate": rate}
    if name == "adamw":
        theirs["weight_decay"] = 0.004
    if name == "nadam":
        theirs["learning_rate"] = 0.001
    again = type(plain).from_config(theirs)
    assert again.learning_rate == (0.001 if name == "nadam" else 0.1)
    assert again.use_ema is False
    assert set(again.get_config()) == set(plain.get_config())


def test_a_momentum_of_averages_may_wait_for_them() -> None:
    optimizer = tw.optimizers.SGD(ema_momentum=0.5)
    assert optimizer.use_ema is False
    config = optimizer.get_config()
    assert config["ema_momentum"] == 0.5
    assert type(optimizer).from_config(config).get_config() == config
    assert "ema_momentum" not in tw.optimizers.SGD(ema_momentum=0.99).get_config()
    with pytest.raises(ValueError, match="ema_momentum"):
        tw.optimizers.SGD(ema_momentum=1.5)
    with pytest.raises(ValueError, match="use_ema=True"):
        tw.optimizers.SGD(ema_overwrite_frequency=2)


def test_a_loss_scale_factor_is_a_wrapper_here() -> None:
    part = r"SGD: loss_scale_factor: .*LossScaleOptimizer\(SGD\(\.\.\.\), False, 128\.0\)"
    with pytest.raises(TypeError, match=part):
        tw.optimizers.SGD(loss_scale_factor=128.0)  # pyright: ignore[reportArgumentType]
