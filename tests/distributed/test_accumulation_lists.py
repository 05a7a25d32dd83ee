"""Ranks list other variables in each micro-step, and not all have a gradient."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
import torch.distributed as dist

import thalweg as tw
from tests.distributed.harness import run_ranks

pytestmark = pytest.mark.distributed

ONE = torch.ones(1)


class Held(torch.nn.Module):
    """Two parameters without names of their own, and one with rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.table = (
            torch.nn.Parameter(torch.ones(1)) for _ in range(3)
        )

    def values(self) -> list[float]:
        return [p.item() for p in self.parameters()]


def _made() -> tuple[Any, Held, Any]:
    strategy, held = tw.distribute.MirroredStrategy("cpu", "mean"), Held()
    with strategy.scope():
        optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=3)
    return strategy, held, optimizer


def _begin(held: Held) -> list[Any]:
    """Of the first micro-step: rank 1 has a gradient of the first variable alone."""
    others = (None, None)
    if dist.get_rank() == 0:
        others = (ONE, tw.IndexedSlices(ONE, torch.tensor([0]), (1,)))
    return list(zip((ONE, *others), held.parameters(), strict=True))


def _cycles() -> list[Any]:
    strategy, held, optimizer = _made()
    found = []
    for _ in range(2):  # the second cycle is recognized
        strategy.run(optimizer.apply_gradients, (_begin(held),))
        for _ in range(2):
            strategy.run(optimizer.apply_gradients, ([(ONE, held.first)],))
        found.append(held.values())
    return found


def _resumed(folder: str) -> list[list[float]]:
    """The same, saved in the midst of the cycle and restored."""
    strategy, held, optimizer = _made()
    strategy.run(optimizer.apply_gradients, (_begin(held),))
    tw.Checkpoint(model=held, optimizer=optimizer).save(folder)
    found = []
    for is_inside in (True, False):
        strategy, held, optimizer = _made()
        checkpoint = tw.Checkpoint(model=held, optimizer=optimizer)
        if is_inside:
            strategy.run(lambda c=checkpoint: c.restore(folder).assert_consumed())
        else:
            checkpoint.restore(folder).assert_consumed()
        for _ in range(2):
            strategy.run(optimizer.apply_gradients, ([(ONE, held.first)],))
        found.append(held.values())
    return found


def _all(folder: str) -> dict[str, Any]:
    return {"cycles": _cycles(), "resumed": _resumed(folder)}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """What both ranks found; starting them takes seconds, so once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(_all, 2, f"{folder}/save")


def test_a_cycle_has_all_variables_that_were_listed(ranks: list[dict[str, Any]]):
    # One of three gradients on one of two ranks: a sixth of it is applied.
    once, twice = [0.0, 5 / 6, 5 / 6], [-1.0, 4 / 6, 4 / 6]
    for rank in ranks:
        assert rank["cycles"][0] == pytest.approx(once)
        assert rank["cycles"][1] == pytest.approx(twice)


def test_so_has_one_that_goes_on(ranks: list[dict[str, Any]]):
    for rank in ranks:
        for values in rank["resumed"]:
            assert values == pytest.approx([0.0, 5 / 6, 5 / 6])
