"""What an asynchronous save writes is what the objects held when it was asked for."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.harness import run_ranks
from tests.unit.checkpoint.slot_keeper import same_bits
from thalweg.checkpoint import Checkpoint, CheckpointError, read_manifest
from thalweg.checkpoint import folder as folder_module
from thalweg.optimizers import Adam

RACES = int(os.environ.get("THALWEG_RACES", "20"))


def trained() -> tuple[Any, Adam]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 1)).bfloat16()
    optimizer = Adam(0.01)
    pairs = [(torch.ones_like(p), p) for p in model.parameters()]
    optimizer.apply_gradients(pairs)
    return model, optimizer


def spoil(model: Any, optimizer: Adam, history: dict[str, Any]) -> None:
    """Change all that was saved."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *optimizer.weights]:
            tensor.fill_(77)
    optimizer.learning_rate = 0.5
    history["loss"].append(7.0)


def test_what_is_changed_right_after_is_saved_as_it_was(tmp_path):
    model, optimizer = trained()
    history = {"loss": [1.0]}
    generator = torch.Generator().manual_seed(5)
    objects = {"model": model, "optimizer": optimizer, "history": history}
    checkpoint = Checkpoint(**objects, generator=generator)
    kept = [t.detach().clone() for t in (*model.parameters(), *optimizer.weights)]
    for number in range(RACES):
        path = checkpoint.save_async(tmp_path / str(number))
        spoil(model, optimizer, history)
        drawn = torch.rand(3, generator=generator)
        assert checkpoint.wait() == path
        checkpoint.restore(path).assert_consumed()
        found = [*model.parameters(), *optimizer.weights]
        assert all(map(same_bits, found, kept))
        assert optimizer.learning_rate == 0.01
        assert history == {"loss": [1.0]}
        assert torch.equal(torch.rand(3, generator=generator), drawn)
        checkpoint.restore(path)


def test_it_returns_before_the_files_are_there(tmp_path, monkeypatch):
    gate = threading.Event()
    write_file = folder_module.write_file

    def slow(*arguments: Any) -> Any:
        assert gate.wait(60)
        return write_file(*arguments)

    monkeypatch.setattr(folder_module, "write_file", slow)
    checkpoint = Checkpoint(x=torch.ones(3))
    path = checkpoint.save_async(tmp_path / "save")
    assert not Path(path).exists()
    gate.set()
    assert checkpoint.wait() == path
    assert list(read_manifest(path).tensors) == ["x"]
    assert checkpoint.wait() is None


@pytest.mark.parametrize("how", ["wait", "save", "save_async"])
def test_a_failure_is_told_by_wait_or_the_next_save(tmp_path, monkeypatch, how):
    def full(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    checkpoint = Checkpoint(x=torch.ones(3))
    with monkeypatch.context() as patched:
        patched.setattr(folder_module, "write_file", full)
        checkpoint.save_async(tmp_path / "save")
        with pytest.raises(OSError, match="No space left"):
            checkpoint.wait() if how == "wait" else getattr(checkpoint, how)(
                tmp_path / "next"
            )
    assert list(tmp_path.iterdir()) == []
    path = checkpoint.save_async(tmp_path / "save")
    assert checkpoint.wait() == path


def test_what_cannot_be_saved_is_refused_at_once(tmp_path):
    checkpoint = Checkpoint(x=torch.ones(3))
    path = checkpoint.save(tmp_path / "save")
    with pytest.raises(CheckpointError, match="overwrite=True"):
        checkpoint.save_async(path)
    with pytest.raises(CheckpointError, match="complex128"):
        Checkpoint(x=torch.ones(1, dtype=torch.complex128)).save_async(tmp_path / "b")
    assert os.listdir(tmp_path) == ["save"]
    checkpoint.save_async(path, overwrite=True)
    assert checkpoint.wait() == path


def save_while_talking(folder: str) -> list[float]:
    weight = torch.full((4,), float(dist.get_rank()))
    shared = torch.full((4,), 3.0)
    checkpoint = Checkpoint(shared=shared)
    for number in range(3):
        path = checkpoint.save_async(Path(folder) / str(number))
        shared.zero_()
        for _ in range(10):
            dist.all_reduce(weight.clone())
        checkpoint.wait()
        checkpoint.restore(path).assert_consumed()
    return shared.tolist()


@pytest.mark.distributed
def test_ranks_save_while_training_talks(tmp_path):
    assert run_ranks(save_while_talking, 2, str(tmp_path)) == [[3.0] * 4] * 2
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2"]
