"""Accelerate: the guide page in one process and on two ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.harness import run_ranks
from tests.trainers.pages import assert_same_bits, bits_of, needs, run_page

pytestmark = needs("accelerate")
FACE = (
    ("from thalweg.optim import AdamW", "import thalweg as tw, thalweg.interop"),
    (
        "AdamW(model.named_parameters(), lr=2e-2, weight_decay=0.1)",
        "tw.interop.as_torch(tw.optimizers.AdamW(2e-2, 0.1), model)",
    ),
)


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerate keeps what it found out about the process in globals."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


def run(folder: str, changes: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
    """The page, and beside it the same run without an interruption."""
    page = run_page("accelerate", Path(folder), changes)
    accelerator = page["accelerator"]
    accelerator.free_memory()
    parts = page["make"](accelerator)
    page["train"](accelerator, *parts, epochs=range(4))
    return {
        "loss": page["loss"],
        "ranks": accelerator.num_processes,
        "resumed": bits_of(page["model"]),
        "straight": bits_of(accelerator.unwrap_model(parts[0])),
        "rates": [p[1].param_groups[0]["lr"] for p in (page["parts"], parts)],
    }


@pytest.mark.parametrize("changes", [(), FACE], ids=["optim", "as_torch"])
def test_one_process(tmp_path: Path, changes: tuple[tuple[str, str], ...]) -> None:
    result = run(str(tmp_path), changes)
    assert result["ranks"] == 1
    assert result["loss"] < 0.1
    assert result["rates"][0] == result["rates"][1] < 1e-9
    assert_same_bits(result["resumed"], result["straight"])


@pytest.mark.distributed
def test_two_processes(tmp_path: Path) -> None:
    first, second = run_ranks(run, 2, str(tmp_path), initialise=False)
    assert first["ranks"] == 2
    assert first["loss"] < 0.1
    assert first["rates"][0] == first["rates"][1]
    assert_same_bits(first["resumed"], first["straight"])
    assert_same_bits(first["resumed"], second["resumed"])
