"""Tracing: what a graph holds, and what is refused in which words."""

from __future__ import annotations

import math
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch

from thalweg.compiler.graph import Space, output_operands, space_of
from thalweg.compiler.interpret import interpret
from thalweg.compiler.rule import Rule
from thalweg.compiler.trace import ShapeNeededError, trace
from thalweg.errors import TraceError

FACTOR = 3.0
IS_ON = True
NAMES = ("a", "b")


def test_scalars_stay_scalars_and_what_meets_a_tensor_is_one() -> None:
    def rule(var: Any, grad: Any, *, lr: Any) -> Any:
        return var - lr * math.sqrt(1 - lr) * grad

    graph = trace(Rule.of(rule), {}).graph
    spaces = [(n.name, space_of(n)) for n in graph.nodes if n.op == "call_function"]
    scalar, tensor = Space.SCALAR, Space.TENSOR
    assert spaces == [
        ("sub", scalar), ("sqrt", scalar), ("mul", scalar), ("mul_1", tensor),
        ("sub_1", tensor),
    ]  # fmt: skip


def test_a_flag_is_a_python_bool_that_may_decide() -> None:
    def rule(var: Any, grad: Any, *, negate: bool) -> Any:
        return var + grad if negate else var - grad

    for negate, name in ((True, "add"), (False, "sub")):
        (output,) = output_operands(trace(Rule.of(rule), {"negate": negate}).graph)
        assert str(output) == name


def test_shape_and_ndim_are_python_values_of_the_variable() -> None:
    def rule(var: Any, grad: Any) -> Any:
        return var - grad / var.shape[0] if var.ndim == 2 else var

    graph = trace(Rule.of(rule), {}, shape=(4, 5)).graph
    assert any(4.0 in node.args for node in graph.nodes)
    with pytest.raises(ShapeNeededError, match="Give `shape` to the kernel key"):
        trace(Rule.of(rule), {})


def test_slots_may_come_back_by_name_and_missing_ones_stay() -> None:
    def rule(var: Any, m: Any, v: Any, grad: Any) -> Any:
        return var - grad, {"v": grad * grad}

    outputs = output_operands(trace(Rule.of(rule), {}).graph)
    assert [str(o) for o in outputs] == ["sub", "m", "mul"]


def test_names_imported_from_math_work_on_scalars() -> None:
    def rule(var: Any, grad: Any, *, lr: Any) -> Any:
        return var - sqrt(lr) * grad

    one = torch.ones(1)
    assert interpret(Rule.of(rule), {}, (one, one), {"lr": 0.25})[0].item() == 0.5
    assert math.sqrt(4.0) == sqrt(4.0) == 2.0
    assert sqrt is math.sqrt


def test_a_number_that_is_changed_in_place_is_a_new_number() -> None:
    def rule(var: Any, grad: Any, *, lr: Any) -> Any:
        lr *= 2
        return var - lr * grad

    one = torch.ones(1)
    assert interpret(Rule.of(rule), {}, (one, one), {"lr": 0.25})[0].item() == 0.5


def _branch(var: Any, grad: Any, *, lr: Any) -> Any:
    return var if lr > 0 else grad


def _tensor_branch(var: Any, grad: Any, *, lr: Any) -> Any:
    return var if grad else grad


def _builtin_max(var: Any, grad: Any, *, lr: Any) -> Any:
    return var * max(lr, 1.0)


def _in_place_operator(var: Any, grad: Any, *, lr: Any) -> Any:
    var += grad
    return var


def _in_place_method(var: Any, grad: Any, *, lr: Any) -> Any:
    return var.add_(grad)


def _item_assignment(var: Any, grad: Any, *, lr: Any) -> Any:
    var[0] = 1.0
    return var


def _unknown_function(var: Any, grad: Any, *, lr: Any) -> Any:
    return torch.cumsum(var, 0)


def _unknown_method(var: Any, grad: Any, *, lr: Any) -> Any:
    return var.sqrtt()


def _unknown_argument(var: Any, grad: Any, *, lr: Any) -> Any:
    return torch.add(var, grad, out=var)


def _matrix_product(var: Any, grad: Any, *, lr: Any) -> Any:
    return var @ grad


def _outside_number(var: Any, grad: Any, *, lr: Any) -> Any:
    return var * FACTOR


def _outside_bool(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * grad if IS_ON else var


def _math_on_tensor(var: Any, grad: Any, *, lr: Any) -> Any:
    return var * math.sqrt(grad)


def _foreign_tensor(var: Any, grad: Any, *, lr: Any) -> Any:
    return var * torch.tensor([1.0])


def _python_number(var: Any, grad: Any, *, lr: Any) -> Any:
    return var * float(lr)


def _leading_axis(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - grad.mean((-3, -1), keepdim=True)


def _no_keepdim(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - grad.mean(-1)


def _view(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - grad.view(-1)


def _far_from_all(var: Any, grad: Any, *, lr: Any) -> Any:
    return torch.lgamma(var)


def _sum_branch(var: Any, grad: Any, *, lr: Any) -> Any:
    return var if grad.sum() > 0.5 else grad


def _attribute_set(var: Any, grad: Any, *, lr: Any) -> Any:
    var.data = grad
    return var


def _unknown_math(var: Any, grad: Any, *, lr: Any) -> Any:
    return var * math.log10(lr)


def _too_many_for_math(var: Any, grad: Any, *, lr: Any) -> Any:
    return var * math.sqrt(lr, 2)  # pyright: ignore[reportCallIssue]


def _where_of_two(var: Any, grad: Any, *, lr: Any) -> Any:
    return torch.where(grad > 0, var)  # pyright: ignore[reportCallIssue]


def _number_for_tensor(var: Any, grad: Any, *, lr: Any) -> Any:
    return torch.maximum(var, 0.5)  # pyright: ignore[reportArgumentType]


def _own_error(var: Any, grad: Any, *, lr: Any) -> Any:
    raise KeyError("own")


def _reduced_twice(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - torch.sum(grad.sum(-1, keepdim=True))


def _complex(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - 1j * grad


def _item(var: Any, grad: Any, *, lr: Any) -> Any:
    return var * lr.item()


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (_branch, ["a branch on lr > 0", "torch.where(condition, a, b)"]),
        (_tensor_branch, ["a branch on grad"]),
        (_sum_branch, ["a branch on sum(…) > 0.5", "make it a flag"]),
        (_builtin_max, ["a branch on lr < 1", "torch.maximum"]),
        (_in_place_operator, ["+=, a change in place", "m_new = m + grad"]),
        (_in_place_method, ["add_(), a change in place"]),
        (_item_assignment, ["an assignment to an element"]),
        (_unknown_function, ["'cumsum'", "elementwise: move or sort elements"]),
        (_unknown_method, ["'sqrtt'", "Did you mean 'sqrt'?"]),
        (_unknown_argument, ["out=, a change in place", "the new value a new name"]),
        (_attribute_set, ["an assignment to .data, a change in place"]),
        (_matrix_product, ["'matmul'", "before it, in a gradient transformer"]),
        (_view, ["'view'", "sees its tensors in their own shape"]),
        (_unknown_math, ["math.log10 of one", "torch.log(x) * (1 / math.log(10))"]),
        (_too_many_for_math, ["expected sqrt(input)", "got 2 arguments"]),
        (_where_of_two, ["TypeError: where() received", "got (value, value). Use"]),
        (_number_for_tensor, ["must be Tensor, not float", "write torch.clamp"]),
        (_own_error, ["got KeyError: 'own'. The rule itself raised it"]),
        (_reduced_twice, ["a tensor for 'sum'", "Reduce a tensor, once"]),
        (_complex, ["1j (complex)", "Compute with the rule's arguments"]),
        (_far_from_all, ["'lgamma'", "Write it with arithmetic, comparisons"]),
        (_outside_number, ["the outside number 'FACTOR'", "Make it a Hyper"]),
        (_outside_bool, ["the outside bool 'IS_ON'", "an argument annotated bool"]),
        (_math_on_tensor, ["a tensor for math.sqrt", "Write torch.sqrt"]),
        (_foreign_tensor, ["float32 tensor of shape (1,)", "Pass it as a slot"]),
        (_python_number, ["float() of one", "Use operators, torch.* or math.*"]),
        (_leading_axis, ["the trailing axes", "dim=(-3, -1)"]),
        (_no_keepdim, ["expected keepdim=True with dim"]),
        (_item, ["'item'", "A number cannot leave the kernel"]),
    ],
)
def test_a_refusal_names_rule_line_operation_and_way_out(
    function: Any, parts: list[str]
) -> None:
    with pytest.raises(TraceError) as caught:
        trace(Rule.of(function), {})
    text = str(caught.value)
    line = function.__code__.co_firstlineno
    assert text.startswith(f"rule {function.__name__} ({__file__}:{line + 1}): ")
    for part in parts:
        assert part in text


def _too_many(var: Any, grad: Any) -> Any:
    return var, grad


def _unknown_slot(var: Any, m: Any, grad: Any) -> Any:
    return var, {"n": grad}


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (_too_many, "expected 1 results (var); got 2"),
        (_unknown_slot, "expected slots named m; got 'n'"),
    ],
)
def test_results_must_fit_the_arguments(function: Any, part: str) -> None:
    with pytest.raises(TraceError) as caught:
        trace(Rule.of(function), {})
    assert part in str(caught.value)
    assert f"({__file__}:{function.__code__.co_firstlineno})" in str(caught.value)


def test_a_row_slot_cannot_take_a_whole_tensor() -> None:
    def rule(var: Any, accumulator: Any, grad: Any) -> Any:
        return var, accumulator + grad

    with pytest.raises(
        TraceError, match="expected a row for 'accumulator'; got a tens"
    ):
        trace(Rule.of(rule), {}, ("row",))


def test_a_name_from_outside_that_is_no_number_is_fine() -> None:
    def rule(var: Any, grad: Any) -> Any:
        return var - grad if "a" in NAMES else var

    trace(Rule.of(rule), {})


class Signum:
    @staticmethod
    def update(var: Any, grad: Any) -> Any:
        return var.flip(0)

    @staticmethod
    def nested() -> Any:
        class Inner:
            @staticmethod
            def update(var: Any, grad: Any) -> Any:
                return var.flip(0)

        return Inner.update


def test_a_rule_of_a_class_has_its_name() -> None:
    for function, name in (
        (Signum.update, "Signum.update"),
        (Signum.nested(), "Inner.update"),
    ):
        with pytest.raises(TraceError, match=rf"^rule {name} \(.*got 'flip'"):
            trace(Rule.of(function), {})


def test_a_logarithm_may_have_a_base() -> None:
    def rule(var: Any, grad: Any, *, lr: Any) -> Any:
        return var - math.log(lr, 2) * grad

    one = torch.ones(1)
    assert interpret(Rule.of(rule), {}, (one, one), {"lr": 0.25})[0].item() == 3.0


def test_numbers_of_numpy_are_numbers_of_any_type() -> None:
    def rule(var: Any, grad: Any) -> Any:
        return var - np.float32(0.5) * grad + np.int64(2) + grad * np.bool_(True)

    one = torch.ones(1)
    assert interpret(Rule.of(rule), {}, (one, one), {})[0].item() == 3.5
