"""Replaying a plan: what it recognizes, and what makes it look again."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.compiler import Rule
from thalweg.step import Member, Plan

STEPS = 3


def train(change: Any = None) -> tuple[list[torch.Tensor], tw.Optimizer]:
    """Train two variables; ``change`` happens to them before the last step."""
    generator = torch.Generator().manual_seed(3)
    variables = [
        torch.nn.Parameter(torch.randn(4, 4, generator=generator)),
        torch.nn.Parameter(torch.randn(5, generator=generator)),
    ]
    optimizer = tw.optimizers.Adam(0.1)
    for step in range(STEPS):
        if change is not None and step == STEPS - 1:
            change(variables)
        gradients = [torch.randn(v.shape, generator=generator) for v in variables]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return [v.detach() for v in variables], optimizer


def move(variables: list[Any]) -> None:
    variables[0].data = variables[0].data.clone()


def lay_out_by_columns(variables: list[Any]) -> None:
    variables[0].data = variables[0].data.t().contiguous().t()


def lay_out_elsewhere_in_place(variables: list[Any]) -> None:
    data = variables[0].data
    kept = data.clone()
    variables[0].data = data.t()
    variables[0].data.copy_(kept)


@pytest.mark.parametrize(
    "change", [move, lay_out_by_columns, lay_out_elsewhere_in_place]
)
def test_a_variable_that_moves_is_found(change: Any) -> None:
    expected, _ = train()
    found, _ = train(change)
    assert all(map(torch.equal, expected, found))


def test_a_frozen_variable_does_not_end_the_replay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plans: list[Plan] = []
    make = Plan.__init__

    def count(self: Plan, *args: Any, **kwargs: Any) -> None:
        plans.append(self)
        make(self, *args, **kwargs)

    monkeypatch.setattr(Plan, "__init__", count)
    train(lambda variables: variables[1].requires_grad_(False))
    assert len(plans) == 1


def test_gradients_of_another_order_are_replayed() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = tw.optimizers.SGD(1.0)
    gradient = torch.arange(6.0).reshape(2, 3)
    for given in (gradient, gradient.t().contiguous().t(), gradient):
        optimizer.apply_gradients([(given, weight)])
    assert torch.equal(weight.detach(), -3 * gradient)


@pytest.mark.parametrize("last", [1.0, float("nan")])
def test_the_plan_keeps_no_gradient(last: float) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = tw.optimizers.Adam(nonfinite="skip")
    for value in (1.0, 1.0, last):
        optimizer.apply_gradients([(torch.full((2,), value), weight)])
    assert optimizer._plan is not None
    assert optimizer._plan.recognition.gradients is None
    assert optimizer._plan._loaded == ((), {})


def by_axes(var: Any, grad: Any) -> Any:
    return var - grad * var.ndim


def test_variables_of_as_many_axes_share_a_kernel() -> None:
    members = [
        Member(Rule.of(by_axes), (torch.ones(shape),), (), 0)
        for shape in ((2, 3), (4, 1), (5,), (3, 2))
    ]
    gradients = [torch.ones_like(member.var) for member in members]
    plan = Plan("test", members, gradients)
    assert len(plan.kernels) == 2
    plan.load(gradients, {})
    plan.run()
    found = [float(member.var.flatten()[0]) for member in members]
    assert found == [-1.0, -1.0, 0.0, -1.0]


class WithTwo:
    """Two variables, an optimizer with slots, and a step behind them."""

    def __init__(self, **options: Any) -> None:
        self.pair = [tw.Variable([1.0, 2.0]), tw.Variable([10.0, 20.0])]
        self.optimizer = tw.optimizers.SGD(1.0, momentum=0.5, **options)
        self.step([torch.ones(2), torch.ones(2)])

    def step(self, gradients: list[Any]) -> list[list[float]]:
        self.optimizer.apply_gradients(zip(gradients, self.pair, strict=True))
        return [variable.tolist() for variable in self.pair]


@pytest.mark.parametrize("options", [{}, {"global_clipnorm": 1.0}])
def test_a_gradient_whose_memory_was_freed_is_refused(options: dict[str, Any]) -> None:
    two = WithTwo(**options)
    before = [variable.tolist() for variable in two.pair]
    freed = torch.ones(2)
    freed.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"gradient of variable 1: .* without memory"):
        two.step([torch.ones(2), freed])
    assert [variable.tolist() for variable in two.pair] == before
    assert int(two.optimizer.iterations) == 1


def test_gradients_are_read_before_variables_are_written() -> None:
    expected, found = WithTwo(), WithTwo()
    for _ in range(2):
        copies = [v.detach().clone() for v in reversed(expected.pair)]
        shared = [v.data for v in reversed(found.pair)]
        assert found.step(shared) == expected.step(copies)
    shifted, apart = WithTwo(), WithTwo()
    for two, is_copied in ((shifted, False), (apart, True)):
        memory = torch.arange(1.0, 9.0)
        two.pair[0].data = memory[2:4]
        part = memory[1:3]
        two.step([part.clone() if is_copied else part, torch.ones(2)])
    assert shifted.pair[0].tolist() == apart.pair[0].tolist()


def test_a_gradient_that_is_a_slot_or_strided_is_read_first() -> None:
    expected, found = WithTwo(), WithTwo()
    slot = found.optimizer.get_slot(found.pair[0], "momentum")
    copy = expected.optimizer.get_slot(expected.pair[0], "momentum").detach().clone()
    both = torch.ones(2, 2)
    assert found.step([slot.data, both[:, 0]]) == expected.step([copy, torch.ones(2)])


def test_a_slot_that_moves_is_found() -> None:
    expected, found = WithTwo(), WithTwo()
    for two in (expected, found):
        slot = two.optimizer.get_slot(two.pair[1], "momentum")
        slot.data.fill_(3.0)
        if two is found:
            slot.data = slot.detach().clone()
    gradients = [torch.ones(2), torch.ones(2)]
    assert found.step(gradients) == expected.step(gradients)
    assert found.optimizer.get_slot(found.pair[1], "momentum").tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "view",
    [lambda m: m[1:5], lambda m: m[::2], lambda m: m[:2], lambda m: m[3::2]],
)
def test_variables_that_overlap_are_refused_whatever_their_strides(view: Any) -> None:
    memory = torch.zeros(6)
    pair = [memory[:4], view(memory)]
    pairs = [(torch.ones_like(variable), variable) for variable in pair]
    with pytest.raises(ValueError, match=r"SGD: .* variables 0 and 1, which overlap"):
        tw.optimizers.SGD(1.0).apply_gradients(pairs)
    assert not memory.any()


def test_variables_between_each_others_elements_do_not_overlap() -> None:
    memory = torch.zeros(6)
    pair = [memory[::2], memory[1::2]]
    pairs = [
        (torch.full((3,), number), v)
        for number, v in zip((1.0, 2.0), pair, strict=True)
    ]
    tw.optimizers.SGD(1.0).apply_gradients(pairs)
    assert memory.tolist() == [-1.0, -2.0] * 3


def test_elements_that_share_memory_are_refused() -> None:
    memory = torch.zeros(5)
    windows = memory.as_strided((3, 3), (1, 1))
    with pytest.raises(ValueError, match="elements share memory"):
        tw.optimizers.SGD(1.0).apply_gradients([(torch.ones(3, 3), windows)])
    assert not memory.any()


def test_the_library_does_not_ask_a_driver_for_devices() -> None:
    """Who has asked cannot use them in forked processes any more."""
    program = """
import torch

def ask(*_):
    raise AssertionError("a driver was asked")

torch.accelerator.is_available = torch.accelerator.device_count = ask
torch.cuda.is_available = torch.cuda.device_count = ask
import thalweg as tw

weight = tw.Variable([1.0])
tw.optimizers.SGD(0.5).minimize(lambda: weight.sum(), [weight])
tw.raw_ops.ResourceApplyGradientDescent(var=weight, alpha=0.5, delta=torch.ones(1))
assert weight.item() == 0.0, weight
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def summing(var: Any, total: Any, grad: Any) -> Any:
    return var - grad, total + grad


@pytest.mark.parametrize("is_slot", [False, True])
def test_another_dtype_at_the_same_address_is_found(*, is_slot: bool) -> None:
    rule = Rule.of(summing)
    held = [torch.ones(6, 2), torch.ones(6, 2)]
    wide = torch.ones(6, 2)
    plan = Plan("test", [Member(rule, tuple(held), ("like",), 0)], [wide])
    tensor = held[is_slot]
    tensor.data = tensor.view(torch.bfloat16).flatten()[:12].view(6, 2)
    assert plan.is_in_place()
    assert not plan.fits(held[:1], [wide])
