"""What is told of every optimizer is what it makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.optimizers.catalogue import catalogue, describe


def test_every_optimizer_is_described_in_order() -> None:
    assert [one.name.lower() for one in catalogue()] == tw.optimizers.names()
    for one in catalogue():
        assert one.source
        assert "`" not in one.source
        assert "\n" not in one.source
        assert one.arguments.startswith(f"{one.name}(learning_rate=")


@pytest.mark.parametrize("name", tw.optimizers.names())
def test_bytes_are_those_of_the_slots(name: str) -> None:
    one, optimizer = describe(name), tw.optimizers.get(name)
    weight = tw.Variable(torch.zeros(10, 30))
    optimizer.build([weight])
    slots = {n: optimizer.get_slot(weight, n) for n in optimizer.get_slot_names()}
    assert tuple(slots) == one.slots
    size = sum(slot.nbytes for slot in slots.values())
    assert size == 300 * one.state_bytes + 10 * one.row_bytes


@pytest.mark.parametrize("name", tw.optimizers.names())
def test_a_sparse_gradient_moves_what_is_said(name: str) -> None:
    optimizer = tw.optimizers.get(name)
    optimizer.learning_rate = 0.1
    weight = tw.Variable(torch.ones(4, 2))
    for indices in ([0], [1]):
        slices = tw.IndexedSlices(torch.ones(1, 2), torch.tensor(indices))
        before = weight.numpy().copy()
        optimizer.apply_gradients([(slices, weight)])
    moved = (weight.numpy() != before).any(axis=1).tolist()
    assert moved[1]
    assert moved[0] is not describe(name).moves_rows
    assert not moved[2]


def test_options_bring_further_slots() -> None:
    one = describe("RMSprop")
    assert (one.options, one.most_bytes) == (("momentum", "mg"), 12)
    options: Any = {"momentum": 0.5, "centered": True}
    full = tw.optimizers.RMSprop(**options).active_slots()
    assert set(full) == {*one.slots, *one.options}
    with pytest.raises(ValueError, match="Did you mean 'adam'"):
        describe("adm")
