"""Two ranks: one set of keys however a model is wrapped, and each writes its part."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.harness import run_ranks
from tests.unit.checkpoint.slot_keeper import same_bits
from thalweg.checkpoint import Checkpoint, RandomState, read_manifest
from thalweg.checkpoint.graph import build_graph
from thalweg.optimizers import SGD, Adam, RowWiseAdagrad

pytestmark = pytest.mark.distributed
ROWS = 5  # uneven: three on the first rank, two on the second


def make_model() -> Any:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, ROWS), nn.BatchNorm1d(ROWS), nn.Linear(ROWS, 1))


def shard(model: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    fully_shard(model[0])
    return fully_shard(model)


def data(step: int) -> torch.Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(step))


def train(model: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        model.zero_grad()
        (model(data(step)) ** 2).mean().backward()
        if isinstance(optimizer, torch.optim.Optimizer):
            optimizer.step()
        else:
            pairs = [(p.grad, p) for p in model.parameters()]
            optimizer.apply_gradients(pairs)


def local(tensor: Any) -> torch.Tensor:
    return getattr(tensor, "_local_tensor", tensor).detach()


def keys_of_all_wrappers() -> list[list[str]]:
    compiled = torch.compile(make_model(), backend="eager")
    parallel = nn.parallel.DistributedDataParallel(make_model())
    models = [make_model(), compiled, parallel, shard(make_model())]
    sharded_and_compiled = torch.compile(shard(make_model()), backend="eager")
    return [
        list(build_graph({"m": m}).tensors) for m in [*models, sharded_and_compiled]
    ]


def test_wrappers_are_in_no_key():
    for found in run_ranks(keys_of_all_wrappers, 2):
        assert found[0][:2] == ["m/0.weight", "m/0.bias"]
        assert all(keys == found[0] for keys in found)


MAKERS = {
    "sgd": lambda model: SGD(0.1, momentum=0.9),
    "adam": lambda model: Adam(0.01),
    "row": lambda model: RowWiseAdagrad(0.1),
    "torch": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
}


def resume_sharded(folder: str) -> list[str]:
    wrong = []
    for name, make in MAKERS.items():
        model = shard(make_model())
        optimizer = make(model)
        train(model, optimizer, range(3))
        with torch.no_grad():
            model.eval()(data(9))  # leaves the root's parameters gathered
        model.train()
        path = Checkpoint(m=model, o=optimizer).save(Path(folder) / name)
        train(model, optimizer, range(3, 5))
        fresh = shard(make_model())
        resumed = make(fresh)
        Checkpoint(m=fresh, o=resumed).restore(path).assert_consumed()
        train(fresh, resumed, range(3, 5))
        old = build_graph({"m": model, "o": optimizer})
        new = build_graph({"m": fresh, "o": resumed})
        pairs = [(key, one, new.tensors[key]) for key, one in old.tensors.items()]
        pairs += [(k, s.tensor, new.slots[k].tensor) for k, s in old.slots.items()]
        wrong += [
            f"{name} {k}" for k, a, b in pairs if not same_bits(local(a), local(b))
        ]
    return wrong


def test_a_sharded_run_resumes_with_the_same_bits_and_reads_in_one_process(tmp_path):
    assert run_ranks(resume_sharded, 2, str(tmp_path)) == [[], []]
    manifest = read_manifest(tmp_path / "adam")
    boxes = manifest.tensors["m/0.weight/.slot/o/m"].boxes
    assert [box.shape for _, box in boxes] == [(3, 3), (2, 3)]
    assert len(manifest.files) == 2
    whole, alone = make_model(), Adam(0.01)
    status = Checkpoint(m=whole, o=alone).restore(tmp_path / "adam")
    assert status.assert_consumed().step == 3
    other = make_model()
    other_optimizer = Adam(0.01)
    train(other, other_optimizer, range(3))
    # One process sums in another order than two shards that are reduced.
    torch.testing.assert_close(whole[0].weight, other[0].weight)
    slots = (
        alone.get_slot(whole[0].weight, "m"),
        other_optimizer.get_slot(other[0].weight, "m"),
    )
    torch.testing.assert_close(*slots)


def draw_after_restore(folder: str) -> list[list[float]]:
    torch.manual_seed(100 + dist.get_rank())
    random.seed(dist.get_rank())
    generator = torch.Generator().manual_seed(7 + dist.get_rank())
    objects = {"random_state": RandomState(), "data": generator, "epoch": 3}
    path = Checkpoint(**objects).save(Path(folder) / "save")

    def draw() -> list[float]:
        numbers = torch.rand(2).tolist(), torch.rand(1, generator=generator).tolist()
        return [*numbers[0], *numbers[1], random.random()]

    first = draw()
    Checkpoint(**objects).restore(path).assert_consumed()
    return [first, draw()]


def test_each_rank_has_its_own_random_numbers(tmp_path):
    one, two = run_ranks(draw_after_restore, 2, str(tmp_path))
    assert one[0] == one[1]
    assert two[0] == two[1]
    assert not set(one[0]) & set(two[0])
    generator = torch.Generator()
    state = RandomState()
    alone = Checkpoint(random_state=state, data=generator, epoch=0)
    kept = state.state_dict()
    try:
        alone.restore(tmp_path / "save").assert_consumed()
        assert torch.rand(2).tolist() == one[0][:2]
    finally:
        state.load_state_dict(kept)
    assert torch.rand(1, generator=generator).item() == one[0][2]
