"""Reduction by plans, in one process; several ranks are in tests/distributed."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from thalweg.distribute import aggregation
from thalweg.distribute.aggregation import Aggregator
from thalweg.distribute.collectives import ReduceOp
from thalweg.state import IndexedSlices


def _rows(shape: tuple[int, ...] = (4, 2), dtype: torch.dtype = torch.float32) -> Any:
    return IndexedSlices(torch.ones(1, 2, dtype=dtype), torch.tensor([1]), shape)


def test_a_plan_is_made_once_for_the_same_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    original = aggregation.make_plan

    def counting(gradients: Any, variables: Sequence[Any], **options: Any) -> Any:
        made.append(len(variables))
        return original(gradients, variables, **options)

    monkeypatch.setattr(aggregation, "make_plan", counting)
    aggregator = Aggregator(ReduceOp.SUM)
    first, second = torch.zeros(2), torch.zeros(2)
    for _ in range(2):
        aggregator.reduce([torch.ones(2)], [first])
        aggregator.reduce([torch.ones(2), None], [first, second])
    assert made == [1, 2]
    # A first gradient for a variable nobody had one for asks for a new plan.
    results = aggregator.reduce([torch.ones(2), torch.ones(2)], [first, second])
    assert made == [1, 2, 2]
    assert [r.tolist() for r in results] == [[1.0, 1.0], [1.0, 1.0]]


def test_plans_do_not_keep_variables_alive() -> None:
    aggregator = Aggregator(ReduceOp.SUM)
    for _ in range(3):
        aggregator.reduce([torch.ones(2)], [torch.zeros(2)])
        gc.collect()
    assert len(aggregator._plans) == 1
    assert not next(iter(aggregator._plans.values())).is_alive()


def test_one_rank_keeps_the_pattern_of_none() -> None:
    aggregator = Aggregator(ReduceOp.MEAN)
    variables = [torch.zeros(4, 2) for _ in range(3)]
    results = aggregator.reduce([None, _rows(), torch.ones(4, 2)], variables)
    assert results[0] is None
    assert results[1].indices.tolist() == [1]
    assert torch.equal(results[2], torch.ones(4, 2))
    results = aggregator.reduce([None, None, None], variables)
    assert results == [None, None, None]


def test_a_plan_follows_the_gradients() -> None:
    aggregator = Aggregator(ReduceOp.SUM)
    variable = torch.zeros(4, 2)
    for _ in range(2):
        [result] = aggregator.reduce([torch.ones(4, 2)], [variable])
        assert torch.equal(result, torch.ones(4, 2))
        [result] = aggregator.reduce([_rows()], [variable])
        assert result.indices.tolist() == [1]
        assert aggregator.reduce([None], [variable]) == [None]


def test_a_wider_gradient_is_not_cast() -> None:
    aggregator = Aggregator(ReduceOp.SUM)
    dense, table = torch.zeros(4, 2), torch.zeros(4, 2)
    for dtype in (torch.float32, torch.float64, torch.float32):
        given = torch.ones(4, 2, dtype=dtype), _rows(dtype=dtype)
        results = aggregator.reduce(given, [dense, table])
        # What has been wide stays so; rows are of the dtype of their step.
        assert torch.promote_types(results[0].dtype, dtype) == results[0].dtype
        assert results[1].dtype == dtype


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Plans as on a GPU, where flags are read only if they matter; what was sent."""
    make, reduce = aggregation.make_plan, aggregation.collectives.all_reduce_bucketed
    sent: list[int] = []

    def make_unread(*args: Any, **options: Any) -> Any:
        plan = make(*args, **options)
        plan.is_always_read = bool(plan.unknown)
        return plan

    def counting(tensors: Sequence[Any], *rest: Any) -> Any:
        sent.append(len(tensors))
        return reduce(tensors, *rest)

    monkeypatch.setattr(aggregation, "make_plan", make_unread)
    monkeypatch.setattr(aggregation.collectives, "all_reduce_bucketed", counting)
    return sent


def test_a_plan_follows_where_flags_are_seldom_read(unread: list[int]) -> None:
    aggregator, variable = Aggregator(ReduceOp.SUM), torch.zeros(4, 2)
    for gradient in (torch.ones(4, 2), _rows(), None, torch.ones(4, 2), None, _rows()):
        [result] = aggregator.reduce([gradient], [variable])
        assert type(result) is type(gradient)
    assert unread == [2, 2, 1, 2, 2]  # rows alone are not sent here


def test_what_nobody_would_read_is_not_sent(unread: list[int]) -> None:
    aggregator, variable = Aggregator(ReduceOp.SUM), torch.zeros(4, 2)
    aggregator.reduce([torch.ones(4, 2)], [variable])
    del unread[:]
    aggregator.refuse([variable])
    assert unread == []
    aggregator.reduce([_rows()], [variable])
    aggregator.refuse([variable])  # with the number of rows
    [result] = aggregator.reduce([_rows()], [variable])
    assert result.indices.tolist() == [1]


def test_a_gradient_of_another_shape_is_refused() -> None:
    aggregator = Aggregator(ReduceOp.SUM)
    with pytest.raises(ValueError, match=r"a gradient of shape \(4, 2\)"):
        aggregator.reduce([torch.ones(2, 4)], [torch.zeros(4, 2)])
    with pytest.raises(ValueError, match="IndexedSlices"):
        aggregator.reduce([_rows((5, 2))], [torch.zeros(4, 2)])
