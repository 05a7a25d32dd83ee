"""Captured steps, replayed on a GPU that is not there: they go on as eager ones."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

import thalweg as tw
from tests.unit.optimizers.test_no_waiting import RATE, close, pairs_of, variables
from tests.unit.step.pretended_device import (
    DEVICE,
    PretendedDevice,
)
from thalweg import optim


@pytest.fixture
def device(device: PretendedDevice, monkeypatch: pytest.MonkeyPatch) -> PretendedDevice:
    monkeypatch.setattr(device, "is_on_side_stream", False)
    return device


def adam() -> Any:
    return tw.optimizers.Adam(RATE, global_clipnorm=0.5, use_ema=True)


def nadam(nonfinite: Any = "off") -> Any:
    options: dict[str, Any] = {"use_ema": True, "ema_overwrite_frequency": 3}
    return tw.optimizers.Nadam(0.1, nonfinite=nonfinite, **options)


def skipping_nadam() -> Any:
    return nadam("skip")


def scaled() -> Any:
    inner = tw.optimizers.SGD(RATE, momentum=0.9)
    return tw.optimizers.LossScaleOptimizer(inner, True, 4.0, dynamic_growth_steps=2)


@pytest.mark.parametrize("kind", ["dense", "mixed"])
@pytest.mark.parametrize("make", [adam, nadam, skipping_nadam, scaled])
def test_replays_go_on(make: Any, kind: str, device: PretendedDevice) -> None:
    here, there = make(), make()
    expected, found = variables("cpu"), variables(DEVICE)
    pairs = pairs_of(0, found, kind)
    device.is_on_side_stream = True
    for _ in range(2):
        there.apply_gradients(pairs)
    with device.graph() as graph:
        there.apply_gradients(pairs)
    device.is_on_side_stream = False
    values = pairs[0][0].values if kind == "mixed" else pairs[0][0]
    bad = (4, 6) if make in (skipping_nadam, scaled) else ()
    with device.no_waiting():
        for step in range(2, 7):
            was = values[0].clone()
            if step in bad:
                values[0] *= torch.inf
            graph.replay()
            values[0] = was
        there.apply_gradients(pairs)
    for step in range(8):
        here.apply_gradients(pairs_of(0, expected, kind, bad=step in bad))
    assert there.iterations.item() == here.iterations.item()
    if make is scaled:
        assert float(there.loss_scale) == float(here.loss_scale)
    assert close(found, expected)


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "SGD"])
def test_replays_of_a_drop_in_follow_its_rate(
    name: str, device: PretendedDevice
) -> None:
    expected, found = variables("cpu"), variables(DEVICE)
    rate = torch.tensor(0.25).to(DEVICE)
    options: dict[str, Any] = {"momentum": 0.5} if name == "SGD" else {}
    here = getattr(torch.optim, name)(expected, lr=0.25, **options)
    takes = {} if name == "SGD" else {"capturable": True}
    there = getattr(optim, name)(found, lr=rate, **takes, **options)
    for held in (expected, found):
        for gradient, variable in pairs_of(0, held):
            variable.grad = gradient
    for _ in range(2):
        there.step()
    with device.graph() as graph:
        there.step()
    for step in range(6):
        if step > 2:
            here.param_groups[0]["lr"] *= 0.5
        here.step()
    with device.no_waiting():
        for step in range(2, 6):
            if step > 2:
                rate.mul_(0.5)
            graph.replay()
    assert close(found, expected)
    if name != "SGD":
        assert there.state[found[0]]["step"].item() == 6


# -- what comes before a capture, and what outlives it ------------------------


@pytest.mark.parametrize("kind", ["dense", "mixed"])
def test_a_capture_over_other_variables_is_refused(
    kind: str, device: PretendedDevice
) -> None:
    device.is_on_side_stream = True
    here, there = adam(), adam()
    expected, found = variables("cpu"), variables(DEVICE)
    for step in range(2):
        here.apply_gradients(pairs_of(step, expected, kind)[:-1])
        there.apply_gradients(pairs_of(step, found, kind)[:-1])
    pairs = pairs_of(2, found, kind)
    with device.capture(), pytest.raises(RuntimeError, match="a step before it"):
        there.apply_gradients(pairs)
    assert there.get_slot_names() == here.get_slot_names()
    assert len(there.variables()) == len(here.variables())  # none for the last one
    for step in range(2, 4):
        here.apply_gradients(pairs_of(step, expected, kind))
        there.apply_gradients(pairs_of(step, found, kind))
    assert there.iterations.item() == here.iterations.item() == 4
    assert close(found, expected)


@pytest.mark.parametrize("kind", ["dense", "mixed"])
def test_a_first_step_is_not_captured(kind: str, device: PretendedDevice) -> None:
    device.is_on_side_stream = True
    for optimizer in (tw.optimizers.SGD(RATE), adam()):
        found = variables(DEVICE)
        pairs = pairs_of(0, found, kind)
        for _ in range(2):  # with slots, too, there is more to prepare
            with device.capture(), pytest.raises(RuntimeError, match="before it"):
                optimizer.apply_gradients(pairs)
            optimizer.build(found)
        assert optimizer.iterations.item() == 0


def test_captured_plans_outlive_other_steps(device: PretendedDevice) -> None:
    device.is_on_side_stream = True
    optimizer, found = tw.optimizers.SGD(0.125, global_clipnorm=1e3), variables(DEVICE)
    pairs = [(torch.ones_like(found[0]), found[0])]
    for _ in range(2):
        optimizer.apply_gradients(pairs)
    with device.graph():
        optimizer.apply_gradients(pairs)
    plan: Any = weakref.ref(optimizer._plan)
    for _ in range(3):
        for variable in variables(DEVICE):  # more sets than are remembered
            optimizer.apply_gradients([(torch.ones_like(variable), variable)])
    optimizer._plan = None
    gc.collect()
    assert plan() is not None
    del optimizer
    gc.collect()
    assert plan() is None


def test_captured_replays_of_a_drop_in_outlive_other_steps(
    device: PretendedDevice,
) -> None:
    found = variables(DEVICE)
    optimizer: Any = optim.AdamW(found, lr=0.25, capturable=True)
    for gradient, variable in pairs_of(0, found):
        variable.grad = gradient
    for _ in range(2):
        optimizer.step()
    with device.graph():
        optimizer.step()
    replay = optimizer._stepper._last
    held = [weakref.ref(replay.plan), weakref.ref(replay.clock)]
    del replay
    optimizer.add_param_group({"params": variables(DEVICE)})
    optimizer.step()
    gc.collect()
    assert all(one() is not None for one in held)
