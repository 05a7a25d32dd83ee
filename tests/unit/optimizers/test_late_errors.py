"""Errors that a device finds in a step: what they leave, and who raises them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import thalweg as tw
from tests.unit.optimizers.test_no_waiting import (
    SHAPES,
    close,
    pairs_of,
    train,
    variables,
)
from tests.unit.step.pretended_device import (
    DEVICE,
    PretendedDevice,
)
from thalweg.state import IndexedSlices


def rate_of(step: Any) -> float:
    return 0.1 / (1.0 + float(step))


# -- gradients that are not finite --------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "mixed", "rows"])
def test_an_error_of_a_gradient_is_told_by_the_next_step(
    kind: str, device: PretendedDevice
) -> None:
    def make() -> Any:
        return tw.optimizers.Nadam(rate_of, nonfinite="error", use_ema=True)

    here, there = make(), make()
    expected, found = variables("cpu"), variables(DEVICE)
    found[0].name = "table"
    for step in range(5):
        bad = pairs_of(step, found, kind, True)
        good = pairs_of(step, found, kind)
        here.apply_gradients(pairs_of(step, expected, kind))
        if step < 2:
            there.apply_gradients(good)
            continue
        with device.no_waiting():
            there.apply_gradients(bad)
            with pytest.raises(FloatingPointError, match="in that of table"):
                there.apply_gradients(good)
            there.apply_gradients(good)
    assert there.iterations.item() == here.iterations.item() == 5
    caches = [o.state_variables()["momentum_cache"].item() for o in (here, there)]
    assert caches[0] == pytest.approx(caches[1])
    assert close(found, expected)
    assert there.last_step_applied


@pytest.mark.parametrize("way", ["slot_variables", "get_weights", "last_step_applied"])
def test_an_error_is_told_where_the_state_is_read(
    way: str, device: PretendedDevice
) -> None:
    optimizer = tw.optimizers.Adam(nonfinite="error", clipvalue=1.0)
    other = tw.optimizers.Adam(nonfinite="error")
    held, elsewhere = variables(DEVICE), variables(DEVICE)
    train(optimizer, held, steps=2)
    before = device.look(held[0])
    bad = pairs_of(2, held, bad=True)
    with device.no_waiting():
        optimizer.apply_gradients(bad)
    train(other, elsewhere, steps=3)  # whose steps are right
    assert list(other.get_weights())
    with pytest.raises(FloatingPointError, match="nonfinite='error'"):
        read(optimizer, way)
    read(optimizer, way)
    assert torch.equal(device.look(held[0]), before)
    assert optimizer.iterations.item() == 2


def read(optimizer: Any, way: str) -> None:
    value = getattr(optimizer, way)
    if callable(value):
        list(value())


def test_an_error_is_told_outside_of_a_capture(device: PretendedDevice) -> None:
    optimizer, held = tw.optimizers.Adam(nonfinite="error"), variables(DEVICE)
    pairs, bad = pairs_of(0, held), pairs_of(0, held, bad=True)
    device.is_on_side_stream = True
    for _ in range(2):
        optimizer.apply_gradients(pairs)
    with device.no_waiting():
        optimizer.apply_gradients(bad)
    with pytest.raises(FloatingPointError), device.no_waiting():
        optimizer.apply_gradients(pairs)
    with device.graph() as graph:
        optimizer.apply_gradients(pairs)
    device.is_on_side_stream = False
    before = device.look(held[0])
    with device.no_waiting():
        graph.replay()
        assert not torch.equal(device.look(held[0]), before)
        before = device.look(held[0])
        pairs[0][0][2] = torch.nan
        graph.replay()
    assert torch.equal(device.look(held[0]), before)
    assert optimizer.iterations.item() == 3
    with pytest.raises(FloatingPointError, match="inf or NaN"):
        optimizer.get_weights()


# -- indices out of range -----------------------------------------------------


def wrong(held: list[tw.Variable]) -> list[Any]:
    indices = torch.tensor([1, 6]).to(held[0].device)
    values = torch.ones(2, 4).to(held[0].device)
    return [(IndexedSlices(values, indices, SHAPES[0]), held[0])]


def test_a_wrong_index_changes_nothing_and_is_told_by_the_next_step(
    device: PretendedDevice,
) -> None:
    optimizer, held = tw.optimizers.SGD(0.1, momentum=0.9), variables(DEVICE)
    train(optimizer, held, "rows", 2)
    before = device.look(held[0])
    bad, good = wrong(held), pairs_of(3, held, "rows")
    with device.no_waiting():
        optimizer.apply_gradients(bad)
        assert torch.equal(device.look(held[0]), before)
        with pytest.raises(IndexError, match="that step has changed nothing"):
            optimizer.apply_gradients(good)
        assert torch.equal(device.look(held[0]), before)
        optimizer.apply_gradients(good)
    assert not torch.equal(device.look(held[0]), before)


@pytest.mark.parametrize("way", ["slot_variables", "get_weights"])
def test_a_wrong_index_is_told_where_the_state_is_read(
    way: str, device: PretendedDevice
) -> None:
    optimizer, held = tw.optimizers.Adagrad(0.1), variables(DEVICE)
    optimizer.apply_gradients(pairs_of(0, held, "rows"))
    bad = wrong(held)
    with device.no_waiting():
        optimizer.apply_gradients(bad)
    with pytest.raises(IndexError, match="indices from 0"):
        list(getattr(optimizer, way)())
    assert list(getattr(optimizer, way)())


@pytest.mark.parametrize(
    "make",
    [
        tw.optimizers.Nadam,
        tw.optimizers.Lamb,
        partial(tw.optimizers.Adam, sparse_update="exact"),
        partial(tw.optimizers.Nadam, sparse_update="keras", use_ema=True),
        partial(tw.optimizers.Adagrad, nonfinite="skip"),
    ],
)
def test_a_wrong_index_leaves_the_whole_step_out(
    make: Callable[..., Any], device: PretendedDevice
) -> None:
    shapes = (*SHAPES, (7, 3))  # two widths, and a dense one

    def step(number: int, held: list[tw.Variable], wrong: bool = False) -> list[Any]:
        generator = torch.Generator().manual_seed(number)
        place = held[0].device
        values = [torch.randn(s, generator=generator).to(place) for s in shapes]
        indices = torch.tensor([1, 6 if wrong else 2, 1]).to(place)
        return [
            (IndexedSlices(values[0][:3], indices, shapes[0]), held[0]),
            (values[1], held[1]),
            (IndexedSlices(values[2][:3], indices % 5, shapes[2]), held[2]),
        ]

    here, there = make(learning_rate=0.1), make(learning_rate=0.1)
    expected, found = (
        [tw.Variable(torch.ones(s).to(place)) for s in shapes]
        for place in ("cpu", DEVICE)
    )
    for number in range(4):
        here.apply_gradients(step(number, expected))
        bad, good = step(9, found, True), step(number, found)
        if number < 2:
            there.apply_gradients(good)
            continue
        before = list(map(device.look, found))
        with device.no_waiting():
            there.apply_gradients(bad)
            assert all(map(torch.equal, map(device.look, found), before))
            with pytest.raises(IndexError, match="changed nothing"):
                there.apply_gradients(good)
            there.apply_gradients(good)
    assert there.iterations.item() == here.iterations.item() == 4
    assert close(found, expected)


def test_a_wrong_index_does_not_change_the_loss_scale(device: PretendedDevice) -> None:
    optimizer = tw.optimizers.LossScaleOptimizer(tw.optimizers.SGD(0.1), True, 8.0, 2)
    held = variables(DEVICE)
    train(optimizer, held, "rows", 3)
    bad = wrong(held)
    with device.no_waiting():
        optimizer.apply_gradients(bad)
    assert float(optimizer.loss_scale) == 16.0
    assert int(optimizer.dynamic_counter) == 1
    assert optimizer.iterations.item() == 3
    with pytest.raises(IndexError):
        optimizer.get_weights()


def test_another_optimizer_does_not_raise_it(device: PretendedDevice) -> None:
    guilty, other = (tw.optimizers.SGD(0.1) for _ in range(2))
    held, elsewhere = variables(DEVICE), variables(DEVICE)
    train(guilty, held, "rows", 2)
    train(other, elsewhere, "rows", 2)
    bad, good = wrong(held), pairs_of(3, elsewhere, "rows")
    with device.no_waiting():
        guilty.apply_gradients(bad)
        other.apply_gradients(good)
    assert other.get_weights()
    assert copy.deepcopy(guilty).get_weights()
    with pytest.raises(IndexError):
        guilty.get_weights()


def test_an_index_of_no_row_at_all_is_refused_at_once(device: PretendedDevice) -> None:
    del device
    held = tw.Variable(torch.ones(0, 4).to(DEVICE))
    rows = IndexedSlices(
        torch.ones(1, 4).to(DEVICE), torch.tensor([0]).to(DEVICE), (0, 4)
    )
    with pytest.raises(ValueError, match=r"indices\[0\] = 0"):
        tw.optimizers.Lamb().apply_gradients([(rows, held)])
