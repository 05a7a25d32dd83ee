"""Steps of overrides: what they are shown when a step comes again."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.state import set_name


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


@pytest.mark.parametrize("make", [torch.nn.Parameter, tw.Variable])
def test_apply_state_may_stand_anywhere(make: Any) -> None:
    class Keyword(ByHand):
        def _resource_apply_dense(
            self, grad: torch.Tensor, var: Any, *, apply_state: Any = None
        ) -> None:
            super()._resource_apply_dense(grad, var, apply_state)

    class Without(ByHand):
        def _resource_apply_dense(  # pyright: ignore[reportIncompatibleMethodOverride]
            self, grad: torch.Tensor, var: Any
        ) -> None:
            super()._resource_apply_dense(grad, var)

    for kind, has_state in ((ByHand, True), (Keyword, True), (Without, False)):
        optimizer, variable = kind(), make(torch.ones(2))
        for _ in range(3):
            optimizer.apply_gradients([(torch.ones(2), variable)])
        assert [state is not None for *_, state in optimizer.seen] == 3 * [has_state]
        assert variable.tolist() == [-0.5, -0.5]


def test_an_override_of_get_slot_is_asked() -> None:
    class Doubled(ByHand):
        def get_slot(self, var: Any, slot_name: str) -> Any:
            return super().get_slot(var, slot_name) + 1.0

    optimizer, variable = Doubled(), tw.Variable(torch.ones(2))
    for _ in range(3):
        optimizer.apply_gradients([(torch.ones(2), variable)])
        assert optimizer.seen[-1][1].tolist() == [1.0, 1.0]


def test_slots_at_hand_are_those_of_now_and_gone_after_the_step() -> None:
    class Asking(ByHand):
        def _resource_apply_dense(
            self, grad: torch.Tensor, var: Any, apply_state: Any = None
        ) -> None:
            super()._resource_apply_dense(grad, var, apply_state)
            assert self.get_slot(var.handle, "total") is self.get_slot(var, "total")
            with pytest.raises(KeyError, match="get_slot"):
                self.get_slot(var, "nothing")
            if fails:
                raise RuntimeError("on its way")

    fails, variable = False, torch.nn.Parameter(torch.ones(2))
    optimizer = Asking()
    for number in range(4):
        if number == 2:
            entry = optimizer._entries[id(variable)]
            entry.slots["total"] = tw.Variable(torch.full((2,), 7.0))
        optimizer.apply_gradients([(torch.ones(2), variable)])
        expected = 7.0 if number >= 2 else 0.0
        assert optimizer.seen[-1][1].tolist() == [expected] * 2
        assert "get_slot" not in vars(optimizer)
    fails = True
    with pytest.raises(RuntimeError, match="on its way"):
        optimizer.apply_gradients([(torch.ones(2), variable)])
    assert "get_slot" not in vars(optimizer)


def test_a_parameter_with_an_average_is_shown_as_a_variable() -> None:
    class Averaged(ByHand):
        def _create_slots(self, var_list: Any) -> None:
            super()._create_slots(var_list)
            tw.OptimizerV2._create_slots(self, var_list)

    optimizer, variable = Averaged(use_ema=True), torch.nn.Parameter(torch.ones(2))
    for _ in range(3):
        optimizer.apply_gradients([(torch.ones(2), variable)])
    assert variable.tolist() == [-0.5, -0.5]


def test_a_model_is_built_from_its_named_parameters() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 1))
    optimizer = tw.optimizers.SGD(per_variable={"0.bias": {"learning_rate": 0.0}})
    optimizer.build(model.named_parameters())
    assert tw.state.name_of(model[0].bias) == "0.bias"
    before = [p.tolist() for p in model.parameters()]
    optimizer.apply_gradients((torch.ones_like(p), p) for p in model.parameters())
    after = [p.tolist() for p in model.parameters()]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True]
    with pytest.raises(TypeError, match="build: expected a variable"):
        optimizer.build([("0.bias", 3)])


_DTYPES = (torch.float32, torch.float64)


class Copied(ByHand):
    """Copies itself in the midst of its third step."""

    def _resource_apply_dense(
        self, grad: torch.Tensor, var: Any, apply_state: Any = None
    ) -> None:
        super()._resource_apply_dense(grad, var, apply_state)
        if int(self.iterations) == 2:
            self.seen.clear()
            pickle.dumps(self)
            self.copies = copy.deepcopy((self, var.handle))


def test_a_copy_made_in_an_override_has_its_own_slots() -> None:
    variable, optimizer = tw.Variable(torch.ones(2), name="w"), Copied()
    for _ in range(3):
        optimizer.apply_gradients([(torch.ones(2), variable)])
    copied, own = optimizer.copies
    assert copied.get_slot(own, "total") is not optimizer.get_slot(variable, "total")
    assert "get_slot" not in vars(copied)
    assert "get_slot" not in vars(optimizer)


def decayed_one_by_one(held: list[Any], grads: list[Any], steps: int) -> list[Any]:
    """Float64: what decay and descent make of values."""
    found = [tensor.double() for tensor in held]
    for _ in range(steps):
        found = [v - 0.25 * 0.125 * v for v in found]
        found = [v - 0.5 * g.double() for v, g in zip(found, grads, strict=True)]
    return found


@pytest.mark.parametrize("batches", [True, False])
def test_weight_decay_comes_before_the_override(batches: bool) -> None:
    starts = [torch.linspace(-1, 1, n) for n in (3, 5, 1)]
    grads = [torch.linspace(2, 1, n) for n in (3, 5, 1)]
    variables = [torch.nn.Parameter(start.clone()) for start in starts]
    optimizer = ByHand(weight_decay=0.125)
    optimizer.batch_raw_ops = batches
    optimizer._set_hyper("learning_rate", 0.25)
    for _ in range(4):
        optimizer.apply_gradients(zip(grads, variables, strict=True))
    expected = decayed_one_by_one(starts, grads, 4)
    for variable, value in zip(variables, expected, strict=True):
        torch.testing.assert_close(variable.detach().double(), value)


def test_variables_without_decay_are_left_alone() -> None:
    held = [torch.nn.Parameter(torch.full((2,), x)) for x in (1.0, torch.inf)]
    names = ("weight", "bias")
    for name, variable in zip(names, held, strict=True):
        set_name(variable, name)
    settings = {"bias": {"weight_decay": 0.0}}
    optimizer = ByHand(weight_decay=0.5, per_variable=settings)
    for _ in range(3):
        optimizer.apply_gradients([(torch.zeros(2), v) for v in held])
    assert held[0].tolist() == [0.125] * 2
    assert held[1].tolist() == [torch.inf] * 2


def test_a_gradient_in_a_variable_is_read_before_that_decays() -> None:
    a, b = (torch.nn.Parameter(torch.full((2,), x)) for x in (8.0, 4.0))
    optimizer = ByHand(weight_decay=0.5)
    optimizer.batch_raw_ops = False
    for _ in range(3):
        with torch.no_grad():
            a.fill_(8.0)
            b.fill_(4.0)
        optimizer.apply_gradients([(b.detach(), a), (torch.ones(2), b)])
        assert a.tolist() == [2.0, 2.0]
        assert b.tolist() == [1.5, 1.5]
