"""Gradients are gathered on each rank, and reduced once a cycle: two ranks, gloo."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import thalweg as tw
from tests.distributed.harness import run_ranks

pytestmark = pytest.mark.distributed

CYCLE = 2
MICRO_STEPS = 6


def gradients(rank: int, number: int) -> list[Any]:
    """Of a weight, of a bias that lacks one here and there, of rows of a table."""
    generator = torch.Generator().manual_seed(10 * number + rank)
    weight = torch.randn(4, generator=generator)
    bias = torch.randn(2, generator=generator)
    rows = torch.randn(1 + rank, 3, generator=generator)
    places = torch.randint(0, 5, (1 + rank,), generator=generator)
    lacks = (rank + number) % 3 == 0
    return [weight, None if lacks else bias, tw.IndexedSlices(rows, places, (5, 3))]


def variables() -> list[tw.Variable]:
    named = {"weight": torch.ones(4), "bias": torch.ones(2), "table": torch.ones(5, 3)}
    return [tw.Variable(value, name=name) for name, value in named.items()]


def _mirrored() -> list[Any]:
    held, rank = variables(), dist.get_rank()
    strategy = tw.distribute.MirroredStrategy("cpu")
    with strategy.scope():
        optimizer = tw.optimizers.Adam(0.1, gradient_accumulation_steps=CYCLE)
    reduced = []
    aggregate = strategy.extended.aggregate_gradients

    def counted(pairs: Any) -> Any:
        reduced.append(len(pairs))
        return aggregate(pairs)

    strategy.extended.aggregate_gradients = counted

    def step(number: int) -> None:
        with strategy.extended.loss_divided_globally():
            own = gradients(rank, number)
            optimizer.apply_gradients(zip(own, held, strict=True))

    for number in range(MICRO_STEPS):
        strategy.run(step, (number,))
    return [[v.tolist() for v in held], reduced]


def _skips_together() -> list[Any]:
    """Only rank 1 overflows, in the first of two micro-steps."""
    weight, rank = tw.Variable([1.0], name="weight"), dist.get_rank()
    strategy = tw.distribute.MirroredStrategy("cpu")
    with strategy.scope():
        inner = tw.optimizers.SGD(0.5, gradient_accumulation_steps=CYCLE)
        optimizer = tw.LossScaleOptimizer(inner, initial_scale=8.0)
    found = []

    def step(number: int) -> None:
        factor = float("inf") if (number, rank) == (0, 1) else 1.0
        with strategy.extended.loss_divided_globally():
            optimizer.minimize(lambda: (factor * weight).sum(), [weight])

    for number in range(2 * CYCLE):
        strategy.run(step, (number,))
        state = optimizer.loss_scale, optimizer.iterations, weight
        found.append([float(one) for one in state])
    return found


def _sharded(folder: str) -> list[Any]:
    """Shards accumulate, and are saved and restored in the midst of a cycle."""
    from torch.distributed.fsdp import fully_shard

    def made() -> tuple[nn.Module, Any, tw.Checkpoint]:
        torch.manual_seed(0)
        model = nn.Linear(3, 5)
        fully_shard(model)
        optimizer = tw.optimizers.Adam(0.1, gradient_accumulation_steps=CYCLE)
        return model, optimizer, tw.Checkpoint(model=model, optimizer=optimizer)

    def step(model: nn.Module, optimizer: Any, number: int) -> None:
        model.zero_grad()
        model(torch.full((2, 3), number + 1.0)).square().mean().backward()
        optimizer.apply_gradients([(p.grad, p) for p in model.parameters()])

    model, optimizer, checkpoint = made()
    for number in range(5):
        if number == 3:
            checkpoint.save(folder)
        step(model, optimizer, number)
    expected = [p.full_tensor().tolist() for p in model.parameters()]  # pyright: ignore[reportAttributeAccessIssue]
    model, optimizer, checkpoint = made()
    checkpoint.restore(folder).assert_consumed()
    for number in range(3, 5):
        step(model, optimizer, number)
    found = [p.full_tensor().tolist() for p in model.parameters()]  # pyright: ignore[reportAttributeAccessIssue]
    return [expected, found, int(optimizer.iterations)]


class Table(nn.Module):
    """A table whose gradients are sparse, and a weight that all ranks hold."""

    def __init__(self, mesh: Any, placement: Any) -> None:
        from torch.distributed.tensor import distribute_tensor

        super().__init__()
        table = torch.arange(12.0).reshape(4, 3)
        self.table: Any = nn.Parameter(table)
        if mesh is not None:
            self.table = nn.Parameter(distribute_tensor(table, mesh, [placement]))


def _rows_that_wait(folder: str) -> dict[str, list[Any]]:
    """Rows wait when a table is saved, whole or cut, and it goes on whole or cut."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    # As many rows wait as the table has, so that shapes do not tell them apart.
    slices = tw.IndexedSlices(torch.ones(4, 3), torch.tensor([0, 1, 3, 3]), (4, 3))

    def made(placement: Any) -> tuple[Table, Any, tw.Checkpoint]:
        model = Table(mesh if placement else None, placement)
        optimizer = tw.optimizers.Adam(0.5, gradient_accumulation_steps=CYCLE)
        return model, optimizer, tw.Checkpoint(model=model, optimizer=optimizer)

    def last(kind: str, placement: Any) -> Any:
        dense = torch.ones(4, 3)
        if placement is not None:
            dense = distribute_tensor(dense, mesh, [placement])
        return {"rows": slices, "dense": dense}[kind]

    def end(model: Table, optimizer: Any, kind: str, placement: Any) -> list[Any]:
        optimizer.apply_gradients([(last(kind, placement), model.table)])
        table = model.table
        return (table if placement is None else table.full_tensor()).tolist()

    found: dict[str, list[Any]] = {}
    kinds = [None, Shard(0), Shard(1), Replicate()]
    for kind in ("rows", "dense"):
        for saving in kinds:
            model, optimizer, checkpoint = made(saving)
            optimizer.apply_gradients([(slices, model.table)])
            path = f"{folder}/{kind} {saving}"
            checkpoint.save(path)
            ends = found[f"{kind} {saving}"] = [end(model, optimizer, kind, saving)]
            for going_on in kinds:
                model, optimizer, checkpoint = made(going_on)
                checkpoint.restore(path).assert_consumed()
                ends.append(end(model, optimizer, kind, going_on))
    return found


def _all(folder: str) -> dict[str, Any]:
    return {
        "mirrored": _mirrored(),
        "skips": _skips_together(),
        "sharded": _sharded(folder),
        "rows": _rows_that_wait(f"{folder} rows"),
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """What both ranks found; starting them takes seconds, so once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(_all, 2, f"{folder}/save")


def test_the_sum_of_the_means_is_applied(ranks):
    held = variables()
    optimizer = tw.optimizers.Adam(0.1)
    for first in range(0, MICRO_STEPS, CYCLE):
        totals: list[Any] = [torch.zeros(4), torch.zeros(2)]
        rows, places = [], []
        for rank in range(2):
            for number in range(first, first + CYCLE):
                weight, bias, slices = gradients(rank, number)
                totals[0] = totals[0] + weight / CYCLE
                totals[1] = totals[1] + (0 if bias is None else bias / CYCLE)
                rows.append(slices.values / CYCLE)
                places.append(slices.indices)
        whole = tw.IndexedSlices(torch.cat(rows), torch.cat(places))
        optimizer.apply_gradients(zip([*totals, whole], held, strict=True))
    expected = [v.tolist() for v in held]
    for rank in ranks:
        found = rank["mirrored"][0]
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(two))
    assert ranks[0]["mirrored"][0] == ranks[1]["mirrored"][0]


def test_ranks_talk_once_a_cycle(ranks):
    for rank in ranks:
        assert rank["mirrored"][1] == [3] * (MICRO_STEPS // CYCLE)


def test_all_ranks_skip_a_cycle_together(ranks):
    expected = [[8.0, 0.0, 1.0], [4.0, 1.0, 1.0], [4.0, 1.0, 1.0], [4.0, 2.0, 0.0]]
    assert [rank["skips"] for rank in ranks] == [expected, expected]


def test_shards_resume_in_the_midst_of_a_cycle(ranks):
    for rank in ranks:
        expected, found, iterations = rank["sharded"]
        assert found == expected
        assert iterations == 5 // CYCLE


def test_rows_that_wait_are_restored_whole_onto_shards(ranks):
    for rank in ranks:
        assert len(rank["rows"]) == 8
        for ends in rank["rows"].values():
            assert all(end == ends[0] for end in ends)
