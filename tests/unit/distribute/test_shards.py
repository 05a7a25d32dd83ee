"""What a shard is a part of; two ranks are in tests/distributed."""

from __future__ import annotations

import torch

from thalweg.distribute.collectives import join_totals
from thalweg.distribute.shards import ShardJoin, Whole, whole_of


def test_a_plain_variable_is_whole() -> None:
    assert whole_of(torch.ones(3)) is None
    assert whole_of(torch.nn.Parameter(torch.ones(3))) is None


def test_variables_that_are_cut_alike_are_joined_at_once() -> None:
    mesh, other = object(), object()
    assert ShardJoin((mesh,)) == ShardJoin((mesh,))
    assert ShardJoin((mesh,)) != ShardJoin((other,))
    first, second = (
        Whole(shape, frozenset({0}), ShardJoin((mesh,))) for shape in ((4,), (8, 2))
    )
    assert first.join == second.join
    assert hash(first.join) == hash(second.join)


def test_one_process_has_the_totals_already() -> None:
    totals = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    is_maximum = torch.tensor([True, False])
    assert join_totals(totals, is_maximum) is totals
    assert ShardJoin((None,))(totals, is_maximum) is totals
