"""Calls of raw ops whose arguments are not those of the op."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch

import thalweg as tw
from tests.unit.raw_ops.test_raw_ops import OPS, arguments_of, resources_of
from thalweg.raw_ops.calls import explained, wired
from thalweg.step.batch import Batch, inside_step


@pytest.mark.parametrize("op", OPS)
def test_a_wrong_call_is_told_the_signature(op: str) -> None:
    resources, arguments = resources_of(op), arguments_of(op)
    function: Any = getattr(tw.raw_ops, op)
    parameters = inspect.signature(function).parameters
    start = re.escape(
        f"{op}: expected the keyword arguments {next(iter(parameters))}, "
    )
    given = {**resources, **arguments}
    required = [n for n in given if parameters[n].default is inspect.Parameter.empty]
    assert len(given) - len(required) == (op == "ResourceApplyGradientDescent")
    for name in required:
        without = {n: v for n, v in given.items() if n != name}
        with pytest.raises(TypeError, match=f"{start}.*; got no {name}. Pass it."):
            function(**without)
    with pytest.raises(TypeError, match=f"{start}.*; got 'learning_rate'. "):
        function(**given, learning_rate=0.5)
    wrong = f"{start}.*; got float32 tensor .* without a name. Name each argument: "
    with pytest.raises(TypeError, match=wrong):
        function(*given.values())
    for resource in resources.values():
        assert torch.equal(resource, torch.ones(3, 2))


def test_ops_that_read_and_assign_say_it_too() -> None:
    weight = tw.Variable([1.0])
    assign: Any = tw.raw_ops.AssignAddVariableOp
    with pytest.raises(
        TypeError, match=r"AssignAddVariableOp: expected .*got no value"
    ):
        assign(resource=weight)
    with pytest.raises(TypeError, match="without a name"):
        assign(weight, 1.0)
    with pytest.raises(TypeError, match="value: expected a tensor; got None"):
        assign(resource=weight, value=None)
    assert weight.tolist() == [1.0]


def test_a_nearby_name_is_suggested() -> None:
    descend: Any = tw.raw_ops.ResourceApplyGradientDescent
    with pytest.raises(TypeError, match="Did you mean 'alpha'"):
        descend(var=torch.ones(1), alpa=0.5, delta=torch.ones(1))


def test_what_is_missing_in_a_batch_is_refused() -> None:
    descend: Any = tw.raw_ops.ResourceApplyProximalGradientDescent
    given: dict[str, Any] = {"var": torch.ones(1), "alpha": 0.5, "l1": 0.0, "l2": 0.0}
    given["delta"] = torch.ones(1)
    for _ in range(3):
        for name in given:
            wrong = {n: v for n, v in given.items() if n != name}
            with pytest.raises(TypeError, match=f"no {name}"), inside_step(Batch()):
                descend(**wrong)
        assert given["var"].tolist() == [1.0]
    descend(**given)
    assert given["var"].tolist() == [0.5]


def test_an_error_of_the_op_itself_is_left_as_it_is() -> None:
    @explained
    def work(*, number: int) -> None:
        raise TypeError(f"not {number}")

    with pytest.raises(TypeError, match=r"^not 3$"):
        work(number=3)
    with pytest.raises(TypeError, match="work: expected the keyword arguments number"):
        work()  # pyright: ignore[reportCallIssue]


def test_an_op_that_is_written_hands_its_arguments_on() -> None:
    def Apply(*, var: Any, lr: Any, flag: bool = True, name: str | None = None) -> None:
        """Describe it."""

    seen: list[Any] = []
    op = wired(Apply, lambda *given: seen.append(given), ["var"], ["flag", "lr"])
    op(lr=2, var=1)
    op(lr=2, var=1, flag=False, name="accepted")
    assert seen == [((1,), (True, 2)), ((1,), (False, 2))]
    assert (op.__name__, op.__doc__) == ("Apply", "Describe it.")
    assert inspect.signature(op) == inspect.signature(Apply)
