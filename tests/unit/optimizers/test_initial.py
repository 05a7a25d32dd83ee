"""Where slots lie: a slot of one number a row is cut with the rows of its variable."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed.harness import run_ranks
from thalweg.distribute import local_tensor
from thalweg.distribute.row_shards import sharded_rows
from thalweg.optimizers import RowWiseAdagrad

SLOT = "accumulator"
ROWS = 5  # uneven: three on the first rank, two on the second


def make_model() -> Any:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, ROWS), nn.Tanh(), nn.Linear(ROWS, 1))


def train(model: Any, optimizer: Any) -> None:
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        model.zero_grad()
        (model(torch.randn(4, 3, generator=generator)) ** 2).mean().backward()
        optimizer.apply_gradients([(p.grad, p) for p in model.parameters()])


def shard_and_train() -> tuple[list[bool], list[tuple[int, ...]]]:
    from torch.distributed.fsdp import fully_shard

    model, whole = make_model(), make_model()
    fully_shard(model[0])
    fully_shard(model)
    sharded, plain = RowWiseAdagrad(0.1), RowWiseAdagrad(0.1)
    train(model, sharded)
    train(whole, plain)
    equal, shapes = [], []
    for part, own in zip(model.parameters(), whole.parameters(), strict=True):
        slot = sharded.get_slot(part, SLOT)
        assert slot.shape == plain.get_slot(own, SLOT).shape
        assert slot.placements == part.placements
        # Two ranks reduce equal gradients: a sum of two halves is exact.
        equal.append(torch.equal(part.full_tensor(), own))
        equal.append(torch.equal(slot.full_tensor(), plain.get_slot(own, SLOT)))
        shapes.append(tuple(local_tensor(slot).shape))
    return equal, shapes


@pytest.mark.distributed
def test_rows_on_two_ranks_step_as_in_one_process():
    found = run_ranks(shard_and_train, 2)
    assert all(all(equal) for equal, _ in found)
    assert found[0][1] == [(3, 1), (3,), (1, 1), (1,)]
    assert found[1][1] == [(2, 1), (2,), (0, 1), (0,)]


def test_rows_of_a_plain_variable_are_not_cut():
    assert sharded_rows(torch.ones(3, 2), (3, 1), torch.float32) is None
    optimizer, weight = RowWiseAdagrad(), nn.Parameter(torch.ones(3, 2, 2))
    optimizer.build([weight])
    assert optimizer.get_slot(weight, SLOT).shape == (3, 1, 1)
