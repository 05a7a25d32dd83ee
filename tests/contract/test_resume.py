"""A run that was stopped and resumed has the bits of one that was not."""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import thalweg as tw
from tests.unit.checkpoint.slot_keeper import same_bits
from thalweg.checkpoint import RandomState
from thalweg.checkpoint.graph import build_graph
from thalweg.training import Callback

STEPS = 8
STOPS = 5
# Keras refuses a schedule here.
REFUSES_SCHEDULES = {"nadam"}
DTYPES = [torch.float32, torch.bfloat16]
every_optimizer = pytest.mark.parametrize("name", tw.optimizers.names())
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def make_model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def options(name: str, variant: str) -> dict[str, Any]:
    """The optimizer as it comes, and with all that keeps state of its own."""
    if variant == "plain":
        return {}
    if variant == "small slots":
        return {"slot_dtypes": "variable"}
    rate = tw.optimizers.schedules.ExponentialDecay(0.02, 3, 0.5)
    return {
        "learning_rate": 0.02 if name in REFUSES_SCHEDULES else rate,
        "weight_decay": 0.01,
        "clipnorm": 1.0,
        "use_ema": True,
        "ema_momentum": 0.9,
    }


def make_optimizer(name: str, variant: str) -> Any:
    return type(tw.optimizers.get(name))(**options(name, variant))


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    parameters = list(model.parameters())
    for _ in steps:
        inputs = torch.randn(4, 3).to(parameters[0].dtype)
        gradients = torch.autograd.grad((model(inputs) ** 2).mean(), parameters)
        optimizer.apply_gradients(zip(gradients, parameters, strict=True))


def bits_of(**objects: Any) -> dict[str, torch.Tensor]:
    graph = build_graph(objects)
    slots = {key: slot.tensor for key, slot in graph.slots.items()}
    return {k: t.detach().clone() for k, t in {**graph.tensors, **slots}.items()}


def stops_of(*names: object) -> list[int]:
    """Steps to stop after, other ones for each test but the same in each run."""
    drawn = random.Random(zlib.crc32(repr(names).encode()))
    return sorted(drawn.sample(range(STEPS), STOPS))


@every_optimizer
@every_dtype
@pytest.mark.parametrize("variant", ["plain", "small slots", "everything"])
def test_every_optimizer_resumes_with_the_same_bits(tmp_path, name, dtype, variant):
    def new() -> tuple[nn.Module, Any, tw.Checkpoint]:
        model, optimizer = make_model(dtype), make_optimizer(name, variant)
        objects = {"model": model, "optimizer": optimizer, "random": RandomState()}
        return model, optimizer, tw.Checkpoint(**objects)

    model, optimizer, checkpoint = new()
    stops = stops_of(name, dtype, variant)
    torch.manual_seed(1)
    for step in range(STEPS):
        if step in stops:
            checkpoint.save(tmp_path / str(step))
        train(model, optimizer, range(1))
    expected = bits_of(model=model, optimizer=optimizer)
    assert all(torch.isfinite(t).all() for t in expected.values())
    for stop in stops:
        model, optimizer, checkpoint = new()
        torch.manual_seed(99)
        status = checkpoint.restore(tmp_path / str(stop)).assert_consumed()
        assert status.step == int(optimizer.iterations) == stop
        train(model, optimizer, range(stop, STEPS))
        found = bits_of(model=model, optimizer=optimizer)
        assert found.keys() == expected.keys()
        wrong = [key for key in found if not same_bits(found[key], expected[key])]
        assert wrong == []


class StopAt(Callback):
    """Ends a run in the middle of an epoch, as a signal would, after a save."""

    def __init__(self, batch: int, checkpoint: tw.Checkpoint, path: Path) -> None:
        super().__init__()
        self.batch, self.checkpoint, self.path = batch, checkpoint, path
        self.seen = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen += 1
        if self.seen == self.batch:
            self.checkpoint.save(self.path)
            raise KeyboardInterrupt


def fitted() -> tuple[tw.Model, tw.Checkpoint]:
    torch.manual_seed(8)
    network = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.Linear(6, 1))
    model = tw.Model(network)
    model.compile(tw.optimizers.Adam(0.01), loss="mse")
    checkpoint = tw.Checkpoint(
        model=model,
        optimizer=model.optimizer,
        position=model.data_position,
        random_state=RandomState(),
    )
    return model, checkpoint


@pytest.mark.parametrize("stop", stops_of("fit"))
def test_fit_goes_on_in_the_middle_of_an_epoch(tmp_path, stop):
    x = np.random.default_rng(0).normal(size=(22, 4)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)
    run = {"x": x, "y": y, "batch_size": 5, "epochs": 3, "verbose": 0}
    model, _ = fitted()
    model.fit(**run)
    expected = bits_of(model=model, optimizer=model.optimizer)
    model, checkpoint = fitted()
    place = tmp_path / "save"
    with pytest.raises(KeyboardInterrupt):
        model.fit(**run, callbacks=[StopAt(stop + 1, checkpoint, place)])
    model, checkpoint = fitted()
    torch.manual_seed(123)
    checkpoint.restore(place).assert_consumed()
    model.fit(**run)
    found = bits_of(model=model, optimizer=model.optimizer)
    assert [key for key in found if not same_bits(found[key], expected[key])] == []
