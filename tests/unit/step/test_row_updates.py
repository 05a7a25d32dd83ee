"""What is refused of updates of rows, and what is copied, before the writing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from thalweg.compiler import Rule
from thalweg.distribute.shards import Whole
from thalweg.state import IndexedSlices
from thalweg.step import RowUpdate, launch_row_updates
from thalweg.step.group import Member
from thalweg.step.row_updates import Spans, check_updates, rounds_of

VALUES = {"lr": np.array([0.5])}


def descent(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * grad


def shares(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * grad / abs(grad).sum(-1, keepdim=True)


def of_all(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * grad / abs(grad).mean()


def update(var: Tensor, values: Tensor, indices: Any, rule: Any = descent) -> RowUpdate:
    member = Member(Rule.of(rule), (var,), (), 0)
    return RowUpdate(member, IndexedSlices(values, torch.tensor(indices)), "sequence")


def freed(tensor: Tensor) -> Tensor:
    """The tensor, after its memory was given back."""
    tensor.untyped_storage().resize_(0)
    return tensor


def expanded() -> Tensor:
    return torch.ones(1, 2).expand(4, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: update(freed(torch.ones(4, 2)), torch.ones(1, 2), [0]),
            "var: .*freed",
        ),
        (lambda: update(torch.ones(4, 2), freed(torch.ones(1, 2)), [0]), "values of"),
        (lambda: update(expanded(), torch.ones(1, 2), [0]), "elements share memory"),
        (lambda: update(torch.tensor(1.0), torch.ones(1), [0]), "that has rows"),
        (lambda: update(torch.ones(4, 2), torch.ones(1, 3), [0]), r"shape \(1, 2\)"),
        (lambda: update(torch.ones(4), torch.ones(1), [0], shares), "no row but its"),
        (lambda: update(torch.ones(4, 2), torch.ones(1, 2), [0], of_all), "no row but"),
    ],
    ids=["no variable", "no values", "expanded", "0-d", "width", "vector", "whole"],
)
def test_what_cannot_be_done_is_refused_before_others_are_written(
    make: Any, message: str
) -> None:
    first = torch.ones(4, 2)
    good = update(first, torch.ones(2, 2), [1, 2])
    with pytest.raises(ValueError, match=message):
        launch_row_updates([good, make()], VALUES)
    assert first.eq(1).all()


def test_indices_without_memory_are_refused() -> None:
    wrong = update(torch.ones(4, 2), torch.ones(2, 2), [1, 2])
    freed(wrong.slices.indices)
    with pytest.raises(ValueError, match="indices of the gradient"):
        launch_row_updates([wrong], VALUES)


def test_an_index_that_only_the_interpreter_meets_is_found_first() -> None:
    first, strided = torch.ones(4, 2), torch.ones(4, 4)[:, ::2]
    good = update(first, torch.ones(2, 2), [1, 2])
    with pytest.raises(IndexError, match="4 at position 1"):
        launch_row_updates([good, update(strided, torch.ones(2, 2), [0, 4])], VALUES)
    assert first.eq(1).all()
    assert strided.eq(1).all()


def test_variables_that_share_memory_are_refused() -> None:
    whole = torch.ones(6, 2)
    updates = [
        update(var, torch.ones(1, 2), [0])
        for var in (whole[:3], torch.ones(3, 2), whole[2:])
    ]
    with pytest.raises(ValueError, match="variables 0 and 2, which overlap"):
        launch_row_updates(updates, VALUES)
    assert whole.eq(1).all()
    launch_row_updates(updates[:2], VALUES)
    beside = [update(whole[:, i : i + 1], torch.ones(1, 1), [5]) for i in (0, 1)]
    launch_row_updates(beside, VALUES)
    assert whole[5].eq(0.5).all()


def test_a_shard_of_parts_of_rows_is_refused() -> None:
    whole = Whole((4, 6), frozenset((1,)), lambda totals, _: totals)
    var = torch.ones(4, 3)
    slices = IndexedSlices(torch.ones(1, 3), torch.tensor([1]))
    for rule in (shares, descent):
        member = Member(Rule.of(rule), (var,), (), 0, whole=whole)
        if rule is shares:
            with pytest.raises(ValueError, match="cut between rows"):
                check_updates([RowUpdate(member, slices, "sum")])
        else:
            check_updates([RowUpdate(member, slices, "sum")])


@pytest.mark.parametrize("strided", [False, True])
def test_a_gradient_that_lies_in_a_variable_is_read_before_the_writing(
    strided: bool,
) -> None:
    start = torch.arange(8.0).reshape(4, 2)
    var = torch.cat([start, start], 1)[:, :2] if strided else start.clone()
    launch_row_updates([update(var, var[:2], [1, 0])], VALUES)
    expected = start.clone()
    expected[[1, 0]] -= 0.5 * start[:2]
    assert torch.equal(var, expected)


def test_a_lazily_negated_gradient_is_resolved() -> None:
    lazy = torch.complex(torch.zeros(2, 2), torch.ones(2, 2)).conj().imag
    var = torch.ones(4, 2)
    launch_row_updates([update(var, lazy, [0, 3])], VALUES)
    assert var[:, 0].tolist() == [1.5, 1.0, 1.0, 1.5]


def test_spans_tell_what_lies_apart() -> None:
    whole = torch.zeros(20)
    spans = Spans([whole[2:4], whole[8:12], whole[10:11], torch.empty(0)])
    apart = [spans.are_apart_from(whole[i : i + 1]) for i in range(14)]
    inside = {2, 3, 8, 9, 10, 11}
    assert apart == [i not in inside for i in range(14)]
    assert not spans.are_apart_from(whole)
    assert not spans.are_apart_from(freed(torch.ones(3)))
    assert Spans([]).are_apart_from(whole)


def test_rounds_keep_the_order_within_a_row() -> None:
    indices = torch.tensor([3, 1, 3, 3, 1, 0], dtype=torch.int32)
    slices = IndexedSlices(torch.arange(6.0), indices, (4,))
    found = [
        dict(zip(part.indices.tolist(), part.values.tolist(), strict=True))
        for part in rounds_of(slices)
    ]
    assert found == [{3: 0.0, 1: 1.0, 0: 5.0}, {3: 2.0, 1: 4.0}, {3: 3.0}]
    assert list(rounds_of(IndexedSlices(torch.ones(0), indices[:0]))) == []
