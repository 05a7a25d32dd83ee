"""Group numbers over settings, and slots that are replaced or forgotten."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.interop.group_numbers import GroupNumber
from thalweg.interop.slot_owner import (
    check_slots,
    forget,
    override_numbers,
    restore_slot,
)


def built(optimizer: tw.Optimizer) -> list[tw.Variable]:
    variables = [tw.Variable([1.0]), tw.Variable([1.0])]
    optimizer.build(variables)
    return variables


def refusal(text: str) -> Any:
    return pytest.raises(ValueError, match=text)


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


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({7: {}}, r"parameters in its groups; got that of \[7\]"),
        ({0: {"exp_avg": torch.ones(2)}}, r"state named .*; got \['exp_avg'\]"),
        ({0: {"m": 1.0}}, r"got 'm' of 0: 1.0 \(float\)"),
        ({0: {"m": torch.ones(1)}}, r"got 'm' of 0: float32 tensor of shape \(1,\)"),
        ({0: {"step": None}}, "got 'step' of 0: None"),
        ({0: {"step": torch.ones(2)}}, "got 'step' of 0: float32 tensor"),
        ({0: {"m": torch.ones(2), "step": 1}}, None),
        ({0: {"v": torch.ones(2), "step": torch.ones(1)}}, None),
    ],
)
def test_state_is_looked_at_before_it_is_taken(state: Any, text: str | None) -> None:
    optimizer, variable = tw.optimizers.Adam(), tw.Variable([1.0, 2.0])
    refused = contextlib.nullcontext() if text is None else refusal(text)
    with refused:
        check_slots(optimizer, state, {0: variable})


def test_slots_made_by_hand_keep_their_shapes() -> None:
    class ByHand(tw.Optimizer):
        def _create_slots(self, var_list: Any) -> None:
            for variable in var_list:
                self.add_slot(variable, "pair", shape=(2,))

        def _resource_apply_dense(self, grad: Any, var: Any, **_: Any) -> None:
            var.assign_sub(grad)

    optimizer, variable = ByHand("by_hand"), tw.Variable([1.0])
    optimizer.build([variable])
    check_slots(optimizer, {0: {"pair": torch.ones(2)}}, {0: variable})
    with refusal("'pair' of 0"):
        check_slots(optimizer, {0: {"pair": torch.ones(3)}}, {0: variable})
