"""What a rule returned, and what it was given, is checked by name and line."""

from __future__ import annotations

import linecache
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.compiler.results import scalars_by_name
from thalweg.errors import TraceError


class NoReturn(tw.Optimizer):
    learning_rate: tw.Hyper = tw.Hyper(default=0.1)

    @staticmethod
    def update(var: Any, grad: Any, *, learning_rate: Any) -> Any:
        var = var - learning_rate * grad


class TooMany(tw.Optimizer):
    learning_rate: tw.Hyper = tw.Hyper(default=0.1)

    @staticmethod
    def update(var: Any, grad: Any, *, learning_rate: Any) -> Any:
        return var - learning_rate * grad, grad


class TooFew(tw.Optimizer):
    learning_rate: tw.Hyper = tw.Hyper(default=0.1)
    m: tw.Slot = tw.Slot()

    @staticmethod
    def update(var: Any, m: Any, grad: Any, *, learning_rate: Any) -> Any:
        return var - learning_rate * grad


class NoneForSlot(tw.Optimizer):
    learning_rate: tw.Hyper = tw.Hyper(default=0.1)
    m: tw.Slot = tw.Slot()

    @staticmethod
    def update(var: Any, m: Any, grad: Any, *, learning_rate: Any) -> Any:
        return var - learning_rate * grad, None


class ADictionary(tw.Optimizer):
    learning_rate: tw.Hyper = tw.Hyper(default=0.1)
    m: tw.Slot = tw.Slot()

    @staticmethod
    def update(var: Any, m: Any, grad: Any, *, learning_rate: Any) -> Any:
        return {"var": var - learning_rate * grad, "m": m}


RETURNS = [
    (
        ADictionary,
        "expected 2 results (var, m); got a dictionary. Return the new variable first",
    ),
    (
        NoReturn,
        "expected the new variable and its new slots as results; got None. Add a "
        "return.",
    ),
    (TooMany, "expected 1 results (var); got 2."),
    (TooFew, "expected 2 results (var, m); got 1."),
    (NoneForSlot, "expected a traced value or a number as the new 'm'; got None."),
]


@pytest.mark.parametrize("options", [{}, {"use_ema": True}, {"weight_decay": 0.1}])
@pytest.mark.parametrize(("make", "part"), RETURNS)
def test_wrong_results_are_refused_at_the_rule(make: Any, part: str, options: Any):
    var = tw.Variable([1.0, 2.0])
    with pytest.raises(TraceError) as caught:
        make(**options).apply_gradients([(torch.ones(2), var)])
    line = make.update.__code__.co_firstlineno
    name = f"{make.__name__}.update"
    assert f"rule {name} ({__file__}:{line}): {part}" in str(caught.value)
    assert var.tolist() == [1.0, 2.0]
    assert "staticmethod" in linecache.getline(__file__, line)


class TensorForRow(tw.Optimizer):
    learning_rate: tw.Hyper = tw.Hyper(default=0.1)
    r: tw.Slot = tw.Slot(shape="row")

    @staticmethod
    def update(var: Any, r: Any, grad: Any, *, learning_rate: Any) -> Any:
        r_new = r + grad
        return var - learning_rate * grad, r_new


class TensorForScalar(tw.Optimizer):
    learning_rate: tw.Hyper = tw.Hyper(default=0.1)
    r: tw.Slot = tw.Slot(shape="scalar")

    @staticmethod
    def update(var: Any, r: Any, grad: Any, *, learning_rate: Any) -> Any:
        return var - learning_rate * grad, grad > r


class GradientForRow(tw.Optimizer):
    learning_rate: tw.Hyper = tw.Hyper(default=0.1)
    r: tw.Slot = tw.Slot(shape="row")

    @staticmethod
    def update(var: Any, r: Any, grad: Any, *, learning_rate: Any) -> Any:
        return var - learning_rate * grad, grad


@pytest.mark.parametrize("options", [{}, {"use_ema": True}, {"weight_decay": 0.1}])
@pytest.mark.parametrize(
    ("make", "kind", "offset"),
    [
        (TensorForRow, "row", 2),
        (TensorForScalar, "scalar", 2),
        (GradientForRow, "row", 0),
    ],
)
def test_a_result_that_is_too_large_is_refused_at_its_line(
    make: Any, kind: str, offset: int, options: Any
) -> None:
    var = tw.Variable([[1.0, 2.0]])
    with pytest.raises(TraceError) as caught:
        make(**options).apply_gradients([(torch.ones(1, 2), var)])
    line = make.update.__code__.co_firstlineno + offset
    where = f"rule {make.__name__}.update ({__file__}:{line})"
    assert f"{where}: expected a {kind} for 'r'; got a tensor." in str(caught.value)


class PartOfSlots(tw.Optimizer):
    learning_rate: tw.Hyper = tw.Hyper(default=1.0)
    a: tw.Slot = tw.Slot()
    b: tw.Slot = tw.Slot()

    @staticmethod
    def update(var: Any, a: Any, b: Any, grad: Any, *, learning_rate: Any) -> Any:
        return var - learning_rate * grad, {"b": b + grad}


@pytest.mark.parametrize("use_ema", [False, True])
def test_slots_that_a_dictionary_leaves_out_stay(use_ema: bool) -> None:
    var, optimizer = tw.Variable([1.0]), PartOfSlots(use_ema=use_ema)
    for _ in range(2):
        optimizer.apply_gradients([(torch.ones(1), var)])
    assert var.item() == -1.0
    assert optimizer.get_slot(var, "a").item() == 0.0
    assert optimizer.get_slot(var, "b").item() == 2.0


class OtherScalars(tw.Optimizer):
    learning_rate: tw.Hyper = tw.Hyper(default=0.1)
    given: Any = None

    def scalars(self, step: Any) -> Any:
        return self.given

    @staticmethod
    def update(var: Any, grad: Any, *, learning_rate: Any) -> Any:
        return var - learning_rate * grad


class WrongScalars(OtherScalars):
    given = {"rate": 1.0}  # noqa: RUF012


def test_a_scalar_that_scalars_lacks_is_named() -> None:
    with pytest.raises(TraceError) as caught:
        WrongScalars().apply_gradients([(torch.ones(1), tw.Variable([1.0]))])
    assert str(caught.value) == (
        "WrongScalars.scalars: expected a number for each of the rule's scalars "
        "['learning_rate']; got ['rate']. Return 'learning_rate' too."
    )


def test_scalars_without_a_return_are_named() -> None:
    with pytest.raises(TraceError, match=r"Other.*got None\. Return a dictionary"):
        OtherScalars().apply_gradients([(torch.ones(1), tw.Variable([1.0]))])


def test_more_scalars_than_are_wanted_are_fine() -> None:
    assert scalars_by_name(object, ["a"], {"b": 1, "a": 2}) == {"a": 2}
    assert scalars_by_name(object, [], {}) == {}
