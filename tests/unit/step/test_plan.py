"""Replaying a plan: what it recognizes, and what makes it look again."""

from __future__ import annotations

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
