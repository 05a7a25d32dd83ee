"""What no plan is made of: nothing is written then."""

from __future__ import annotations

import pytest
import torch

from thalweg.compiler import Rule
from thalweg.rules import gradient_descent
from thalweg.step import Member, Plan, plan_checks


def members_of(*shapes: tuple[int, ...]) -> list[Member]:
    rule = Rule.of(gradient_descent)
    return [Member(rule, (torch.ones(shape),), (), 0) for shape in shapes]


@pytest.mark.parametrize("shape", [(), (1, 4), (2, 4), (4, 3), (12,), (3, 4, 1)])
def test_a_gradient_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    members = members_of((2,), (3, 4))
    given = [torch.ones(2), torch.ones(shape)]
    with pytest.raises(
        ValueError, match=r"gradient of variable 1: expected shape \(3, "
    ):
        Plan("Descent", members, given)
    assert all(torch.equal(m.var, torch.ones_like(m.var)) for m in members)


def test_a_step_is_not_prepared_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    members, given = members_of((2,)), [torch.ones(2)]
    with monkeypatch.context() as patch:
        patch.setattr("thalweg.step.captures.is_capturing", lambda device: True)
        with pytest.raises(RuntimeError, match=r"of a step of Descent: .*before it"):
            plan_checks.check_step("Descent", members, given)
    plan_checks.check_step("Descent", members, given)
