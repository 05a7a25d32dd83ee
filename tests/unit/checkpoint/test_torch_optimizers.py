"""Torch's optimizers and schedulers: by name, in their own dtype, to the bit."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tests.unit.checkpoint.slot_keeper import same_bits
from thalweg import optim
from thalweg.checkpoint import Checkpoint, CheckpointError, read_manifest
from thalweg.checkpoint.torch_optimizers import TorchSlots, slots_of_torch

OPTIMIZERS: dict[str, Any] = {
    "adam": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adamax": lambda p: torch.optim.Adamax(p),
    "asgd": lambda p: torch.optim.ASGD(p),
    "nadam": lambda p: torch.optim.NAdam(p),
    "radam": lambda p: torch.optim.RAdam(p),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "tensor rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}

DROP_INS = (
    *("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta"),
    *("RMSprop", "ASGD", "Rprop", "SparseAdam", "Lion", "LAMB", "RowWiseAdagrad"),
)


def make_model() -> Any:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def train(model: Any, optimizer: Any, steps: range, scheduler: Any = None) -> None:
    for step in steps:
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))

        def closure(inputs: torch.Tensor = inputs) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (model(inputs) ** 2).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        if scheduler is not None:
            scheduler.step()


def expect_same(model: Any, other: Any) -> None:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(same_bits(one, two) for one, two in pairs)


@pytest.mark.parametrize("built", [False, True], ids=["new", "stepped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torch_optimizers_resume_with_the_same_bits(tmp_path, name, built):
    make = OPTIMIZERS[name]
    model = make_model()
    optimizer = make(model.parameters())
    train(model, optimizer, range(3))
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    train(model, optimizer, range(3, 6))
    fresh = make_model()
    resumed = make(fresh.parameters())
    if built:
        train(fresh, resumed, range(7, 9))
    Checkpoint(model=fresh, optimizer=resumed).restore(path).assert_consumed()
    train(fresh, resumed, range(3, 6))
    expect_same(model, fresh)


def test_slots_stand_under_their_parameter_and_follow_it(tmp_path):
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
    train(model, optimizer, range(2))
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    manifest = read_manifest(path)
    assert manifest.step == 2
    assert "model/0.weight/.slot/optimizer/exp_avg" in manifest.tensors
    assert "model/0.weight/.slot/optimizer/step" in manifest.tensors
    fresh = make_model()
    groups = [{"params": [p]} for p in reversed(list(fresh.parameters()))]
    resumed = torch.optim.Adam(groups)
    status = Checkpoint(model=fresh, optimizer=resumed).restore(path)
    for one, two in zip(model.parameters(), fresh.parameters(), strict=True):
        assert same_bits(optimizer.state[one]["exp_avg"], resumed.state[two]["exp_avg"])
    assert "optimizer/.hyper/3.lr" in status.missing
    assert [group["lr"] for group in resumed.param_groups] == [0.25, 1e-3, 1e-3, 1e-3]


def test_a_slot_keeps_its_dtype_where_torch_would_cast(tmp_path):
    model = make_model().bfloat16()
    optimizer = torch.optim.Adam(model.parameters())
    (first, *_) = model.parameters()
    optimizer.state[first] = {
        "exp_avg": torch.full_like(first, 1 / 3, dtype=torch.float32)
    }
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    fresh = make_model().bfloat16()
    resumed = torch.optim.Adam(fresh.parameters())
    Checkpoint(model=fresh, optimizer=resumed).restore(path).assert_consumed()
    slot = resumed.state[fresh[0].weight]["exp_avg"]
    assert slot.dtype == torch.float32
    assert slot[0, 0].item() == torch.tensor(1 / 3).item()


def test_hyperparameters_are_taken_kept_or_refused(tmp_path):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    other = torch.optim.SGD(model.parameters(), lr=0.125)
    checkpoint = Checkpoint(model=model, optimizer=other)
    with pytest.raises(CheckpointError, match=r"0\.lr: 0\.5 in the checkpoint, 0\.125"):
        checkpoint.restore(path, hyper="error-if-different")
    checkpoint.restore(path, hyper="keep")
    assert other.param_groups[0]["lr"] == 0.125
    checkpoint.restore(path)
    assert other.param_groups[0]["lr"] == 0.5


def test_another_kind_of_optimizer_is_refused(tmp_path):
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    path = Checkpoint(model=model, optimizer=sgd).save(tmp_path / "save")
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(CheckpointError, match="another kind of optimizer"):
        Checkpoint(model=model, optimizer=adam).restore(path)
    assert adam.param_groups[0]["lr"] == 1e-3
    two = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    path = Checkpoint(model=model, optimizer=torch.optim.SGD(two)).save(tmp_path / "b")
    with pytest.raises(CheckpointError, match="1 parameter groups"):
        Checkpoint(model=model, optimizer=sgd).restore(path)
    assert sgd.param_groups[0]["lr"] == 0.5


SCHEDULERS: dict[str, Any] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [2, 4, 4]),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=9),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, 2),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.LinearLR(o)], [4]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("first", ["optimizer", "scheduler"])
def test_schedulers_go_on_in_whatever_order_they_are_given(tmp_path, name, first):
    def new() -> tuple[Any, Any, Any, Checkpoint]:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = SCHEDULERS[name](optimizer)
        objects = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        order = sorted(objects, key=lambda key: key != first)
        checkpoint = Checkpoint(**{key: objects[key] for key in order})
        return model, optimizer, scheduler, checkpoint

    model, optimizer, scheduler, checkpoint = new()
    train(model, optimizer, range(3), scheduler)
    path = checkpoint.save(tmp_path / "save")
    train(model, optimizer, range(3, 7), scheduler)
    fresh, resumed, other, checkpoint = new()
    checkpoint.restore(path).assert_consumed()
    train(fresh, resumed, range(3, 7), other)
    expect_same(model, fresh)
    assert other.get_last_lr() == scheduler.get_last_lr()
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_a_counter_comes_back_as_a_counter(tmp_path):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    scheduler = lr_scheduler.MultiStepLR(optimizer, [2, 4, 4])
    path = Checkpoint(scheduler=scheduler).save(tmp_path / "save")
    other = lr_scheduler.MultiStepLR(optimizer, [1])
    Checkpoint(scheduler=other).restore(path).assert_consumed()
    assert isinstance(other.milestones, Counter)
    assert other.milestones == Counter([2, 4, 4])


def test_a_class_with_a_way_of_its_own_goes_by_that_way(tmp_path):
    class Own(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return {"own": 1}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.loaded = state_dict

    parameters = [nn.Parameter(torch.ones(1))]
    optimizer: Any = Own(parameters)
    assert slots_of_torch(optimizer) is None
    assert isinstance(slots_of_torch(torch.optim.SGD(parameters)), TorchSlots)
    assert slots_of_torch(nn.Linear(1, 1)) is None
    path = Checkpoint(optimizer=optimizer).save(tmp_path / "save")
    Checkpoint(optimizer=optimizer).restore(path).assert_consumed()
    assert optimizer.loaded == {"own": 1}


def thalweg_optimizer(name: str, parameters: Any, lr: float) -> Any:
    return getattr(optim, name)(parameters, lr=lr, ema_decay=0.9, max_grad_norm=1.0)


@pytest.mark.parametrize("built", [False, True], ids=["new", "stepped"])
@pytest.mark.parametrize("name", DROP_INS)
def test_a_drop_in_resumes_by_name_and_to_the_bit(tmp_path, name, built):
    model = make_model()
    optimizer = thalweg_optimizer(name, model.parameters(), 0.01)
    train(model, optimizer, range(3))
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    assert "model/0.weight/.slot/optimizer/average" in read_manifest(path).tensors
    other = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    resumed = thalweg_optimizer(name, list(other.parameters())[::-1], 0.5)
    if built:
        train(other, resumed, range(2))
    Checkpoint(model=other, optimizer=resumed).restore(path).assert_consumed()
    assert resumed.param_groups[0]["lr"] == 0.01
    for one, two in ((model, optimizer), (other, resumed)):
        train(one, two, range(3, 6))
    expect_same(model, other)
    with optimizer.ema_scope(), resumed.ema_scope():
        expect_same(model, other)


def test_a_drop_in_takes_the_checkpoint_of_its_twin_and_may_keep_its_rate(tmp_path):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, range(3))
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    twin = optim.AdamW(model, lr=0.5)
    status = Checkpoint(model=model, optimizer=twin).restore(path, hyper="keep")
    status.assert_consumed()
    assert twin.param_groups[0]["lr"] == 0.5
    for parameter in model.parameters():
        mine, theirs = twin.state[parameter], optimizer.state[parameter]
        assert same_bits(mine["exp_avg"], theirs["exp_avg"])
        assert float(mine["step"]) == 3.0


def test_a_drop_in_is_neither_saved_nor_restored_with_averages_in_place(tmp_path):
    model = make_model()
    optimizer = optim.SGD(model, lr=0.1, ema_decay=0.9)
    train(model, optimizer, range(2))
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    path = checkpoint.save(tmp_path / "save")
    with optimizer.ema_scope():
        with pytest.raises(RuntimeError, match="outside ema_scope"):
            checkpoint.save(tmp_path / "other")
        with pytest.raises(RuntimeError, match="outside ema_scope"):
            checkpoint.restore(path)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("steps", [0, 2], ids=["new", "stepped"])
@pytest.mark.parametrize("name", DROP_INS[:11])  # those with a twin, of dense gradients
def test_counts_of_a_twin_are_taken_whatever_their_dtype(tmp_path, name, steps):
    twins: list[Any] = [getattr(torch.optim, name), getattr(optim, name)]
    for saves, restores in (twins, twins[::-1]):
        model, other = make_model(), make_model()
        before = saves(model.parameters(), lr=0.01)
        train(model, before, range(3))
        after = restores(other.parameters(), lr=0.01)
        train(other, after, range(steps))
        path = Checkpoint(model=model, o=before).save(tmp_path / "save", overwrite=True)
        checkpoint = Checkpoint(model=other, o=after)
        if restores is twins[0] and steps and name in ("NAdam", "ASGD"):
            with pytest.raises(CheckpointError, match="number that torch"):
                checkpoint.restore(path)
            continue
        checkpoint.restore(path).assert_existing_objects_matched()
        train(model, before, range(3, 6))
        train(other, after, range(3, 6))
        pairs = zip(model.parameters(), other.parameters(), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in pairs)


def test_a_count_that_the_existing_dtype_cannot_say_is_refused(tmp_path):
    model, other = make_model(), make_model()
    before, after = optim.Adam(model.parameters()), torch.optim.Adam(other.parameters())
    for one, optimizer in ((model, before), (other, after)):
        train(one, optimizer, range(1))
    weight = model[0].weight
    before.state[weight]["step"].fill_(2.0**24 + 1)
    path = Checkpoint(model=model, o=before).save(tmp_path / "save")
    kept = other[0].weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"weight.*step.*got 16777217\.0"):
        Checkpoint(model=other, o=after).restore(path)
    assert torch.equal(other[0].weight, kept)
    assert float(after.state[other[0].weight]["step"]) == 1


def test_a_single_weight_and_its_moments_are_never_converted(tmp_path):
    weight, other = (
        nn.Parameter(torch.tensor(1.0, dtype=d)) for d in (torch.float32, torch.float64)
    )
    before, after = torch.optim.Adam([weight]), torch.optim.Adam([other])
    for one, optimizer in ((weight, before), (other, after)):
        one.grad = torch.ones_like(one)
        optimizer.step()
    path = Checkpoint(weights=[weight], o=before).save(tmp_path / "save")
    with pytest.raises(CheckpointError, match="exp_avg: float32"):
        Checkpoint(weights=[other], o=after).restore(path)
