"""Numbers of a step on a device, for what no kernel of the device does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import thalweg as tw
from tests.unit.step.pretended_device import DEVICE, pretended_device
from thalweg import optim, schedules
from thalweg.state import IndexedSlices
from thalweg.step.device_step import StepClock, numbers_of_rest


def test_numbers_of_the_device_take_the_place_of_the_hosts() -> None:
    values = {"lr": np.array([1.0, 2.0]), "step": np.array([0.0, 0.0])}
    clock = StepClock(torch.device("cpu"), decides=True)
    assert numbers_of_rest(values) is values
    with clock.in_force():
        assert numbers_of_rest(values) is values
        clock.scalars = {"step": torch.tensor([3.0, 4.0], dtype=torch.float64)}
        found = numbers_of_rest(values)
    assert found["lr"] is values["lr"]
    assert found["step"].tolist() == [3.0, 4.0]


def slices(value: float, place: Any) -> IndexedSlices:
    rows = torch.full((2, 4), value).to(place)
    return IndexedSlices(rows, torch.tensor([1, 3]).to(place), (6, 4))


def trained(make: Any, place: Any) -> tuple[torch.Tensor, int]:
    """Two taken steps, two that are left out, one more; dense and sparse."""
    weight, optimizer = tw.Variable(torch.ones(6, 4).to(place)), make()
    for value, is_sparse in (
        *((1.0, False), (1.0, True)),
        *((torch.inf, True), (torch.inf, False), (1.0, True)),
    ):
        dense = torch.full((6, 4), value).to(place)
        gradient = slices(value, place) if is_sparse else dense
        optimizer.apply_gradients([(gradient, weight)])
    return weight.detach(), int(optimizer.iterations)


RATE = schedules.ExponentialDecay(0.5, decay_steps=1, decay_rate=0.5)
SKIPPING = {
    "exact": lambda: tw.optimizers.Adam(0.1, nonfinite="skip", sparse_update="exact"),
    "keras": lambda: tw.optimizers.Adam(0.1, nonfinite="skip", sparse_update="keras"),
    "schedule": lambda: tw.optimizers.SGD(
        RATE, nonfinite="skip", sparse_update="exact"
    ),
    "states": lambda: tw.optimizers.Nadam(0.1, nonfinite="skip", sparse_update="keras"),
    "whole variables": lambda: tw.optimizers.Lamb(0.1, nonfinite="skip"),
}


@pytest.mark.parametrize("name", SKIPPING)
def test_updates_beside_kernels_know_which_steps_were_taken(name: str) -> None:
    expected, count = trained(SKIPPING[name], "cpu")
    with pretended_device() as device:
        found, found_count = trained(SKIPPING[name], DEVICE)
        torch.testing.assert_close(device.look(found), expected)
        assert found_count == count == 3


def transposed_rows(name: str, place: Any, **options: Any) -> torch.Tensor:
    """Steps of a drop-in on rows of a parameter that no kernel of a device takes."""
    weight = torch.nn.Parameter(torch.ones(4, 6).to(place).t())
    optimizer = getattr(optim, name)([weight], lr=0.5, **options)
    for _ in range(3):
        indices = torch.tensor([[1, 3]]).to(place)
        rows = torch.ones(2, 4).to(place)
        weight.grad = torch.sparse_coo_tensor(
            indices, rows, (6, 4), check_invariants=False
        )
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("name", ["Adamax", "ASGD", "SGD"])
def test_drop_ins_count_beside_kernels(name: str) -> None:
    options = {} if name == "SGD" else {"capturable": True}
    expected = transposed_rows(name, "cpu")
    with pretended_device() as device:
        found = transposed_rows(name, DEVICE, **options)
        torch.testing.assert_close(device.look(found), expected)
