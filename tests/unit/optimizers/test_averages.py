"""Averages of variables that have no gradient in a step: they follow, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import thalweg as tw
from tests.unit.step.pretended_device import DEVICE, pretended_device
from thalweg.compiler import compilation
from thalweg.testing.steady import new_kernels

RATE, MOMENTUM = 0.5, 0.75


class ByHand(tw.Optimizer):
    """Updates without a rule."""

    def __init__(self, **options: Any) -> None:
        super().__init__("ByHand", **options)
        self._set_hyper("learning_rate", RATE)

    def _resource_apply_dense(
        self, grad: Any, var: Any, apply_state: Any = None
    ) -> None:
        del apply_state
        var.assign_sub(RATE * grad)


def sgd(**options: Any) -> Any:
    return tw.optimizers.SGD(RATE, **options)


def held(device: str = "cpu") -> list[Any]:
    made = [torch.full((3,), float(n), device=device) for n in (4, 8)]
    return [torch.nn.Parameter(tensor) for tensor in made]


def averages(optimizer: Any, variables: list[Any]) -> list[float]:
    slots = [optimizer.get_slot(v, "average") for v in variables]
    return [slot[0].item() for slot in slots]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("says_none", [True, False])
@pytest.mark.parametrize("make", [sgd, ByHand])
def test_an_average_follows_a_variable_without_a_gradient(
    make: Any, says_none: bool
) -> None:
    a, b = variables = held()
    optimizer = make(use_ema=True, ema_momentum=MOMENTUM)
    ones = torch.ones(3)
    optimizer.apply_gradients([(ones, a), (ones, b)])
    assert averages(optimizer, variables) == [3.5, 7.5]
    with torch.no_grad():
        b.fill_(3.5)
    expected = 7.5
    for _ in range(3):
        rest: list[Any] = [(None, b)] if says_none else []
        optimizer.apply_gradients([(ones, a), *rest])
        expected = MOMENTUM * expected + (1 - MOMENTUM) * 3.5
        assert averages(optimizer, [b]) == [expected]
    assert b[0].item() == 3.5


def test_the_first_step_starts_all_averages() -> None:
    a, b = held()
    optimizer = sgd(use_ema=True, ema_momentum=MOMENTUM)
    optimizer.build([a, b])
    with torch.no_grad():
        b.fill_(1.0)
    optimizer.apply_gradients([(torch.ones(3), a)])
    assert averages(optimizer, [a, b]) == [3.5, 1.0]


@pytest.mark.parametrize("has_copy", [True, False])
def test_averages_are_written_back_into_all(has_copy: bool) -> None:
    a, b = held()
    options: Any = {"low_precision_copy": "bfloat16"} if has_copy else {}
    optimizer = sgd(
        use_ema=True, ema_momentum=MOMENTUM, ema_overwrite_frequency=2, **options
    )
    ones = torch.ones(3)
    optimizer.apply_gradients([(ones, a), (ones, b)])
    with torch.no_grad():
        b.fill_(3.5)
    optimizer.apply_gradients([(ones, a)])
    expected = MOMENTUM * 7.5 + (1 - MOMENTUM) * 3.5
    assert averages(optimizer, [b]) == [b[0].item()] == [expected]
    assert averages(optimizer, [a]) == [a[0].item()]
    if has_copy:
        copy = optimizer.get_slot(b, "low_precision_copy")
        assert torch.equal(copy, b.detach().bfloat16())


def test_a_step_left_out_moves_no_average() -> None:
    a, b = held()
    optimizer = sgd(use_ema=True, ema_momentum=MOMENTUM, nonfinite="skip")
    optimizer.apply_gradients([(torch.ones(3), a), (torch.ones(3), b)])
    with torch.no_grad():
        b.fill_(0.0)
    optimizer.apply_gradients([(torch.full((3,), torch.nan), a)])
    assert averages(optimizer, [a, b]) == [3.5, 7.5]


class OwnSlots(ByHand):
    """Makes its slots by itself, as classes of Keras 2 do."""

    def _create_slots(self, var_list: Any) -> None:
        for variable in var_list:
            self.add_slot(variable, "m")


@pytest.mark.parametrize("cycle", [None, 2])
@pytest.mark.parametrize("use_ema", [True, False])
@pytest.mark.parametrize("copies", [None, "bfloat16"])
def test_an_override_of_create_slots_need_not_know_of_followers(
    cycle: int | None, use_ema: bool, copies: str | None
) -> None:
    options: Any = {"use_ema": use_ema, "low_precision_copy": copies}
    found = []
    for make in (ByHand, OwnSlots):
        a, b = variables = held()
        optimizer = make(gradient_accumulation_steps=cycle, **options)
        for _ in range(2 * (cycle or 1)):
            optimizer.apply_gradients([(torch.ones(3), v) for v in variables])
        names = ["average"] * use_ema + ["low_precision_copy"] * (copies is not None)
        slots = [optimizer.get_slot(v, n).tolist() for v in variables for n in names]
        found.append((int(optimizer.iterations), a.tolist(), b.tolist(), slots))
    assert found[0] == found[1]
    assert found[0][0] == 2


@pytest.mark.parametrize("nonfinite", ["off", "skip"])
def test_on_a_device_nothing_waits_for_it(nonfinite: Any) -> None:
    schedule = tw.optimizers.schedules.ExponentialDecay(0.75, 1, 0.5)
    bad = (False, False, nonfinite == "skip", False)
    found = []
    with pretended_device() as device:
        for place in ("cpu", DEVICE):
            a, b = variables = held(place)
            optimizer = sgd(use_ema=True, ema_momentum=schedule, nonfinite=nonfinite)
            optimizer.build(variables)
            with torch.no_grad():
                b.fill_(2.0)
            gradients = [
                torch.full((3,), torch.nan if is_bad else 1.0, device=place)
                for is_bad in bad
            ]
            optimizer.apply_gradients([(gradients[0], a)])
            with torch.no_grad():
                b.fill_(5.0)
            with device.no_waiting():
                for gradient in gradients[1:]:
                    optimizer.apply_gradients([(gradient, a)])
            found.append(averages(optimizer, variables))
    assert found[0] == found[1]
    assert found[0][1] > 2.0


class Batched(ByHand):
    """Updates by raw ops that are launched together."""

    batch_raw_ops = True

    def _resource_apply_dense(
        self, grad: Any, var: Any, apply_state: Any = None
    ) -> None:
        del apply_state
        tw.raw_ops.ResourceApplyGradientDescent(var=var.handle, alpha=RATE, delta=grad)


@pytest.mark.parametrize("make", [ByHand, Batched])
@pytest.mark.parametrize("use_ema", [True, False])
def test_copies_and_averages_are_of_this_step(make: Any, use_ema: bool) -> None:
    a, b = variables = held()
    options: Any = {"use_ema": True, "ema_momentum": MOMENTUM} if use_ema else {}
    optimizer = make(low_precision_copy="bfloat16", **options)
    expected: dict[int, float] = {}
    for _ in range(4):  # the first one is not like one before it
        optimizer.apply_gradients([(torch.ones(3), v) for v in (a, b)])
        for variable in variables:
            copy = optimizer.get_slot(variable, "low_precision_copy")
            assert torch.equal(copy, variable.detach().bfloat16())
            now, old = variable[0].item(), expected.get(id(variable))
            kept = MOMENTUM if old is not None else 0.0
            expected[id(variable)] = kept * (old or 0.0) + (1 - kept) * now
            if use_ema:
                assert averages(optimizer, [variable]) == [expected[id(variable)]]


@pytest.mark.parametrize("options", [{}, {"slot_dtypes": {"average": "bfloat16"}}])
def test_the_first_step_compiles_for_steps_over_fewer(
    options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "_KERNELS", {})
    variables = [*held(), torch.nn.Parameter(torch.ones(3, dtype=torch.float64))]
    optimizer = tw.optimizers.AdamW(use_ema=True, global_clipnorm=1.0, **options)
    pairs = [(torch.ones_like(v), v) for v in variables]
    optimizer.apply_gradients(pairs)
    for chosen in (pairs[:1], pairs[1:], pairs[2:], pairs[:2]):
        with new_kernels() as names:
            optimizer.apply_gradients(chosen)
        assert names == []
