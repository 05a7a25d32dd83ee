"""Group numbers over settings, and slots that are replaced or forgotten."""

from __future__ import annotations

import torch

import thalweg as tw
from thalweg.interop.group_numbers import GroupNumber
from thalweg.interop.slot_owner import forget, override_numbers, restore_slot


def built(optimizer: tw.Optimizer) -> list[tw.Variable]:
    variables = [tw.Variable([1.0]), tw.Variable([1.0])]
    optimizer.build(variables)
    return variables


def step(optimizer: tw.Optimizer, variables: list[tw.Variable]) -> list[float]:
    optimizer.apply_gradients([(torch.ones(1), v) for v in variables])
    return [v.item() for v in variables]


def test_a_number_of_a_group_takes_the_place_of_the_optimizers() -> None:
    optimizer = tw.optimizers.SGD(0.5)
    variables = built(optimizer)
    assert step(optimizer, variables) == [0.5, 0.5]
    number = GroupNumber(0.25)
    for _ in range(2):
        override_numbers(optimizer, variables[1:], {"learning_rate": number})
    assert step(optimizer, variables) == [0.0, 0.25]
    number.value = 0.125
    assert step(optimizer, variables) == [-0.5, 0.125]


def test_variables_that_were_not_built_are_left_out() -> None:
    optimizer = tw.optimizers.SGD(0.5)
    override_numbers(optimizer, [torch.ones(1)], {"learning_rate": GroupNumber(1.0)})
    assert step(optimizer, built(optimizer)) == [0.5, 0.5]


def test_a_slot_takes_the_dtype_of_its_value() -> None:
    optimizer = tw.optimizers.Adam()
    variables = built(optimizer)
    weights = len(optimizer.weights)
    value = torch.ones(1, dtype=torch.bfloat16)
    restore_slot(optimizer, "m", variables[0], value)
    slot = optimizer.get_slot(variables[0], "m")
    assert (slot.dtype, slot.item()) == (torch.bfloat16, 1.0)
    assert len(optimizer.weights) == weights
    restore_slot(optimizer, "m", variables[0], torch.zeros(1, dtype=torch.bfloat16))
    assert optimizer.get_slot(variables[0], "m") is slot
    assert slot.item() == 0.0


def test_what_is_forgotten_begins_anew() -> None:
    optimizer = tw.optimizers.Nadam(0.5)
    variables = built(optimizer)
    first = step(optimizer, variables)
    forget(optimizer, variables, resets=True)
    assert int(optimizer.iterations) == 0
    assert list(optimizer.slot_variables()) == []
    for variable in variables:
        variable.assign([1.0])
    assert step(optimizer, variables) == first
