"""The loss scale's states, and gradients multiplied by a number."""

from __future__ import annotations

import pytest
import torch

import thalweg as tw
from thalweg.gradients.loss_scale import DynamicLossScale, scaled


def states(scale: DynamicLossScale, finite: str) -> list[tuple[float, int]]:
    found = []
    for mark in finite:
        scale.update(mark == "f")
        found.append((float(scale.current_loss_scale), int(scale.dynamic_counter)))
    return found


def test_it_doubles_after_so_many_finite_steps_and_halves_at_once():
    scale = DynamicLossScale(4.0, 3)
    expected = [(4, 1), (4, 2), (8, 0), (8, 1), (4, 0), (2, 0), (2, 1), (2, 2), (4, 0)]
    assert states(scale, "ffffiifff") == expected


def test_it_does_not_fall_below_one():
    assert states(DynamicLossScale(2.0, 3), "iii") == [(1, 0)] * 3
    assert states(DynamicLossScale(1.5, 3), "i") == [(1, 0)]


def test_it_does_not_grow_to_inf():
    largest = 2.0**127
    assert states(DynamicLossScale(largest, 1), "ff") == [(largest, 0)] * 2


def test_its_state_are_variables_that_are_not_trained():
    scale = DynamicLossScale(8.0, 5)
    assert list(tw.state.named_variables(scale)) == [
        "current_loss_scale",
        "dynamic_counter",
    ]
    assert scale.current_loss_scale.dtype == torch.float32
    assert scale.dynamic_counter.dtype == torch.int64
    assert list(scale.trainable_variables) == []


@pytest.mark.parametrize("initial", [0.5, 0.0, -1.0, float("inf"), float("nan")])
def test_other_scales_are_refused(initial):
    with pytest.raises(ValueError, match="initial_scale"):
        DynamicLossScale(initial, 1)


@pytest.mark.parametrize("growth", [0, -1, 1.5, True])
def test_other_numbers_of_growth_steps_are_refused(growth):
    with pytest.raises(ValueError, match="growth_steps"):
        DynamicLossScale(1.0, growth)


def test_gradients_of_each_kind_are_multiplied_in_new_tensors():
    dense = torch.tensor([2.0, 4.0])
    rows = tw.IndexedSlices(torch.ones(1, 2), torch.tensor([3]), (5, 2))
    first, second, third = scaled([dense, rows, None], 0.25)
    assert first.tolist() == [0.5, 1.0]
    assert second.values.tolist() == [[0.25, 0.25]]
    assert (second.indices is rows.indices, second.dense_shape) == (True, (5, 2))
    assert third is None
    assert dense.tolist() == [2.0, 4.0]
    assert rows.values.tolist() == [[1.0, 1.0]]
