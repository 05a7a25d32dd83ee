"""Rules that reduce a whole variable, on shards of two ranks: gloo on loopback."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import thalweg as tw
from tests.distributed.harness import run_ranks
from thalweg.distribute import collectives
from thalweg.distribute.shards import whole_of
from thalweg.state import IndexedSlices

pytestmark = pytest.mark.distributed

# 33 and 1 rows on two ranks: parts of different sizes, and an empty one.
SHAPES = ((33, 6), (1, 6), (5,))
STEPS = 4


class Centred(tw.Optimizer):
    """A mean, a maximum, and a norm that needs the mean: three passes."""

    learning_rate: tw.Hyper = tw.Hyper(default=0.1, low=0.0)

    @staticmethod
    def update(var: Any, grad: Any, *, learning_rate: Any) -> Any:
        centred = grad - torch.mean(grad) * torch.amax(abs(var))
        length = torch.linalg.vector_norm(centred)
        return var - learning_rate * centred / (length + 1e-6)


def _lamb() -> tw.Optimizer:
    return tw.optimizers.Lamb(0.05, weight_decay=0.01, global_clipnorm=1.0)


def _tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def _away(sharded: list[Any], whole: list[Tensor]) -> float:
    """The largest relative distance, element by element."""
    pairs = [(a.full_tensor(), b) for a, b in zip(sharded, whole, strict=True)]
    return max(float(((a - b) / b).detach().abs().max()) for a, b in pairs)


def _compare(make: Any, axis: int) -> dict[str, Any]:
    """Step on shards and on whole variables; count what is sent."""
    mesh = init_device_mesh("cpu", (2,))
    whole = [tw.Variable(t) for t in _tensors(0)]
    cuts = [[Shard(min(axis, v.ndim - 1))] for v in whole]
    sharded = [
        torch.nn.Parameter(distribute_tensor(v.detach().clone(), mesh, c))
        for v, c in zip(whole, cuts, strict=True)
    ]
    here, there = make(), make()
    sent: list[int] = []
    join = collectives.all_gather_padded

    def counting(tensor: Tensor, *rest: Any) -> Tensor:
        sent.append(tensor.numel())
        return join(tensor, *rest)

    collectives.all_gather_padded = counting
    try:
        for step in range(STEPS):
            grads = _tensors(step + 1)
            here.apply_gradients(zip(grads, whole, strict=True))
            parts = [
                distribute_tensor(g, mesh, c) for g, c in zip(grads, cuts, strict=True)
            ]
            there.apply_gradients(zip(parts, sharded, strict=True))
    finally:
        collectives.all_gather_padded = join
    return {"away": _away(sharded, whole), "sent": sent}


def _rows() -> float:
    """A sparse gradient of a sharded variable: rows of one rank only."""
    mesh = init_device_mesh("cpu", (2,))
    whole = tw.Variable(_tensors(0)[0])
    parts = distribute_tensor(whole.detach().clone(), mesh, [Shard(0)])
    sharded = torch.nn.Parameter(parts)
    here, there = tw.optimizers.Lamb(0.05), tw.optimizers.Lamb(0.05)
    slices = IndexedSlices(torch.ones(3, 6), torch.tensor([1, 4, 1]), (33, 6))
    for _ in range(2):
        here.apply_gradients([(slices, whole)])
        there.apply_gradients([(slices, sharded)])
    return _away([sharded], [whole])


def _joined() -> list[Any]:
    totals = torch.tensor([[1.0, float(dist.get_rank())]], dtype=torch.float64)
    if dist.get_rank() == 1:
        totals[0, 0] = torch.nan
    is_maximum = torch.tensor([True, False])
    found = collectives.join_totals(totals, is_maximum)
    mesh = init_device_mesh("cpu", (2,))
    replicated = distribute_tensor(torch.ones(3), mesh, [Replicate()])
    return [*found[0].tolist(), whole_of(replicated), whole_of(torch.ones(2))]


def _run_all() -> dict[str, Any]:
    return {
        "lamb": [_compare(_lamb, axis) for axis in (0, 1)],
        "centred": [_compare(Centred, axis) for axis in (0, 1)],
        "rows": _rows(),
        "joined": _joined(),
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """What both ranks found; starting them takes seconds, so once for all tests."""
    return run_ranks(_run_all, 2)


@pytest.mark.parametrize(("name", "reading"), [("lamb", 1), ("centred", 2)])
def test_shards_move_as_whole_variables(
    ranks: list[dict[str, Any]], name: str, reading: int
) -> None:
    for rank in ranks:
        for found in rank[name]:
            assert found["away"] <= 1e-5
            # One message for each reading pass, with the totals of all variables.
            assert len(found["sent"]) == reading * STEPS


def test_rows_of_one_rank_move_the_whole_variable(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["rows"] <= 1e-5 for rank in ranks)


def test_sums_and_maxima_travel_together(ranks: list[dict[str, Any]]) -> None:
    for largest, total, *wholes in (rank["joined"] for rank in ranks):
        assert largest != largest  # a NaN is the largest number
        assert total == 1.0
        assert wholes == [None, None]
