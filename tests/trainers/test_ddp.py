"""DistributedDataParallel on two ranks: the guide page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.distributed.harness import run_ranks
from tests.trainers.pages import assert_same_bits, bits_of, run_page

pytestmark = pytest.mark.distributed
FACE = (
    ("from thalweg.optim import AdamW", "import thalweg as tw, thalweg.interop"),
    (
        "AdamW(model.named_parameters(), lr=2e-2, weight_decay=0.1)",
        "tw.interop.as_torch(tw.optimizers.AdamW(2e-2, 0.1), model)",
    ),
)


def run_on_rank(folder: str) -> dict[str, Any]:
    """The page with both doors."""
    return {"optim": run(folder, ()), "as_torch": run(folder, FACE)}


def run(folder: str, changes: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The page, and beside it the same run without an interruption."""
    page = run_page("ddp", Path(folder), changes)
    model, optimizer, scheduler = page["make"]()
    page["train"](model, optimizer, scheduler, range(30))
    return {
        "loss": page["loss"],
        "resumed": bits_of(page["model"]),
        "straight": bits_of(model),
        "reduced": _with_averaged_gradients(page),
        "wrapped": isinstance(model, page["DistributedDataParallel"]),
    }


def _with_averaged_gradients(page: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Three steps without DDP, on gradients averaged by hand."""
    model, optimizer, _ = page["make"]()
    model = model.module
    for step in range(3):
        inputs, targets = page["batch"](step)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
        optimizer.step()
    by_hand = bits_of(model)
    model, optimizer, scheduler = page["make"]()
    page["train"](model, optimizer, scheduler, range(3))
    return {n: value - by_hand[n] for n, value in bits_of(model.module).items()}


def test_the_page_on_two_ranks(tmp_path: Path) -> None:
    ranks = run_ranks(run_on_rank, 2, str(tmp_path), initialise=False)
    for first, second in ((ranks[0][door], ranks[1][door]) for door in ranks[0]):
        assert first["wrapped"]
        assert first["loss"] < 0.5
        assert_same_bits(first["resumed"], first["straight"])
        assert_same_bits(first["resumed"], second["resumed"])
        for result in (first, second):
            for difference in result["reduced"].values():
                assert difference.abs().max() < 1e-6
