"""A pass beside the update: its numbers, its tables, and when they are made anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.step.pretended_device import DEVICE, pretended_device
from thalweg.compiler import Rule
from thalweg.optimizers import rule_pass
from thalweg.optimizers.rule_pass import RulePass
from thalweg.rules import decoupled_weight_decay
from thalweg.rules.moving_average import moving_average
from thalweg.step import Plan

RULE = Rule.of(moving_average)
SHAPES = (3, 5), (7,), (), (0,)


def tensors(start: float, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.full(s, start + i, dtype=dtype) for i, s in enumerate(SHAPES)]


def momentum(*numbers: float) -> dict[str, np.ndarray]:
    return {"momentum": np.array(numbers)}


def test_every_tensor_takes_the_number_of_its_setting() -> None:
    averages, variables = tensors(0.0), tensors(8.0)
    follow = RulePass("Adam", RULE)
    follow(averages, variables, [0, 1, 0, 1], momentum(0.75, 0.5))
    found = [average.flatten().tolist() for average in averages]
    assert found == [[2.0] * 15, [5.0] * 7, [4.0], []]
    assert [v.unique().tolist() for v in variables] == [[8.0], [9.0], [10.0], []]


def test_nothing_to_write_is_no_pass() -> None:
    RulePass("Adam", RULE)([], [], [], momentum(0.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_bits_are_those_of_the_rule(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    average = torch.randn(40, generator=generator).to(dtype)
    variable = torch.randn(40, generator=generator)
    wide = torch.promote_types(dtype, torch.float32)
    expected = moving_average(
        average.to(wide), variable.to(wide), momentum=torch.tensor(0.9, dtype=wide)
    ).to(dtype)
    RulePass("Adam", RULE)([average], [variable], [0], momentum(0.9))
    assert torch.equal(average, expected)


def test_tables_of_a_few_sets_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(*arguments: Any) -> Plan:
        made.append(1)
        return Plan(*arguments)

    counted.fits = Plan.fits  # type: ignore[attr-defined]
    monkeypatch.setattr(rule_pass, "Plan", counted)
    averages, variables = tensors(0.0), tensors(8.0)
    follow = RulePass("Adam", RULE)
    for _ in range(3):
        for chosen in (slice(None), slice(0, 2), slice(2, None)):
            settings = [0] * len(averages[chosen])
            given = averages[chosen], variables[chosen], settings
            follow(*given, momentum(0.5))
    assert len(made) == 3
    assert averages[0].unique().tolist() == [8.0 * (1 - 0.5**6)]


@pytest.mark.parametrize("moved", ["written", "read"])
def test_memory_that_was_replaced_is_found(moved: str) -> None:
    average = torch.nn.Parameter(torch.zeros(4))
    variable = torch.nn.Parameter(torch.ones(4))
    follow = RulePass("Adam", RULE)
    for _ in range(2):
        follow([average], [variable], [0], momentum(0.5))
    tensor = average if moved == "written" else variable
    tensor.data = torch.full((4,), 0.25 if moved == "written" else 3.0)
    follow([average], [variable], [0], momentum(0.5))
    assert average.tolist() == [0.625 if moved == "written" else 1.875] * 4
    assert not average.grad_fn


def test_strided_tensors_are_followed() -> None:
    average, variable = torch.zeros(3, 2).T, torch.arange(6.0).view(2, 3)
    RulePass("Adam", RULE)([average], [variable], [0], momentum(0.5))
    assert torch.equal(average, variable / 2)


def test_another_shape_is_refused_before_a_write() -> None:
    averages = [torch.zeros(2), torch.zeros(3)]
    with pytest.raises(ValueError, match="Adam: moving_average: "):
        RulePass("Adam", RULE)(
            averages, [torch.ones(2), torch.ones(2)], [0, 0], momentum(0.5)
        )
    assert averages[0].tolist() == [0.0, 0.0]


def test_keys_are_one_for_each_pair_of_dtypes() -> None:
    follow = RulePass("Adam", RULE)
    averages = [torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(3)]
    keys = follow.keys(averages, [torch.zeros(2)] * 3)
    wide, narrow = torch.float32, torch.bfloat16
    assert [key.dtypes for key in keys] == [(wide, wide), (narrow, wide)]


@pytest.mark.parametrize("applies", [True, False, None])
def test_a_device_may_know_better(applies: bool | None) -> None:
    with pretended_device() as device:
        average = torch.zeros(3, device=DEVICE)
        variable = torch.ones(3, device=DEVICE)
        known = torch.tensor([0.75], dtype=torch.float64, device=DEVICE)
        verdict = None if applies is None else torch.tensor(applies, device=DEVICE)
        follow = RulePass("Adam", RULE)
        given: Any = [average], [variable], [0], momentum(0.5)
        follow(*given)  # its tables are made
        average.zero_()
        with device.no_waiting():
            follow(*given, on_device={"momentum": known}, applies=verdict)
        assert average.tolist() == [0.0 if applies is False else 0.25] * 3
        follow(*given)
        assert average[0].item() == (0.5 if applies is False else 0.625)


def test_a_rule_of_two_numbers() -> None:
    decay = RulePass("Own", Rule.of(decoupled_weight_decay))
    values = {"lr": np.array([0.5]), "weight_decay": np.array([0.5])}
    variable = torch.ones(3)
    decay([variable], [torch.ones(3)], [0], values)
    assert variable.tolist() == [0.75] * 3
