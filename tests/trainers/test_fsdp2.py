"""FSDP2: the guide page on two ranks, and its checkpoint on one and two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.distributed.harness import run_ranks
from tests.trainers.pages import assert_same_bits, bits_of, run_page, whole

pytestmark = pytest.mark.distributed
FACE = (
    ("from thalweg.optim import AdamW", "import thalweg as tw, thalweg.interop"),
    (
        "AdamW(model.named_parameters(), lr=2e-2, max_grad_norm=1.0)",
        "tw.interop.as_torch(tw.optimizers.Adam(2e-2, global_clipnorm=1.0), model)",
    ),
)


def train_on_rank(folder: str) -> dict[str, Any]:
    """What two ranks do."""
    return {
        "optim": train(folder, ()),
        "as_torch": train(f"{folder}/face", FACE),
        **load_on_rank(folder, "one"),
        **save_on_rank(folder, "two"),
    }


def train(folder: str, changes: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The page, and beside it runs that were not interrupted."""
    Path(folder).mkdir(exist_ok=True)
    page = run_page("fsdp2", Path(folder), changes)
    model, optimizer, scheduler = page["make"]()
    page["train"](model, optimizer, scheduler, range(30))
    probed, probed_optimizer, probed_scheduler = page["make"]()
    page["states"](probed, probed_optimizer, probed_scheduler)
    page["train"](probed, probed_optimizer, probed_scheduler, range(30))
    return {
        "loss": page["loss"],
        "resumed": bits_of(page["model"]),
        "straight": bits_of(model),
        "probed": bits_of(probed),
        "rows": [p.to_local().shape[0] for p in model.parameters()],
    }


def save_on_rank(folder: str, name: str) -> dict[str, Any]:
    """Some steps of the page's training, saved; the state as it was."""
    page = run_page("fsdp2", Path(folder))
    model, optimizer, scheduler = page["make"]()
    page["train"](model, optimizer, scheduler, range(7))
    page["save"](f"{folder}/{name}", model, optimizer, scheduler)
    return {"saved": state_of(model, optimizer)}


def load_on_rank(folder: str, name: str) -> dict[str, Any]:
    """What another number of ranks saved."""
    page = run_page("fsdp2", Path(folder))
    model, optimizer, scheduler = page["make"]()
    assert page["resume"](f"{folder}/{name}", model, optimizer, scheduler) == 7
    assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]
    return {"loaded": state_of(model, optimizer)}


def state_of(model: torch.nn.Module, optimizer: Any) -> dict[str, torch.Tensor]:
    """Parameters and state, whole, by name."""
    bits = bits_of(model)
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            bits[f"{name}/{key}"] = whole(value)
    return bits


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A process group of this process alone, without a port."""
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.filterwarnings("ignore", "error:::thalweg")
def test_the_page_on_two_ranks_and_its_checkpoints_on_one(tmp_path: Path) -> None:
    folder = str(tmp_path)
    one = save_on_rank(folder, "one")
    two = run_ranks(train_on_rank, 2, folder, initialise=False)
    again = load_on_rank(folder, "two")

    for door in ("optim", "as_torch"):
        assert [result[door]["rows"][0] for result in two] == [17, 16]
        assert two[0][door]["loss"] < 0.5
        for result in two:
            for name in ("resumed", "probed"):
                assert_same_bits(result[door][name], two[0][door]["straight"])
    for result in two:
        assert_same_bits(result["loaded"], one["saved"])
        assert_same_bits(result["saved"], again["loaded"])
