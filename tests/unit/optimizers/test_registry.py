"""Optimizers by name."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

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
    text = str(refusal.value)
    # Where many own classes are alive, the list is too long to be told.
    assert text.count("rmsprop") == text.count("Known:") <= 1


def test_a_class_is_no_optimizer() -> None:
    with pytest.raises(TypeError, match=r"the class Adam\. .*: Adam\(\)\."):
        tw.optimizers.get(tw.optimizers.Adam)
    with pytest.raises(TypeError, match="For example 'adam'"):
        tw.optimizers.get(3)


def test_a_wrapper_is_no_optimizer_by_itself() -> None:
    with pytest.raises(ValueError, match=r"LossScaleOptimizer\(optimizer\)"):
        tw.optimizers.get("LossScaleOptimizer")


KERAS_2_OF_ALL = {"learning_rate": 0.001, "decay": 0.0}
KERAS_2: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.0, "nesterov": False},
    "RMSprop": {"rho": 0.9, "momentum": 0.0, "epsilon": 1e-07, "centered": False},
    "Adam": {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-07, "amsgrad": False},
    "Adamax": {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-07},
    "Nadam": {"decay": 0.004, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-07},
    "Adagrad": {"initial_accumulator_value": 0.1, "epsilon": 1e-07},
    "Adadelta": {"rho": 0.95, "epsilon": 1e-07},
    "Ftrl": {
        "initial_accumulator_value": 0.1,
        "learning_rate_power": -0.5,
        "l1_regularization_strength": 0.0,
        "l2_regularization_strength": 0.0,
        "beta": 0.0,
        "l2_shrinkage_regularization_strength": 0.0,
    },
}
"""What Keras 2.6 writes."""
KERAS_3_OF_ALL: dict[str, Any] = {
    "learning_rate": 0.0010000000474974513,
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
KERAS_3: dict[str, dict[str, Any]] = KERAS_2 | {
    "AdamW": KERAS_2["Adam"] | {"weight_decay": 0.004},
    "Nadam": KERAS_2["Adamax"],
    "Lion": {"beta_1": 0.9, "beta_2": 0.99},
    "Lamb": KERAS_2["Adamax"],
}
"""What Keras 3.15 writes, where nothing is asked for."""
COSINE: dict[str, Any] = {
    "module": "keras.optimizers.schedules",
    "class_name": "CosineDecay",
    "config": {
        "initial_learning_rate": 0.1,
        "decay_steps": 10,
        "alpha": 0.0,
        "name": "CosineDecay",
        "warmup_target": None,
        "warmup_steps": 0,
    },
    "registered_name": None,
}


def from_json(name: str, config: dict[str, Any]) -> Any:
    """The optimizer that a serialized one of Keras describes."""
    written = {"module": "keras.optimizers", "class_name": name, "config": config}
    return tw.optimizers.deserialize(json.loads(json.dumps(written)))


@pytest.mark.parametrize("name", KERAS_2)
def test_a_configuration_of_keras_2_is_taken_and_given_back(name: str) -> None:
    theirs = KERAS_2_OF_ALL | {"name": name} | KERAS_2[name]
    assert from_json(name, theirs).get_config() == theirs


@pytest.mark.parametrize("name", KERAS_3)
def test_a_configuration_of_keras_3_is_taken(name: str) -> None:
    optimizer = from_json(name, KERAS_3_OF_ALL | {"name": "mine"} | KERAS_3[name])
    plain = getattr(tw.optimizers, name)().get_config()
    rate = KERAS_3_OF_ALL["learning_rate"]
    expected = plain | {"name": "mine", "learning_rate": rate}
    if name == "Nadam":  # its momentum grows so fast there
        expected["decay"] = 1.0
    assert optimizer.get_config() == expected
    again = type(optimizer).from_config(json.loads(json.dumps(expected)))
    assert again.get_config() == expected


@pytest.mark.parametrize("name", [n for n in KERAS_3 if n != "Nadam"])
def test_options_of_keras_3_are_taken(name: str) -> None:
    asked = {
        "learning_rate": COSINE,
        "weight_decay": 0.01,
        "global_clipnorm": 1.0,
        "use_ema": True,
        "ema_momentum": 0.9,
        "ema_overwrite_frequency": 5,
        "gradient_accumulation_steps": 3,
    }
    theirs = KERAS_3_OF_ALL | {"name": "mine"} | KERAS_3[name] | asked
    config = from_json(name, theirs).get_config()
    assert config["learning_rate"]["config"] == COSINE["config"]
    numbers = asked | {"learning_rate": config["learning_rate"]}
    assert {key: config[key] for key in asked} == numbers


@pytest.mark.parametrize(
    "count", ["ema_overwrite_frequency", "gradient_accumulation_steps"]
)
def test_a_count_of_0_is_keras_3s_word_for_none(count: str) -> None:
    theirs = KERAS_3_OF_ALL | KERAS_3["SGD"] | {"use_ema": True, count: 0}
    assert count not in from_json("SGD", theirs).get_config()


def test_what_has_no_meaning_here_is_refused() -> None:
    scaled = KERAS_3_OF_ALL | KERAS_3["Lion"] | {"loss_scale_factor": 8.0}
    with pytest.raises(
        TypeError, match=r"LossScaleOptimizer\(Lion\(\.\.\.\), dynamic=False"
    ):
        from_json("Lion", scaled)
    nadam = KERAS_3_OF_ALL | KERAS_3["Nadam"] | {"learning_rate": COSINE}
    with pytest.raises(ValueError, match=r"Nadam: .*CosineDecay.*A function of"):
        from_json("Nadam", nadam)
    with pytest.raises(ValueError, match=r"a known name; got 'Muon'"):
        from_json("Muon", KERAS_3_OF_ALL)


def test_a_loss_scale_optimizer_of_keras_3_is_taken() -> None:
    inner = {
        "module": "keras.src.backend.torch.optimizers.torch_sgd",
        "class_name": "SGD",
        "config": KERAS_3_OF_ALL | KERAS_3["SGD"] | {"name": "sgd"},
        "registered_name": "SGD",
    }
    theirs = {
        "name": "loss_scale_optimizer",
        "inner_optimizer": inner,
        "initial_scale": 32768.0,
        "dynamic_growth_steps": 2000,
    }
    optimizer = from_json("LossScaleOptimizer", theirs)
    expected = tw.mixed_precision.LossScaleOptimizer(tw.optimizers.SGD())
    config = optimizer.get_config()
    del config["inner_optimizer"]
    assert config.items() <= expected.get_config().items()


class Halved(tw.optimizers.schedules.LearningRateSchedule):
    """An own schedule."""

    def __call__(self, step: Any) -> float:
        return 0.5 ** int(step)

    def get_config(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("name", tw.optimizers.names())
def test_every_hyperparameter_may_be_an_own_schedule_in_json(name: str) -> None:
    plain = tw.optimizers.get(name)
    hypers = [*plain._hypers_declared, "weight_decay", "ema_momentum", "decay"]
    if name == "nadam":
        hypers = [h for h in hypers if h not in ("learning_rate", "decay")]
    own = {hyper: Halved() for hyper in hypers if hyper != "decay"}
    table = {h: Halved() for h in hypers if h not in ("ema_momentum", "decay")}
    arguments: Any = own | {"use_ema": True, "per_variable": {"*bias": table}}
    if "decay" in hypers:
        arguments["decay"] = 0.5
    optimizer = type(plain)(**arguments)
    config = json.loads(json.dumps(tw.optimizers.serialize(optimizer)))
    again = tw.optimizers.deserialize(config, {"Halved": Halved})
    assert again.get_config() == optimizer.get_config() == config["config"]
    assert all(isinstance(again._hyper[hyper], Halved) for hyper in own)
    found = again._settings.per_variable["*bias"]
    assert list(map(type, found.values())) == [Halved] * len(table)
    with pytest.raises(ValueError, match="custom_objects"):
        tw.optimizers.deserialize(config)


def test_a_momentum_of_averages_may_wait_for_them() -> None:
    optimizer = tw.optimizers.SGD(ema_momentum=0.5)
    assert optimizer.use_ema is False
    config = optimizer.get_config()
    assert config["ema_momentum"] == 0.5
    assert type(optimizer).from_config(config).get_config() == config
    assert "ema_momentum" not in tw.optimizers.SGD(ema_momentum=0.99).get_config()
    kept = tw.optimizers.SGD(ema_momentum=lambda: 0.25).get_config()["ema_momentum"]
    assert kept == 0.25
    with pytest.raises(ValueError, match="ema_momentum"):
        tw.optimizers.SGD(ema_momentum=1.5)
    with pytest.raises(ValueError, match="use_ema=True"):
        tw.optimizers.SGD(ema_overwrite_frequency=2)
    without = tw.optimizers.SGD(use_ema=False, ema_overwrite_frequency=1)
    assert "ema_overwrite_frequency" not in without.get_config()
    weight = tw.Variable([1.0])
    without.apply_gradients([(torch.ones(1), weight)])
    assert weight.item() == pytest.approx(0.99)


def test_a_loss_scale_factor_is_a_wrapper_here() -> None:
    wrapper = (
        r"tw\.LossScaleOptimizer\(SGD\(\.\.\.\), dynamic=False, initial_scale=128\.0\)"
    )
    with pytest.raises(TypeError, match=f"SGD: loss_scale_factor: .*{wrapper}"):
        tw.optimizers.SGD(loss_scale_factor=128.0)  # pyright: ignore[reportArgumentType]


class Around(tw.Optimizer):
    """Holds the configuration of another optimizer, which is no schedule."""

    def __init__(self, inner: Any, name: str = "Around", **options: Any) -> None:
        super().__init__(name, **options)
        self.inner = inner


def test_only_hyperparameters_are_schedules() -> None:
    inner = {"class_name": "SGD", "config": {"learning_rate": 0.5}}
    assert Around.from_config({"inner": inner}).inner == inner


@pytest.mark.parametrize("clip", ["clipvalue", "clipnorm", "global_clipnorm"])
def test_numbers_of_other_libraries_are_plain_in_a_configuration(clip: str) -> None:
    for given in (np.float32(0.5), torch.tensor(0.5)):
        arguments: Any = {clip: given, "learning_rate": torch.tensor(0.25)}
        config = tw.optimizers.SGD(**arguments).get_config()
        assert json.loads(json.dumps(config)) == config
        assert (config[clip], config["learning_rate"]) == (0.5, 0.25)
