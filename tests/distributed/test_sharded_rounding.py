"""Stochastic rounding on shards of two ranks has the bits of whole variables."""

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
from thalweg.distribute.flat_range import first_index
from thalweg.state import IndexedSlices, set_name

pytestmark = pytest.mark.distributed

# 33 and 1 rows on two ranks: parts of different sizes, and an empty one.
SHAPES = ((33, 6), (1, 6), (5,))


def _tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator).bfloat16() for s in SHAPES]


def _adamw() -> tw.optimizers.AdamW:
    options: Any = {"stochastic_rounding": True, "slot_dtypes": "variable"}
    return tw.optimizers.AdamW(1e-3, **options)


def _differences(placement: Any, *, is_sparse: bool) -> int:
    """Elements of variables and slots that differ after some steps."""
    mesh = init_device_mesh("cpu", (2,))
    whole = [tw.Variable(t, name=f"v{i}") for i, t in enumerate(_tensors(0))]
    whole = whole[:1] if is_sparse else whole
    sharded: list[Any] = []
    for i, variable in enumerate(whole):
        start = distribute_tensor(variable.detach().clone(), mesh, [placement])
        sharded.append(torch.nn.Parameter(start))
        set_name(sharded[-1], f"v{i}")
    here, there = _adamw(), _adamw()
    for step in range(4):
        grads: list[Any] = _tensors(step + 1)[: len(whole)]
        parts = [distribute_tensor(g, mesh, [placement]) for g in grads]
        if is_sparse:
            order = torch.randperm(33, generator=torch.Generator().manual_seed(step))
            grads = parts = [IndexedSlices(grads[0][order], order, SHAPES[0])]
        here.apply_gradients(zip(grads, whole, strict=True))
        there.apply_gradients(zip(parts, sharded, strict=True))
    slots = zip(here.slot_variables(), there.slot_variables(), strict=True)
    pairs = [*zip(whole, sharded, strict=True), *((a, b) for (*_, a), (*_, b) in slots)]
    return sum(int((a != b.full_tensor()).sum()) for a, b in pairs)


def _ranges() -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2,))
    found: dict[str, Any] = {}
    for name, shape, placement in (
        ("rows", (33, 6), Shard(0)),
        ("copies", (33, 6), Replicate()),
        ("one row", (1, 6), Shard(1)),
        ("nothing", (0, 6), Shard(0)),
        ("columns", (33, 6), Shard(1)),
    ):
        placed = distribute_tensor(torch.zeros(shape), mesh, [placement])
        try:
            found[name] = first_index(placed)
        except ValueError as error:
            found[name] = str(error)
    return found


def _refused() -> str:
    mesh = init_device_mesh("cpu", (2,))
    start = distribute_tensor(_tensors(0)[0], mesh, [Shard(1)])
    try:
        _adamw().build([torch.nn.Parameter(start)])
    except ValueError as error:
        return str(error)
    return ""


def _run_all() -> dict[str, Any]:
    return {
        "dense": _differences(Shard(0), is_sparse=False),
        "copies": _differences(Replicate(), is_sparse=False),
        "rows": _differences(Shard(0), is_sparse=True),
        "ranges": _ranges(),
        "refused": _refused(),
        "rank": dist.get_rank(),
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """What both ranks found; starting them takes seconds, so once for all tests."""
    return run_ranks(_run_all, 2)


@pytest.mark.parametrize("kind", ["dense", "copies", "rows"])
def test_shards_are_rounded_as_whole_variables(
    ranks: list[dict[str, Any]], kind: str
) -> None:
    assert [rank[kind] for rank in ranks] == [0, 0]


def test_a_shard_knows_where_it_begins(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found, number = rank["ranges"], rank["rank"]
        assert found["rows"] == number * 17 * 6
        assert found["one row"] == number * 3
        assert found["copies"] == found["nothing"] == 0
        assert "Shard the first axis" in found["columns"]


def test_a_cut_between_columns_is_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "ranges of the flat order" in rank["refused"]
