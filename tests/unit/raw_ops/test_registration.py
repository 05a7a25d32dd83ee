"""Raw ops inside of `torch.compile`, and as torch's operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import thalweg as tw
from tests.unit.raw_ops.test_raw_ops import OPS, arguments_of, resources_of


def compiled(function: Callable[..., Any]) -> tuple[Callable[..., Any], Any]:
    """A function compiled without a break, and the counter of its compilations."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, fullgraph=True, backend=counter), counter


def adam(weight: Any, m: Any, v: Any, grad: Any, lr: Any) -> torch.Tensor:
    tw.raw_ops.ResourceApplyAdam(
        var=weight,
        m=m,
        v=v,
        beta1_power=0.9,
        beta2_power=0.99,
        lr=lr,
        beta1=0.9,
        beta2=0.99,
        epsilon=1e-7,
        grad=grad * 2,
        name="step",
    )
    return weight.sum()


@pytest.mark.parametrize("make", [torch.nn.Parameter, tw.Variable, torch.clone])
def test_another_rate_compiles_nothing_again(make: Any) -> None:
    function, counter = compiled(adam)
    own = [make(torch.ones(3)), torch.zeros(3), torch.zeros(3)]
    theirs = [make(torch.ones(3)), torch.zeros(3), torch.zeros(3)]
    for lr in (0.1, 0.2, 0.3):
        found = function(*own, torch.ones(3), torch.tensor(lr))
        expected = adam(*theirs, torch.ones(3), torch.tensor(lr))
        torch.testing.assert_close(found, expected)
    assert counter.frame_count == 1
    for a, b in zip(own, theirs, strict=True):
        assert torch.equal(a, b)


def test_numbers_lists_and_defaults_are_taken() -> None:
    def step(weight: torch.Tensor, table: torch.Tensor) -> None:
        tw.raw_ops.ResourceApplyGradientDescent(var=weight, delta=weight * 0.5)
        tw.raw_ops.ResourceScatterAdd(resource=table, indices=[1, 1], updates=0.5)

    function, _ = compiled(step)
    weight, table = torch.ones(2), torch.zeros(3)
    function(weight, table)
    assert weight.tolist() == [0.5, 0.5]
    assert table.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("op", OPS)
def test_the_operator_is_the_op(op: str) -> None:
    resources, others = resources_of(op), resources_of(op)
    arguments = arguments_of(op)
    getattr(tw.raw_ops, op)(**resources, **arguments)
    tensors = {
        name: torch.as_tensor(value, dtype=torch.float64)
        if isinstance(value, float)
        else value
        for name, value in arguments.items()
    }
    getattr(torch.ops.thalweg, op)(**others, **tensors)
    for name in resources:
        assert torch.equal(resources[name], others[name])


@pytest.mark.parametrize("op", OPS)
def test_torch_finds_no_fault_with_an_operator(op: str) -> None:
    operator = getattr(torch.ops.thalweg, op).default
    resources = {n: torch.ones(3, 2) for n in OPS[op]["resources"]}
    written = [
        argument.name
        for argument in operator._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    assert written == OPS[op]["resources"]
    outcome = torch.library.opcheck(
        operator,
        (),
        {**resources, **tensors_of(arguments_of(op))},
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    assert set(outcome.values()) == {"SUCCESS"}


def tensors_of(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: torch.tensor(value) if isinstance(value, float) else value
        for name, value in arguments.items()
    }


def test_torch_finds_no_fault_with_traced_operators() -> None:
    for op in ("ResourceApplyMomentum", "ResourceSparseApplyAdagrad"):
        operator = getattr(torch.ops.thalweg, op).default
        resources = {n: torch.ones(3, 2) for n in OPS[op]["resources"]}
        given = {**resources, **tensors_of(arguments_of(op))}
        assert set(torch.library.opcheck(operator, (), given).values()) == {"SUCCESS"}


def test_all_ops_in_one_function_are_compiled_once() -> None:
    ops = list(OPS)
    assert len(ops) == 37

    def step(resources: Any, given: Any, lr: Any) -> None:
        for op, own in resources.items():
            rates = {n: lr for n in ("lr", "alpha") if n in given[op]}
            getattr(tw.raw_ops, op)(**own, **{**given[op], **rates})

    function, counter = compiled(step)
    ours, theirs = (
        {op: {n: torch.ones(3, 2) for n in OPS[op]["resources"]} for op in ops}
        for _ in range(2)
    )
    given = {op: arguments_of(op) for op in ops}
    for lr in (0.5, 0.25, 0.125):
        function(ours, given, torch.tensor(lr))
        step(theirs, given, torch.tensor(lr))
    assert counter.frame_count == 1
    for op in ops:
        for name, tensor in ours[op].items():
            assert torch.equal(tensor, theirs[op][name]), (op, name)


def turn(own: Any, other: Any, table: Any, rows: Any) -> tuple[Any, Any]:
    ops = tw.raw_ops
    ops.AssignAddVariableOp(resource=own, value=other)
    before = ops.ReadVariableOp(resource=own, dtype=torch.float32)
    ops.AssignSubVariableOp(resource=own, value=other * 3)
    ops.AssignVariableOp(resource=other, value=own + 1)
    return before, ops.ResourceGather(resource=table, indices=rows)


def test_ops_that_read_and_assign_are_compiled_without_a_break() -> None:
    function, counter = compiled(turn)
    ours, theirs = ([torch.zeros(2), torch.ones(2)] for _ in range(2))
    table, rows = torch.arange(6.0).reshape(3, 2), torch.tensor([2, 0, 2])
    for _ in range(2):
        found, expected = function(*ours, table, rows), turn(*theirs, table, rows)
        for a, b in zip((*ours, *found), (*theirs, *expected), strict=True):
            assert torch.equal(a, b)
    assert counter.frame_count == 1
    with pytest.raises(
        RuntimeError, match=r"ResourceGather: an index is not in \[0, 3"
    ):
        function(*ours, table, torch.tensor([2, -1, 2]))


def test_a_rate_that_is_a_number_is_compiled_twice_at_most() -> None:
    def step(weight: Any, grad: Any, lr: float) -> None:
        tw.raw_ops.ResourceApplyGradientDescent(var=weight, alpha=lr, delta=grad)

    function, counter = compiled(step)
    weight = torch.ones(3)
    for lr in (0.5, 0.25, 0.125, 0.0625):
        function(weight, torch.ones(3), lr)
    assert counter.frame_count <= 2  # torch takes the first for a constant
    assert weight.tolist() == [1 - 0.9375] * 3


def test_a_wrong_call_of_compiled_code_is_refused_and_changes_nothing() -> None:
    def step(table: Any, slot: Any, indices: Any) -> None:
        tw.raw_ops.ResourceSparseApplyMomentum(
            var=table, accum=slot, lr=0.5, grad=slot, indices=indices, momentum=0.5
        )

    function, _ = compiled(step)
    table, slot = torch.ones(2, 2), torch.ones(2, 2)
    with pytest.raises(ValueError, match="Index 2 at offset 1"):
        function(table, slot, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="var and accum with memory of their own"):
        function(table, table, torch.tensor([0, 1]))
    assert torch.equal(table, torch.ones(2, 2))
    assert torch.equal(slot, torch.ones(2, 2))


@tw.raw_op(name="ApplyFlaggedDescent")
def flagged(var: Any, grad: Any, *, lr: Any, turned: bool = False) -> Any:
    """An op of one's own with a flag."""
    return var + lr * grad if turned else var - lr * grad


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lr": None}, "got no lr"),
        ({"rate": 0.5}, "got 'rate'"),
        ({"lr": "a"}, r"lr: expected a number or a 0-d tensor; got 'a' \(str\)"),
        ({"lr": 1j}, "lr: expected a number or a 0-d tensor; got 1j"),
        ({"flag": "no"}, r"expected True or False; got 'no' \(str\)"),
        ({"flag": 2}, r"expected True or False; got 2 \(int\)"),
        ({"flag": torch.ones(2)}, "expected True or False; got float32 tensor"),
    ],
)
@pytest.mark.parametrize("is_own", [False, True], ids=["shipped", "own"])
def test_a_wrong_call_is_told_so_while_it_is_compiled(
    changed: dict[str, Any], words: str, is_own: bool
) -> None:
    op: Any = flagged if is_own else tw.raw_ops.ResourceApplyMomentum
    flag = "turned" if is_own else "use_nesterov"
    others = {} if is_own else {"momentum": 0.5}
    named = {(flag if n == "flag" else n): v for n, v in changed.items()}
    settings = {
        n: v for n, v in {"lr": 0.5, **others, **named}.items() if v is not None
    }

    def step(var: Any, accum: Any) -> None:
        tensors = {"var": var} if is_own else {"var": var, "accum": accum}
        op(**tensors, grad=torch.ones(2), **settings)

    torch._dynamo.reset()
    var = torch.ones(2)
    compiled_step = torch.compile(step, fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=words):
        compiled_step(var, torch.zeros(2))
    assert var.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("value", [True, 1, 1.0])
def test_a_flag_is_compiled(value: Any) -> None:
    def step(var: Any) -> None:
        flagged(var=var, grad=torch.ones(2), lr=0.5, turned=value)

    torch._dynamo.reset()
    var = torch.ones(2)
    torch.compile(step, fullgraph=True, backend="eager")(var)
    assert var.tolist() == [1.5, 1.5]


@tw.raw_op(name="ApplyTracedDescent")
def own(var: Any, grad: Any, *, lr: Any) -> Any:
    """An op of one's own."""
    return var - lr * grad


def test_a_mode_of_torch_is_told_of_the_operator() -> None:
    def step(weight: Any, table: Any) -> None:
        tw.raw_ops.ResourceApplyGradientDescent(var=weight, alpha=0.5, delta=weight * 1)
        tw.raw_ops.ResourceScatterAdd(resource=table, indices=[1, 1], updates=table * 1)
        own(var=weight, grad=weight * 1, lr=0.5)

    weight, table = torch.ones(2), torch.ones(2, 2)
    traced = make_fx(step, tracing_mode="fake")(weight, table)
    names = [str(node.target) for node in traced.graph.nodes]
    for name in ("ResourceApplyGradientDescent", "ResourceScatterAdd"):
        assert f"thalweg.{name}.default" in names
    assert "thalweg.ApplyTracedDescent.default" in names
    assert weight.tolist() == [1.0, 1.0]
    traced(weight, table)
    assert weight.tolist() == [0.25, 0.25]
    assert table.tolist() == [[1.0, 1.0], [3.0, 3.0]]
    with FakeTensorMode():
        step(torch.ones(2), torch.ones(2, 2))
