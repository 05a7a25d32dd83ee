"""Two ranks: whole tensors of a state dict are cut to the shards of parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed.harness import run_ranks
from thalweg import optim

pytestmark = pytest.mark.distributed
NAMES = ("AdamW", "RowWiseAdagrad")


def make_model() -> Any:
    torch.manual_seed(3)  # rows uneven: three on the first rank, two on the second
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def train(model: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        model.zero_grad()
        (model(torch.randn(4, 3, generator=generator)) ** 2).mean().backward()
        optimizer.step()


def sharded() -> Any:
    from torch.distributed.fsdp import fully_shard

    model = make_model()
    fully_shard(model[0])
    return fully_shard(model)


def go_on_sharded(name: str) -> list[Any]:
    """Largest difference from a model that is whole, from new and stepped on."""
    from torch.distributed.tensor import distribute_tensor

    whole = make_model()
    optimizer: Any = getattr(optim, name)(whole.named_parameters(), lr=0.1)
    train(whole, optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    weights = {key: one.detach().clone() for key, one in whole.named_parameters()}
    train(whole, optimizer, range(3, 6))
    found: list[Any] = []
    for steps in (0, 2):
        model = sharded()
        other: Any = getattr(optim, name)(model.named_parameters(), lr=0.1)
        train(model, other, range(steps))
        with torch.no_grad():
            for key, one in model.named_parameters():
                placed = one.device_mesh, one.placements
                one.copy_(distribute_tensor(weights[key], *placed, src_data_rank=None))
        other.load_state_dict(saved)
        train(model, other, range(3, 6))
        pairs = zip(model.parameters(), whole.parameters(), strict=True)
        found.append(max(float((a.full_tensor() - b).abs().max()) for a, b in pairs))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_whole_tensors_are_cut_to_the_shards(name: str) -> None:
    for found in run_ranks(go_on_sharded, 2, name):
        assert max(found) < 1e-6


def load_what_cannot_be_placed() -> list[str]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    whole = make_model()
    rows = optim.RowWiseAdagrad(whole.parameters(), lr=0.1)
    train(whole, rows, range(1))
    mesh = init_device_mesh("cpu", (2,))
    columns = nn.Parameter(distribute_tensor(torch.zeros(5, 4), mesh, [Shard(1)]))
    first: Any = rows.state_dict()
    first["state"] = {0: {**first["state"][0]}}
    first["param_groups"][0]["params"] = [0]
    said = [_refusal(optim.RowWiseAdagrad([columns], lr=0.1), first)]
    model = sharded()
    adam = optim.AdamW(model.parameters(), lr=0.1)
    train(model, adam, range(1))
    said.append(_refusal(optim.AdamW(whole.parameters(), lr=0.1), adam.state_dict()))
    return said


def _refusal(optimizer: Any, saved: Any) -> str:
    try:
        optimizer.load_state_dict(saved)
    except ValueError as problem:
        return "" if any(optimizer.state.values()) else str(problem)
    return "taken"


def test_what_cannot_be_cut_is_refused() -> None:
    for said in run_ranks(load_what_cannot_be_placed, 2):
        assert all("tensors of their parameters' shapes" in text for text in said)
