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


def _all(folder: str) -> dict[str, Any]:
    return {
        "mirrored": _mirrored(),
        "skips": _skips_together(),
        "sharded": _sharded(folder),
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
