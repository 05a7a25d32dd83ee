"""Steps of overrides: what they are shown when a step comes again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import thalweg as tw


class ByHand(tw.OptimizerV2):
    """Descent with a raw op; keeps what its hooks were given."""

    batch_raw_ops = True

    def __init__(self, name: str = "ByHand", **options: Any) -> None:
        super().__init__(name, **options)
        self.seen: list[Any] = []

    def _create_slots(self, var_list: Any) -> None:
        for var in var_list:
            self.add_slot(var, "total")

    def _resource_apply_dense(
        self, grad: torch.Tensor, var: Any, apply_state: Any = None
    ) -> None:
        self.seen.append((var, self.get_slot(var, "total"), apply_state))
        tw.raw_ops.ResourceApplyGradientDescent(var=var.handle, alpha=0.5, delta=grad)


@pytest.mark.parametrize("make", [torch.nn.Parameter, tw.Variable])
def test_a_step_that_comes_again_shows_variables(make: Any) -> None:
    variables = [make(torch.ones(2)), make(torch.ones(3))]
    optimizer = ByHand()
    for number in range(1, 4):
        optimizer.seen.clear()
        pairs = [(torch.full_like(v, 0.25).detach(), v) for v in variables]
        optimizer.apply_gradients(pairs)
        for (var, slot, _), variable in zip(optimizer.seen, variables, strict=True):
            assert isinstance(var, tw.Variable)
            assert var.handle is variable
            assert slot is optimizer.get_slot(variable, "total")
            assert variable.tolist() == [1 - 0.125 * number] * len(variable)


def test_memory_that_was_replaced_is_shown_anew() -> None:
    parameter, optimizer = torch.nn.Parameter(torch.ones(2)), ByHand()
    for number in range(4):
        if number == 2:
            parameter.data = torch.full((2,), 3.0)
        optimizer.apply_gradients([(torch.ones(2), parameter)])
        assert optimizer.seen[-1][0].data_ptr() == parameter.data_ptr()
    assert parameter.tolist() == [2.0, 2.0]


def test_numbers_are_prepared_for_each_dtype() -> None:
    class Prepared(ByHand):
        def __init__(self) -> None:
            super().__init__()
            self._set_hyper("learning_rate", 0.5)

    optimizer = Prepared()
    variables = [tw.Variable(torch.ones(2, dtype=d)) for d in _DTYPES]
    for _ in range(3):
        optimizer.apply_gradients([(torch.ones_like(v), v) for v in variables])
        state = optimizer.seen[-1][2]
        assert [dtype for _, dtype in state] == list(_DTYPES)


def test_an_override_of_prepare_is_given_all_variables() -> None:
    lengths: list[int] = []

    class Prepared(ByHand):
        def _prepare(self, var_list: Any) -> Any:
            lengths.append(len(var_list))
            return super()._prepare(var_list)

    optimizer = Prepared()
    variables = [tw.Variable(torch.ones(2)) for _ in range(3)]
    for _ in range(3):
        optimizer.apply_gradients([(torch.ones(2), v) for v in variables])
    assert lengths == [3, 3, 3]


@pytest.mark.parametrize("make", [torch.nn.Parameter, tw.Variable])
def test_slots_are_found_after_a_step_that_came_again(make: Any) -> None:
    variables = [make(torch.ones(2)), make(torch.ones(3))]
    optimizer = ByHand()
    for _ in range(3):
        optimizer.apply_gradients([(torch.ones_like(v).detach(), v) for v in variables])
    other = make(torch.ones(2))
    for variable in variables:
        view = tw.state.as_variable(variable)
        slot = optimizer.get_slot(variable, "total")
        assert slot is optimizer.get_slot(view, "total")
        added = optimizer.add_slot(variable, "later", "ones")
        assert optimizer.get_slot(view, "later") is added
        for var, name in ((view, "nothing"), (other, "total")):
            with pytest.raises(KeyError, match="get_slot"):
                optimizer.get_slot(var, name)


def test_slots_of_a_copy_are_its_own() -> None:
    variable, optimizer = tw.Variable(torch.ones(2)), ByHand()
    for _ in range(2):
        optimizer.apply_gradients([(torch.ones(2), variable)])
    copied_variable, copied = copy.deepcopy((variable, optimizer))
    slot = copied.get_slot(copied_variable, "total")
    assert slot is not optimizer.get_slot(variable, "total")
    for _ in range(2):
        copied.apply_gradients([(torch.ones(2), copied_variable)])
    assert copied.get_slot(copied_variable, "total") is slot
    assert copied_variable.tolist() == [-1.0, -1.0]
    assert variable.tolist() == [0.0, 0.0]


_DTYPES = (torch.float32, torch.float64)
