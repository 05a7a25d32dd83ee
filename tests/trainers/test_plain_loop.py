"""The plain loop: the guide page, and what it says about resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from tests.trainers.pages import assert_same_bits, bits_of, run_page
from thalweg.interop import as_torch

STEPS = 60


FACE = (
    ("from thalweg.optim import AdamW", "import thalweg as tw, thalweg.interop"),
    (
        "AdamW(model.named_parameters(), lr=2e-2, weight_decay=0.1)",
        "tw.interop.as_torch(tw.optimizers.AdamW(2e-2, 0.1), model)",
    ),
)


@pytest.fixture(params=[(), FACE], ids=["optim", "as_torch"])
def page(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    return run_page("plain-loop", tmp_path, request.param)


def uninterrupted(page: dict[str, Any]) -> dict[str, torch.Tensor]:
    model, optimizer, scheduler = page["make"]()
    page["train"](model, optimizer, scheduler, range(STEPS))
    return bits_of(model)


def test_the_page_learns_and_resumes_to_the_same_bits(page: dict[str, Any]) -> None:
    assert page["loss"] < 0.25
    assert page["first"] == 25
    assert_same_bits(bits_of(page["model"]), uninterrupted(page))


@pytest.mark.parametrize("first", [0, 1, 59])
def test_the_scheduler_may_be_loaded_first(
    page: dict[str, Any], tmp_path: Path, first: int
) -> None:
    model, optimizer, scheduler = page["make"]()
    if first:
        page["train"](model, optimizer, scheduler, range(first))
    parts = {"model": model, "scheduler": scheduler, "optimizer": optimizer}
    page["save"](tmp_path / "other.pt", first, **parts)

    model, optimizer, scheduler = page["make"]()
    parts = {"scheduler": scheduler, "optimizer": optimizer, "model": model}
    assert page["resume"](tmp_path / "other.pt", **parts) == first
    page["train"](model, optimizer, scheduler, range(first, STEPS))
    assert_same_bits(bits_of(model), uninterrupted(page))


def make(page: dict[str, Any]) -> tuple[Any, Any]:
    """The page's model and optimizer, without a scheduler that has touched it."""
    model = page["make"]()[0]
    if "AdamW" in page:
        return model, page["AdamW"](model.named_parameters(), lr=1e-2)
    return model, as_torch("adamw", model)


def half_after_ten(epoch: int) -> float:
    return 0.5 ** (epoch // 10)


@pytest.mark.parametrize("made", ["before", "after"])
def test_a_scheduler_made_before_or_after_the_optimizer_is_restored(
    page: dict[str, Any], made: str
) -> None:
    def start(
        state: dict[str, Any] | None = None, last_epoch: int = -1
    ) -> tuple[Any, Any, Any]:
        model, optimizer = make(page)
        if state is not None and made == "after":
            optimizer.load_state_dict(state)
        keywords = {"last_epoch": last_epoch} if made == "after" else {}
        scheduler = lr_scheduler.LambdaLR(optimizer, half_after_ten, **keywords)
        return model, optimizer, scheduler

    straight, optimizer, scheduler = start()
    page["train"](straight, optimizer, scheduler, range(STEPS))

    model, optimizer, scheduler = start()
    page["train"](model, optimizer, scheduler, range(25))
    saved = [part.state_dict() for part in (model, optimizer, scheduler)]
    model, optimizer, scheduler = start(saved[1], last_epoch=24)
    model.load_state_dict(saved[0])
    if made == "before":
        optimizer.load_state_dict(saved[1])
        scheduler.load_state_dict(saved[2])
    page["train"](model, optimizer, scheduler, range(25, STEPS))
    assert_same_bits(bits_of(model), bits_of(straight))
