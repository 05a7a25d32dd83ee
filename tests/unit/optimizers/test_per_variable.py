"""Settings for single variables, by name pattern."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import thalweg as tw


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def step(optimizer: tw.Optimizer, model: nn.Module) -> list[torch.Tensor]:
    before = [p.detach().clone() for p in model.parameters()]
    pairs = [(torch.ones_like(p), p) for p in model.parameters()]
    optimizer.apply_gradients(pairs)
    pairs = zip(before, model.parameters(), strict=True)
    return [b - p.detach() for b, p in pairs]


def test_patterns_match_names_of_a_module() -> None:
    model = make_model()
    table = {
        "*.bias": {"learning_rate": 0.0},
        "0.*": {"learning_rate": tw.scale(0.5)},
    }
    optimizer = tw.optimizers.SGD(1.0, per_variable=table)
    optimizer.build(model)
    moved = [float(m.flatten()[0].detach()) for m in step(optimizer, model)]
    assert moved == pytest.approx([0.5, 0.0, 1.0, 0.0])


def test_later_patterns_win_and_scales_multiply() -> None:
    model = make_model()
    table = {
        "*": {"learning_rate": tw.scale(0.5)},
        "0.*": {"learning_rate": tw.scale(0.5)},
        "1.bias": {"learning_rate": 2.0},
    }
    optimizer = tw.optimizers.SGD(1.0, per_variable=table)
    optimizer.build(model)
    moved = [float(m.flatten()[0].detach()) for m in step(optimizer, model)]
    assert moved == pytest.approx([0.25, 0.25, 0.5, 2.0], abs=1e-6)


def test_weight_decay_of_some_variables_only() -> None:
    model = make_model()
    table = {"*bias": {"weight_decay": 0.0}}
    optimizer = tw.optimizers.SGD(0.0, per_variable=table, weight_decay=0.5)
    optimizer.learning_rate = 0.1
    optimizer.build(model)
    before = [p.detach().clone() for p in model.parameters()]
    moved = step(optimizer, model)
    assert torch.allclose(moved[0], 0.1 + 0.05 * before[0], atol=1e-6)
    assert torch.allclose(moved[1], torch.tensor(0.1), atol=1e-6)


def test_a_pattern_without_match_is_refused_before_writing() -> None:
    model = make_model()
    optimizer = tw.optimizers.SGD(per_variable={"head.*": {"learning_rate": 0.0}})
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"head\.\*"):
        step(optimizer, model)
    assert torch.equal(before, model[0].weight)


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ({"*": {"lerning_rate": 0.1}}, ValueError),
        ({"*": {"learning_rate": -1.0}}, ValueError),
        ({"*": {"learning_rate": "fast"}}, TypeError),
        ({"*": 0.1}, TypeError),
        ([("*", 0.1)], TypeError),
    ],
)
def test_wrong_tables_are_refused(table: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="per_variable"):
        tw.optimizers.SGD(per_variable=table)  # pyright: ignore[reportArgumentType]


def test_configuration_keeps_the_table() -> None:
    table = {"*": {"learning_rate": tw.scale(0.5)}, "0.*": {"momentum": 0.25}}
    optimizer = tw.optimizers.SGD(momentum=0.9, per_variable=table)
    again = tw.optimizers.SGD.from_config(optimizer.get_config())
    assert again._settings == optimizer._settings


def test_configuration_keeps_schedules_of_the_table_as_json() -> None:
    rate = tw.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    table = {
        "0.*": {"learning_rate": rate, "momentum": torch.tensor(0.5)},
        "1.*": {"learning_rate": lambda: 0.25},
    }
    optimizer = tw.optimizers.SGD(momentum=0.9, per_variable=table)
    assert "ExponentialDecay" in repr(optimizer)
    config = json.loads(json.dumps(optimizer.get_config()))
    for again in (tw.optimizers.SGD.from_config(config), tw.optimizers.SGD(**config)):
        assert again.get_config() == config
        kept = again._settings.per_variable
        assert kept["0.*"]["learning_rate"].get_config() == rate.get_config()
        assert kept["0.*"]["momentum"] == 0.5
        assert kept["1.*"]["learning_rate"] == 0.25


class Halved(tw.optimizers.schedules.LearningRateSchedule):
    """A schedule of the user's."""

    def __call__(self, step: Any) -> float:
        return 0.5 ** int(step)

    def get_config(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("name", ["learning_rate", "beta_1", "weight_decay"])
@pytest.mark.parametrize("is_in_table", [False, True])
def test_own_schedules_come_back_for_every_hyperparameter(
    name: str, is_in_table: bool
) -> None:
    halved: Any = Halved()
    given: dict[str, Any] = {name: halved}
    arguments = {"per_variable": {"*": given}} if is_in_table else given
    optimizer = tw.optimizers.Adam(**arguments)
    config = json.loads(json.dumps(tw.optimizers.serialize(optimizer)))
    again = tw.optimizers.deserialize(config, {"Halved": Halved})
    found = again._settings.per_variable["*"] if is_in_table else again._hyper
    assert isinstance(found[name], Halved)
    with pytest.raises(ValueError, match="custom_objects"):
        tw.optimizers.deserialize(config)


@pytest.mark.parametrize("given", ["row", "", None])
def test_unknown_sparse_policy_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="sparse_update"):
        tw.optimizers.SGD(sparse_update=given)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("given", ["bfloat16", {"m": "int8"}, {"m": "float99"}])
def test_unknown_slot_dtype_is_refused(given: object) -> None:
    with pytest.raises((TypeError, ValueError), match="slot_dtypes"):
        tw.optimizers.Adam(slot_dtypes=given)  # pyright: ignore[reportArgumentType]


def test_slot_dtypes_by_name() -> None:
    weight = tw.Variable(torch.randn(3))
    optimizer = tw.optimizers.Adam(slot_dtypes={"m": "bfloat16", "v": torch.float64})
    optimizer.build([weight])
    dtypes = [optimizer.get_slot(weight, n).dtype for n in ("m", "v")]
    assert dtypes == [torch.bfloat16, torch.float64]
    optimizer.apply_gradients([(torch.ones(3), weight)])
    assert optimizer.get_config()["slot_dtypes"] == {"m": "bfloat16", "v": "float64"}


def test_accumulation_over_0_steps_is_keras_3s_word_for_none() -> None:
    assert tw.optimizers.SGD(gradient_accumulation_steps=0).get_config() == (
        tw.optimizers.SGD().get_config()
    )


@pytest.mark.parametrize("steps", [1, -1, 2.0, True])
def test_a_count_that_is_none_says_what_to_do(steps: Any) -> None:
    part = r"a whole number of steps >= 2, or None; got .*Leave it out"
    with pytest.raises(ValueError, match=part):
        tw.optimizers.SGD(gradient_accumulation_steps=steps)
    part = r"a whole number of steps >= 1, or None; got 0"
    with pytest.raises(ValueError, match=part):
        tw.optimizers.SGD(use_ema=True, ema_overwrite_frequency=0)
