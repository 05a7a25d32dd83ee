"""Parameters under `fully_shard` on two ranks: as on one rank, saved and resumed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.distributed.harness import run_ranks
from thalweg import optim
from thalweg.optim import stepping

pytestmark = pytest.mark.distributed

CASES: list[tuple[str, dict[str, Any]]] = [
    ("AdamW", {}),
    ("SGD", {"momentum": 0.9}),
    ("RMSprop", {"centered": True}),
    ("AdamW", {"max_grad_norm": 0.1, "nonfinite": "skip", "ema_decay": 0.9}),
    ("LAMB", {"weight_decay": 0.01}),
]


def module() -> torch.nn.Sequential:
    torch.manual_seed(0)
    # 5 and 3 rows on two ranks: shards of different sizes.
    return torch.nn.Sequential(
        torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
    )


def train(model: torch.nn.Module, optimizer: Any, steps: int) -> None:
    given = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        model(given).square().mean().backward()
        optimizer.step()


def _compare(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train sharded and whole; save, resume, and go on."""
    mesh = init_device_mesh("cpu", (2,))
    sharded, whole, resumed = module(), module(), module()
    for model in (sharded, resumed):
        fully_shard(model, mesh=mesh)
    make = getattr(optim, name)
    optimizer = make(sharded.parameters(), lr=0.05, **options)
    single = make(whole.parameters(), lr=0.05, **options)
    train(sharded, optimizer, 4)
    train(whole, single, 4)
    pairs = zip(sharded.parameters(), whole.parameters(), strict=True)
    away = max(float((a.full_tensor() - b).detach().abs().max()) for a, b in pairs)
    saved = copy.deepcopy(get_optimizer_state_dict(sharded, optimizer))
    with torch.no_grad():
        for mine, theirs in zip(
            resumed.parameters(), sharded.parameters(), strict=True
        ):
            mine.copy_(theirs)
    other = make(resumed.parameters(), lr=0.05, **options)
    set_optimizer_state_dict(resumed, other, saved)
    train(sharded, optimizer, 2)
    train(resumed, other, 2)
    again = zip(sharded.parameters(), resumed.parameters(), strict=True)
    same = all(torch.equal(a.to_local(), b.to_local()) for a, b in again)
    return {"away": away, "resumed": same, "replays": len(optimizer._stepper._replays)}


def _probed() -> list[float]:
    """A step at rate 0 that is a probe for one rank alone: it has no element."""
    model = torch.nn.Linear(4, 1, bias=False)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = optim.LAMB(model.parameters(), lr=0.0)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return [float(state["step"]) for state in optimizer.state.values()]


def _run_all() -> dict[str, Any]:
    compared = [_compare(name, options) for name, options in CASES]
    return {"cases": compared, "probed": _probed(), "room": stepping.__name__}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """What both ranks found; starting them takes seconds, so once for all tests."""
    return run_ranks(_run_all, 2)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_shards_are_updated_as_whole_parameters(
    ranks: list[dict[str, Any]], number: int
) -> None:
    for rank in ranks:
        found = rank["cases"][number]
        assert found["away"] <= 1e-6
        assert found["resumed"]
        assert found["replays"] == 1


def test_ranks_agree_on_what_a_probe_is(ranks: list[dict[str, Any]]) -> None:
    assert [rank["probed"] for rank in ranks] == [[1.0], [1.0]]
