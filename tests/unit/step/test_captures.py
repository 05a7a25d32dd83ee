"""What a captured step reads: it lives as long as the optimizer, and is its own."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

import thalweg as tw
from tests.unit.step.pretended_device import (
    DEVICE,
    PretendedDevice,
)
from thalweg.step import device_rows


@pytest.fixture(autouse=True)
def apart(device: PretendedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_rows, "_launches", device_rows._Launches())
    monkeypatch.setattr(device, "is_on_side_stream", True)


def table() -> tw.Variable:
    return tw.Variable(torch.ones(9, 2).to(DEVICE))


def rows(count: int) -> tw.IndexedSlices:
    values, indices = torch.ones(count, 2), torch.arange(count)
    return tw.IndexedSlices(values.to(DEVICE), indices.to(DEVICE), (9, 2))


def known() -> list[Any]:
    """The tables of rows of all optimizers."""
    held = device_rows._launches._known
    return [one for tables in held.values() for one in tables.values()]


def test_optimizers_have_row_tables_of_their_own() -> None:
    optimizers = [tw.optimizers.SGD(0.1) for _ in range(2)]
    variables = [table(), table()]
    for _ in range(2):
        for i, variable in enumerate(variables):
            optimizers[i].apply_gradients([(rows(3), variable)])
    places = {one._mirrors[0].table.data_ptr() for one in known()}
    assert len(known()) == len(places) == 2
    del optimizers[0]
    gc.collect()
    assert len(known()) == 1


def test_streams_wait_for_each_other(device: PretendedDevice) -> None:
    optimizer, variable = tw.optimizers.SGD(0.1), table()
    default, side = device.streams
    default.waited_for.clear()
    for is_on_side in (True, False, False):
        device.is_on_side_stream = is_on_side
        optimizer.apply_gradients([(rows(3), variable)])
    assert default.waited_for == [side]


def test_a_capture_follows_a_step_with_as_many_tables(
    device: PretendedDevice,
) -> None:
    optimizer, variables = tw.optimizers.SGD(0.1), [table(), table()]
    optimizer.build(variables)
    optimizer.apply_gradients([(rows(3), variables[0])])
    pairs = [(rows(3), variable) for variable in variables]
    before = [torch.clone(variable) for variable in variables]
    with device.capture(), pytest.raises(RuntimeError, match="a step before it"):
        optimizer.apply_gradients(pairs)
    assert all(map(torch.equal, before, variables))
    for _ in range(2):
        optimizer.apply_gradients(pairs)
    assert variables[1].flatten()[:2].tolist() == pytest.approx([0.8, 0.8])


def test_replays_go_on_beside_larger_steps(device: PretendedDevice) -> None:
    optimizer, others = tw.optimizers.SGD(0.125), tw.optimizers.SGD(0.125)
    variable, other = table(), table()
    pairs = [(rows(3), variable)]
    for _ in range(2):
        optimizer.apply_gradients(pairs)
    (captured,) = known()
    with device.graph() as graph:
        optimizer.apply_gradients(pairs)
    for _ in range(2):
        graph.replay()
        others.apply_gradients([(rows(9), other)])
        optimizer.apply_gradients([(rows(7), variable)])
    assert device.look(variable)[:, 0].tolist() == [0.25] * 3 + [0.75] * 4 + [1.0] * 2
    assert device.look(other)[:, 0].tolist() == [0.75] * 9
    # What keeps them is the optimizer, not the thread that has captured.
    device_rows._launches._known.clear()
    found = weakref.ref(captured)
    del captured
    gc.collect()
    assert found() is not None
