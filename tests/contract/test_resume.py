"""A run that was stopped and resumed has the bits of one that was not."""

from __future__ import annotations

import json
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
CYCLE = 3
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
    if variant == "rounding":
        return {"slot_dtypes": "variable", "stochastic_rounding": True}
    if variant == "accumulation":
        return {"gradient_accumulation_steps": CYCLE}
    rate = tw.optimizers.schedules.ExponentialDecay(0.02, 3, 0.5)
    return {
        "learning_rate": 0.02 if name in REFUSES_SCHEDULES else rate,
        "weight_decay": 0.01,
        "clipnorm": 1.0,
        "use_ema": True,
        "ema_momentum": 0.9,
    }


def make_optimizer(name: str, variant: str) -> Any:
    cls = type(tw.optimizers.get(name))
    if variant == "loss scale":
        inner = cls(gradient_accumulation_steps=2)
        return tw.LossScaleOptimizer(inner, initial_scale=64.0, dynamic_growth_steps=2)
    return cls(**options(name, variant))


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
@pytest.mark.parametrize(
    "variant",
    ["plain", "small slots", "rounding", "everything", "accumulation", "loss scale"],
)
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
        applied = {"accumulation": stop // CYCLE, "loss scale": stop // 2}
        expected_step = applied.get(variant, stop)
        assert status.step == int(optimizer.iterations) == expected_step
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


def fitted(kind: str) -> tuple[tw.Model, tw.Checkpoint]:
    torch.manual_seed(8)
    network = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.Linear(6, 1))
    model = tw.Model(network)
    cycle = None if kind == "plain" else 4
    optimizer: Any = tw.optimizers.Adam(0.01, gradient_accumulation_steps=cycle)
    if kind == "wrapped":
        options = {"initial_scale": 8.0, "dynamic_growth_steps": 2}
        optimizer = tw.LossScaleOptimizer(optimizer, **options)
    model.compile(optimizer, loss="mse")
    checkpoint = tw.Checkpoint(
        model=model,
        optimizer=model.optimizer,
        position=model.data_position,
        random_state=RandomState(),
    )
    return model, checkpoint


@pytest.mark.parametrize("kind", ["plain", "accumulates", "wrapped"])
@pytest.mark.parametrize("stop", stops_of("fit"))
def test_fit_goes_on_in_the_middle_of_an_epoch(tmp_path, stop, kind):
    x = np.random.default_rng(0).normal(size=(22, 4)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)
    run = {"x": x, "y": y, "batch_size": 5, "epochs": 3, "verbose": 0}
    model, _ = fitted(kind)
    model.fit(**run)
    expected = bits_of(model=model, optimizer=model.optimizer)
    model, checkpoint = fitted(kind)
    place = tmp_path / "save"
    with pytest.raises(KeyboardInterrupt):
        model.fit(**run, callbacks=[StopAt(stop + 1, checkpoint, place)])
    model, checkpoint = fitted(kind)
    torch.manual_seed(123)
    checkpoint.restore(place).assert_consumed()
    model.fit(**run)
    found = bits_of(model=model, optimizer=model.optimizer)
    assert [key for key in found if not same_bits(found[key], expected[key])] == []


class Routed(tw.Trackable):
    """Somebody's own: tables go to one optimizer, all else to another."""

    def __init__(self) -> None:
        self.tables = tw.optimizers.Adagrad(0.1, gradient_accumulation_steps=CYCLE)
        inner = tw.optimizers.Adam(0.05, gradient_accumulation_steps=CYCLE)
        self.others = tw.LossScaleOptimizer(
            inner, initial_scale=16.0, dynamic_growth_steps=1
        )

    def apply_gradients(self, pairs: Any) -> None:
        pairs = [(tw.state.as_gradient(g), v) for g, v in pairs]
        sparse = [pair for pair in pairs if isinstance(pair[0], tw.IndexedSlices)]
        known = {id(v) for _, v in sparse}
        self.tables.apply_gradients(sparse)
        self.others.apply_gradients([p for p in pairs if id(p[1]) not in known])


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.words = nn.Embedding(7, 3, sparse=True)
        self.head = nn.Linear(3, 1)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(words).mean(dim=1))


def train_routed(model: TwoTowers, optimizer: Any, number: int) -> None:
    """Every second micro-step has no gradient for the bias."""
    words = torch.randint(0, 7, (4, 1 + number % 3))
    parameters = list(model.parameters())
    gradients: list[Any] = list(
        torch.autograd.grad((model(words) ** 2).mean(), parameters)
    )
    if number % 2:
        gradients[-1] = None
    optimizer.apply_gradients(zip(gradients, parameters, strict=True))


@pytest.mark.parametrize("is_new", [True, False], ids=["new objects", "rolled back"])
def test_routed_and_wrapped_optimizers_resume_in_the_midst_of_a_cycle(tmp_path, is_new):
    def new() -> tuple[TwoTowers, Routed, tw.Checkpoint]:
        model, optimizer = TwoTowers(), Routed()
        objects = {"model": model, "optimizer": optimizer, "random": RandomState()}
        return model, optimizer, tw.Checkpoint(**objects)

    model, optimizer, checkpoint = new()
    torch.manual_seed(2)
    for step in range(STEPS):
        checkpoint.save(tmp_path / str(step))
        train_routed(model, optimizer, step)
    expected = bits_of(model=model, optimizer=optimizer)
    assert float(optimizer.others.loss_scale) == 64.0
    names = {key.rpartition("/")[2] for key in expected}
    assert {"gradient_accumulator", "gradient_accumulator_indices"} <= names
    # In another order, so that what waits is replaced by less and by more.
    for stop in sorted(range(1, STEPS), key=lambda step: step * 5 % STEPS):
        if is_new:
            model, optimizer, checkpoint = new()
        status = checkpoint.restore(tmp_path / str(stop)).assert_consumed()
        status.assert_existing_objects_matched()
        for step in range(stop, STEPS):
            train_routed(model, optimizer, step)
        found = bits_of(model=model, optimizer=optimizer)
        assert found.keys() == expected.keys()
        wrong = [key for key in found if not same_bits(found[key], expected[key])]
        assert wrong == []


def test_what_waits_is_inspected_under_its_variable(tmp_path):
    model, optimizer = TwoTowers(), tw.optimizers.SGD(gradient_accumulation_steps=3)
    train_routed(model, optimizer, 0)
    path = tw.Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    manifest = json.loads((Path(path) / "manifest.json").read_text())
    slot = "gradient_accumulator"
    assert {
        f"model/head.bias/.slot/optimizer/{slot}",
        f"model/words.weight/.slot/optimizer/{slot}_indices",
        f"model/words.weight/.slot/optimizer/{slot}_values",
        "optimizer/gradient_accumulation_position",
    } <= set(manifest["tensors"])
    assert f"model/words.weight/.slot/optimizer/{slot}" not in manifest["tensors"]


def test_a_sum_of_another_dtype_is_refused(tmp_path):
    weight = tw.Variable([1.0], name="weight")
    pair = (torch.ones(1), weight)
    option = {"gradient_accumulation_steps": 2}
    optimizer = tw.optimizers.SGD(**option)
    optimizer.apply_gradients([pair])
    tw.Checkpoint(weight=weight, optimizer=optimizer).save(tmp_path / "save")
    other = tw.optimizers.SGD(slot_dtypes={"gradient_accumulator": "float64"}, **option)
    other.apply_gradients([pair])
    with pytest.raises(tw.errors.CheckpointError, match="gradient_accumulator"):
        tw.Checkpoint(weight=weight, optimizer=other).restore(tmp_path / "save")


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_torchs_gradient_scaler_resumes_beside_a_torch_optimizer(tmp_path, stop):
    def new() -> tuple[nn.Module, Any, Any, tw.Checkpoint]:
        model = make_model(torch.float32)
        optimizer = tw.optim.AdamW(model.parameters(), lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=2)
        objects = {"model": model, "optimizer": optimizer, "scaler": scaler}
        return model, optimizer, scaler, tw.Checkpoint(**objects)

    def step(model: nn.Module, optimizer: Any, scaler: Any, number: int) -> None:
        inputs = torch.full((2, 3), float(number + 1))
        factor = float("inf") if number == 3 else 1.0
        optimizer.zero_grad()
        scaler.scale((model(inputs) ** 2).mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()

    model, optimizer, scaler, checkpoint = new()
    for number in range(6):
        if number == stop:
            checkpoint.save(tmp_path / "save")
        step(model, optimizer, scaler, number)
    expected, scale = bits_of(model=model, optimizer=optimizer), scaler.get_scale()
    model, optimizer, scaler, checkpoint = new()
    checkpoint.restore(tmp_path / "save").assert_consumed()
    for number in range(stop, 6):
        step(model, optimizer, scaler, number)
    assert scaler.get_scale() == scale != 16.0
    found = bits_of(model=model, optimizer=optimizer)
    assert found.keys() == expected.keys()
    assert [key for key in found if not same_bits(found[key], expected[key])] == []
