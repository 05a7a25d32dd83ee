"""What a rank holds of a sharded tensor, and whether that is one box."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed.harness import run_ranks
from thalweg.checkpoint import Checkpoint
from thalweg.checkpoint.pieces import Cut, held, piece_of
from thalweg.errors import CheckpointError
from thalweg.optimizers import Adam

RANKS = (2, 2)  # replicas that shard, times tensor parallelism


@pytest.mark.parametrize("size", range(18))
@pytest.mark.parametrize("inner", [1, 2, 3, 4])
@pytest.mark.parametrize("outer", [1, 2, 3, 4])
def test_a_shard_of_a_shard_is_one_range(size: int, inner: int, outer: int) -> None:
    """As FSDP2 over tensor parallelism cuts: first along the second axis."""
    whole = torch.arange(size)
    for second in range(inner):
        parts = [*whole.chunk(inner), *[whole[:0]] * inner]
        for first in range(outer):
            part = [*parts[second].chunk(outer), *[whole[:0]] * outer][first]
            found = held(size, [Cut(outer, first, inner), Cut(inner, second)])
            assert found is not None
            assert list(found) == part.tolist()


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("number", [0, 1])
def test_strides_are_no_range_on_any_rank(size: int, number: int) -> None:
    assert held(size, [Cut(2, number, groups=2)]) is None
    assert held(size, [Cut(2, number, groups=3), Cut(2, number)]) is None
    assert held(size, [Cut(1, 0, groups=2)]) == range(size)


def make_model() -> Any:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))


def shard(model: Any, mesh: Any) -> Any:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    ways = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(model, mesh["inner"], ways)
    return fully_shard(model, mesh=mesh["outer"])


def train(model: Any, optimizer: Any, steps: range) -> list[list[float]]:
    for step in steps:
        model.zero_grad()
        model(torch.full((2, 4), step + 1.0)).square().mean().backward()
        optimizer.apply_gradients([(p.grad, p) for p in model.parameters()])
    found = [getattr(p, "full_tensor", p.clone)() for p in model.parameters()]
    return [tensor.tolist() for tensor in found]


def save_and_resume(folder: str) -> tuple[bool, str, list[list[float]], str]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor
    from torch.distributed.tensor.placement_types import _StridedShard

    mesh = init_device_mesh("cpu", RANKS, mesh_dim_names=("outer", "inner"))
    model, optimizer = shard(make_model(), mesh), Adam(0.05)
    saved = train(model, optimizer, range(2))
    Checkpoint(m=model, o=optimizer).save(folder)
    expected = train(model, optimizer, range(2, 4))
    fresh, resumed = shard(make_model(), mesh), Adam(0.05)
    Checkpoint(m=fresh, o=resumed).restore(folder).assert_consumed()
    is_same = train(fresh, resumed, range(2, 4)) == expected
    strides = [_StridedShard(0, split_factor=2)]
    dealt = distribute_tensor(torch.ones(8), mesh["outer"], strides)
    try:
        piece_of(dealt, "dealt")
        said = ""
    except CheckpointError as problem:
        said = str(problem)
    return is_same, str(next(iter(model.parameters())).placements), saved, said


@pytest.mark.distributed
def test_shards_of_shards_are_saved_and_restored(tmp_path) -> None:
    found = run_ranks(save_and_resume, 4, str(tmp_path / "save"))
    model, optimizer = make_model(), Adam(0.05)
    Checkpoint(m=model, o=optimizer).restore(tmp_path / "save").assert_consumed()
    for is_same, placements, saved, said in found:
        assert is_same
        assert "_StridedShard" in placements
        assert saved == [p.tolist() for p in model.parameters()]
        assert "'dealt': expected shards that are boxes" in said
