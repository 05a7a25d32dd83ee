"""A face of torch and the optimizer behind it are one in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import thalweg as tw
from tests.unit.checkpoint.slot_keeper import same_bits
from thalweg.checkpoint import Checkpoint, CheckpointError, Manifest, read_manifest
from thalweg.cli.inspect import describe
from thalweg.interop import TorchFace, as_torch
from thalweg.optimizers import SGD, Adam

LR = torch.optim.lr_scheduler
MAKERS: dict[str, Any] = {
    "sgd": lambda: SGD(0.1),
    "momentum": lambda: SGD(0.1, momentum=0.9),
    "adam": lambda: Adam(0.01, beta_1=0.8),
    "averaged": lambda: Adam(0.01, use_ema=True, ema_momentum=0.5),
    "scheduled": lambda: Adam(tw.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)),
}


def make_model() -> Any:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def groups_of(model: Any) -> list[dict[str, Any]]:
    own = {"params": list(model[2].parameters()), "lr": 0.5, "betas": (0.7, 0.8)}
    return [{"params": list(model[0].parameters())}, own]


def train(model: Any, optimizer: Any, steps: range, scheduler: Any = None) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        model.zero_grad()
        (model(torch.randn(5, 3, generator=generator)) ** 2).mean().backward()
        if isinstance(optimizer, TorchFace):
            optimizer.step()
        else:
            optimizer.apply_gradients([(p.grad, p) for p in model.parameters()])
        if scheduler is not None:
            scheduler.step()


def expect_same(one: Any, other: Any) -> None:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(same_bits(a, b) for a, b in pairs)


def shape_of(manifest: Manifest) -> Any:
    tables = {owner: sorted(t) for owner, t in manifest.hyperparameters.items()}
    return sorted(manifest.tensors), tables, sorted(manifest.values), manifest.step


@pytest.mark.parametrize("built", [False, True], ids=["new", "stepped"])
@pytest.mark.parametrize("saved", ["face", "plain"])
@pytest.mark.parametrize("kind", MAKERS)
def test_either_is_restored_from_either(tmp_path, kind, saved, built):
    def new(shape: str) -> tuple[Any, Any, Checkpoint]:
        model, optimizer = make_model(), MAKERS[kind]()
        given = as_torch(optimizer, model) if shape == "face" else optimizer
        return model, given, Checkpoint(model=model, optimizer=given)

    model, optimizer, checkpoint = new(saved)
    train(model, optimizer, range(3))
    path = checkpoint.save(tmp_path / "save")
    train(model, optimizer, range(3, 6))
    for shape in ("face", "plain"):
        fresh, resumed, checkpoint = new(shape)
        if built:
            train(fresh, resumed, range(8, 10))
        assert checkpoint.restore(path).assert_consumed().step == 3
        assert int(resumed.iterations) == 3
        train(fresh, resumed, range(3, 6))
        expect_same(model, fresh)


def test_both_have_the_same_keys_and_inspect_says_step_and_rate(tmp_path):
    found = []
    for shape in ("face", "plain"):
        model, optimizer = make_model(), Adam(0.25)
        given = as_torch(optimizer, model) if shape == "face" else optimizer
        train(model, given, range(2))
        path = Checkpoint(model=model, optimizer=given).save(tmp_path / shape)
        found.append(read_manifest(path))
    assert shape_of(found[0]) == shape_of(found[1])
    assert "model/0.weight/.slot/optimizer/m" in found[0].tensors
    lines = list(describe(found[0]))
    assert lines[:2] == ["step: 2", "learning rate: 0.25 (optimizer)"]


@pytest.mark.parametrize("first", ["face", "plain"])
def test_given_both_the_state_is_stored_once(tmp_path, first):
    def new() -> tuple[Any, TorchFace, Checkpoint]:
        model, optimizer = make_model(), Adam(0.01)
        face = as_torch(optimizer, model)
        objects = {"face": face, "plain": optimizer}
        order = {key: objects[key] for key in sorted(objects, key=lambda k: k != first)}
        return model, face, Checkpoint(model=model, **order)

    model, face, checkpoint = new()
    train(model, face, range(2))
    path = checkpoint.save(tmp_path / "save")
    train(model, face, range(2, 4))
    slots = [key for key in read_manifest(path).tensors if ".slot" in key]
    assert len(slots) == 2 * len(list(model.parameters()))
    fresh, resumed, checkpoint = new()
    checkpoint.restore(path).assert_consumed()
    train(fresh, resumed, range(2, 4))
    expect_same(model, fresh)


def test_groups_show_what_was_restored_and_the_next_step_uses_it(tmp_path):
    model, optimizer = make_model(), Adam(0.25, beta_1=0.5)
    train(model, optimizer, range(2))
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    fresh = make_model()
    face = as_torch(Adam(), fresh)
    face.param_groups[0]["lr"] = 0.75  # written, and not in force yet
    Checkpoint(model=fresh, optimizer=face).restore(path).assert_consumed()
    assert face.param_groups[0]["lr"] == 0.25
    assert face.param_groups[0]["betas"] == (0.5, 0.999)
    assert face.wrapped.learning_rate == 0.25
    assert int(face.state_dict()["state"][0]["step"]) == 2
    slot = face.wrapped.get_slot(fresh[0].weight, "m")
    assert face.state[fresh[0].weight]["m"] is slot


def test_a_number_that_no_step_has_used_yet_is_saved(tmp_path):
    model = make_model()
    face = as_torch(SGD(0.5), model)
    train(model, face, range(1))
    face.param_groups[0]["lr"] = 0.125
    path = Checkpoint(model=model, optimizer=face).save(tmp_path / "save")
    plain = SGD(1.0)
    Checkpoint(model=model, optimizer=plain).restore(path).assert_consumed()
    assert plain.learning_rate == 0.125


@pytest.mark.parametrize("schedule", ["cosine", "cycle", "step"])
def test_numbers_of_groups_and_a_scheduler_go_on(tmp_path, schedule):
    makers = {
        "cosine": lambda o: LR.CosineAnnealingLR(o, 7),
        "cycle": lambda o: LR.OneCycleLR(o, [0.2, 0.1], total_steps=9),
        "step": lambda o: LR.StepLR(o, 2),
    }

    def new() -> tuple[Any, TorchFace, Any, Checkpoint]:
        model = make_model()
        face = as_torch(Adam(0.1), groups_of(model))
        scheduler = makers[schedule](face)
        named = {"model": model, "optimizer": face, "scheduler": scheduler}
        return model, face, scheduler, Checkpoint(**named)

    model, face, scheduler, checkpoint = new()
    train(model, face, range(3), scheduler)
    path = checkpoint.save(tmp_path / "save")
    shown = [{**group, "params": ()} for group in face.param_groups]
    train(model, face, range(3, 6), scheduler)
    fresh, resumed, other, checkpoint = new()
    resumed.param_groups[1]["lr"] = 0.3
    checkpoint.restore(path).assert_consumed()
    assert [{**group, "params": ()} for group in resumed.param_groups] == shown
    train(fresh, resumed, range(3, 6), other)
    expect_same(model, fresh)


def save_groups(folder: Path) -> str:
    model = make_model()
    face = as_torch(Adam(0.1), groups_of(model))
    face.param_groups[1]["name"] = "head"
    train(model, face, range(1))
    return Checkpoint(model=model, optimizer=face).save(folder / "save")


def test_an_optimizer_without_a_face_leaves_its_numbers_aside(tmp_path):
    path = save_groups(tmp_path)
    table = read_manifest(path).hyperparameters["optimizer/.face"]
    assert {"1.learning_rate", "1.beta_1", "1.name"} <= set(table)
    assert not any(name.startswith("0.") for name in table)
    model, plain = make_model(), Adam()
    status = Checkpoint(model=model, optimizer=plain).restore(path).assert_consumed()
    assert not any(".face" in line for line in status.hyper_differences)
    assert plain.learning_rate == 0.1


def test_numbers_of_groups_are_kept_or_refused_as_others_are(tmp_path):
    path = save_groups(tmp_path)
    model = make_model()
    face = as_torch(Adam(0.1), groups_of(model))
    face.param_groups[1]["lr"] = 0.75
    checkpoint = Checkpoint(model=model, optimizer=face)
    with pytest.raises(CheckpointError, match=r"1\.learning_rate: 0\.5 in the"):
        checkpoint.restore(path, hyper="error-if-different")
    checkpoint.restore(path, hyper="keep").assert_consumed()
    assert face.param_groups[1]["lr"] == 0.75
    checkpoint.restore(path).assert_consumed()
    assert face.param_groups[1]["lr"] == 0.5
    assert face.param_groups[1]["name"] == "head"


def test_other_groups_are_refused_and_nothing_is_changed(tmp_path):
    path = save_groups(tmp_path)
    model = make_model()
    face = as_torch(Adam(0.75), model)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(CheckpointError, match="1 parameter groups"):
        Checkpoint(model=model, optimizer=face).restore(path)
    assert face.wrapped.learning_rate == face.param_groups[0]["lr"] == 0.75
    assert all(map(same_bits, model.parameters(), before))


@pytest.mark.parametrize("wrong", [{"1.learning_rate": -1.0}, {"1.beta_1": "much"}])
def test_a_number_out_of_range_is_refused_before_the_first_write(wrong):
    model = make_model()
    face = as_torch(Adam(0.1), groups_of(model))
    before = face.own_numbers()
    with pytest.raises((TypeError, ValueError)):
        face.restore_own_numbers({"1.epsilon": 0.5, "0.name": "body", **wrong})
    assert face.own_numbers() == before
