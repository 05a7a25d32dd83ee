"""Settings for single variables, by name pattern."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import thalweg as tw
from thalweg.state import set_name


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


@pytest.mark.parametrize("cls", [tw.optimizers.SGD, tw.optimizers.RMSprop])
@pytest.mark.parametrize("momentum", [0.5, lambda: 0.5])
def test_momentum_may_be_of_one_variable_alone(cls: Any, momentum: Any) -> None:
    table = {"a": {"momentum": momentum}, "b": {"learning_rate": tw.scale(2.0)}}
    found: dict[str, list[float]] = {}
    for kind, options in (
        ("own", {"per_variable": table}),
        ("all", {"momentum": 0.5}),
        ("none", {}),
    ):
        pair = [tw.Variable([1.0], name=name) for name in "ac"]
        optimizer = cls(0.25, **options)
        if kind == "own":
            pair.append(tw.Variable([1.0], name="b"))
        for _ in range(3):
            optimizer.apply_gradients([(torch.ones(1), v) for v in pair])
        found[kind] = [v.item() for v in pair[:2]]
    assert found["own"][0] == found["all"][0]
    assert found["own"][1] == pytest.approx(found["none"][1], rel=1e-6)
    assert found["all"][0] != found["none"][0]


@pytest.mark.parametrize("momentum", [0.0, tw.scale(2.0)])
def test_no_momentum_of_a_variable_needs_no_slot(momentum: Any) -> None:
    optimizer = tw.optimizers.SGD(per_variable={"*": {"momentum": momentum}})
    optimizer.build([tw.Variable([1.0], name="a")])
    assert optimizer.get_slot_names() == []


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


@pytest.mark.parametrize(
    "given",
    [
        *(16, "float99", torch.int8, {"m": "int8"}, {"m": "float99"}),
        *({"m": "float8_e4m3fn"}, {"v": torch.float8_e5m2}),
    ],
)
def test_unknown_slot_dtype_is_refused(given: object) -> None:
    with pytest.raises((TypeError, ValueError), match="slot_dtypes"):
        tw.optimizers.Adam(slot_dtypes=given)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("given", ["bfloat16", torch.bfloat16])
def test_one_dtype_is_that_of_all_slots(given: Any) -> None:
    weight = tw.Variable(torch.randn(3))
    optimizer = tw.optimizers.Adam(slot_dtypes=given)
    optimizer.build([weight])
    assert {optimizer.get_slot(weight, n).dtype for n in "mv"} == {torch.bfloat16}
    config = json.loads(json.dumps(optimizer.get_config()))
    assert config["slot_dtypes"] == "bfloat16"
    assert tw.optimizers.Adam.from_config(config)._settings == optimizer._settings


def test_slot_dtypes_by_name() -> None:
    weight = tw.Variable(torch.randn(3))
    optimizer = tw.optimizers.Adam(slot_dtypes={"m": "bfloat16", "v": torch.float64})
    optimizer.build([weight])
    dtypes = [optimizer.get_slot(weight, n).dtype for n in ("m", "v")]
    assert dtypes == [torch.bfloat16, torch.float64]
    optimizer.apply_gradients([(torch.ones(3), weight)])
    assert optimizer.get_config()["slot_dtypes"] == {"m": "bfloat16", "v": "float64"}


@pytest.mark.parametrize("steps", [0, 1, -1, 2.0, True])
def test_a_count_that_is_none_says_what_to_do(steps: Any) -> None:
    part = r"a whole number of steps >= 2, or None; got .*Leave it out"
    with pytest.raises(ValueError, match=part):
        tw.optimizers.SGD(gradient_accumulation_steps=steps)
    part = r"a whole number of steps >= 1, or None; got 0"
    with pytest.raises(ValueError, match=part):
        tw.optimizers.SGD(use_ema=True, ema_overwrite_frequency=0)


@pytest.mark.parametrize("given", ["float64", torch.float64, "float8_e5m2", "int8"])
def test_a_copy_that_is_not_of_less_bits_is_refused(given: Any) -> None:
    part = "low_precision_copy: expected a dtype among float16, bfloat16, float32; got"
    with pytest.raises(ValueError, match=part):
        tw.optimizers.Adam(low_precision_copy=given)


def test_a_factor_needs_a_weight_decay() -> None:
    table = {"*bias": {"weight_decay": tw.scale(0.5)}}
    part = r"Lion: per_variable\['\*bias'\]: .*weight_decay.*Pass weight_decay="
    with pytest.raises(ValueError, match=part):
        tw.optimizers.Lion(per_variable=table)
    config = {"per_variable": {"*bias": {"weight_decay": {"scale": 0.5}}}}
    with pytest.raises(ValueError, match=part):
        tw.optimizers.Lion.from_config(config)
    optimizer = tw.optimizers.Lion(weight_decay=0.1, per_variable=table)
    with pytest.raises(ValueError, match=part):
        optimizer.weight_decay = None
    assert optimizer.weight_decay == 0.1
    assert "scale(0.5)" in repr(optimizer)
    assert tw.optimizers.AdamW(per_variable=table).weight_decay == 0.004


class ByHand(tw.Optimizer):
    """Sets its weight decay after the constructor of the base, if at all."""

    def __init__(self, weight_decay: float | None = None, **options: Any) -> None:
        super().__init__("ByHand", **options)
        if weight_decay is not None:
            self._set_hyper("weight_decay", weight_decay)
        self._set_hyper("learning_rate", 1.0)

    def _resource_apply_dense(
        self, grad: Any, var: Any, apply_state: Any = None
    ) -> None:
        del apply_state
        var.assign_sub(grad)


def test_a_class_with_a_constructor_of_its_own_may_set_the_decay_later() -> None:
    table = {"weight": {"weight_decay": tw.scale(0.5)}}
    weight = tw.Variable([1.0], name="weight")
    pairs = [(torch.zeros(1), weight)]
    with pytest.raises(ValueError, match=r"ByHand: per_variable.*Pass weight_decay="):
        ByHand(per_variable=table).apply_gradients(pairs)
    assert weight.item() == 1.0
    ByHand(0.5, per_variable=table).apply_gradients(pairs)
    assert weight.item() == 0.75


def test_a_class_that_declares_a_weight_decay_keeps_one() -> None:
    optimizer = tw.optimizers.AdamW()
    with pytest.raises(TypeError, match="AdamW: weight_decay: expected a number"):
        optimizer.weight_decay = None  # pyright: ignore[reportAttributeAccessIssue]
    assert optimizer.weight_decay == 0.004


@pytest.mark.parametrize("factor", ["2", True, None, float("nan"), float("inf")])
def test_a_factor_is_a_finite_number(factor: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="scale: expected a number; got"):
        tw.scale(factor)
    with pytest.raises((TypeError, ValueError), match="scale: expected a number; got"):
        tw.optimizers.Adam(per_variable={"*": {"beta_1": {"scale": factor}}})


@pytest.mark.parametrize("use_ema", [True, False])
def test_names_that_become_known_change_the_settings(use_ema: bool) -> None:
    model = make_model()
    weight, bias, *_ = model.parameters()
    set_name(weight, "0.bias.of_old")
    table = {"*bias*": {"learning_rate": 0.25}}
    optimizer = tw.optimizers.SGD(1.0, per_variable=table, use_ema=use_ema)

    def moves() -> list[float]:
        before = [t.detach().clone() for t in (weight, bias)]
        optimizer.apply_gradients([(torch.ones_like(t), t) for t in (weight, bias)])
        pairs = zip(before, (weight, bias), strict=True)
        return [float((old - new).detach().flatten()[0]) for old, new in pairs]

    for _ in range(2):
        assert moves() == pytest.approx([0.25, 1.0])
    optimizer.build(model)
    for _ in range(2):
        assert moves() == pytest.approx([1.0, 0.25])
