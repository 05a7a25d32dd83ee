"""Optimizers of this package resume from a checkpoint with the same bits."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import thalweg as tw
from tests.unit.checkpoint.slot_keeper import same_bits
from thalweg.checkpoint import Checkpoint
from thalweg.checkpoint.comparison import compare
from thalweg.checkpoint.folder import Reader, write_folder
from thalweg.checkpoint.manifest import seal
from thalweg.errors import CheckpointError
from thalweg.optimizers import SGD, Adam, Adamax, AdamW, RMSprop
from thalweg.state import Variable

MAKERS = {
    "sgd": lambda: SGD(0.1),
    "momentum": lambda: SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: Adam(0.01, beta_1=0.8),
    "amsgrad": lambda: Adam(0.01, amsgrad=True, weight_decay=0.01, clipnorm=1.0),
}


def make_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    parameters = list(model.parameters())
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(5, 3, generator=generator).to(parameters[0].dtype)
        gradients = torch.autograd.grad((model(inputs) ** 2).mean(), parameters)
        optimizer.apply_gradients(zip(gradients, parameters, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", MAKERS)
def test_resumed_training_has_the_bits_of_the_run_that_was_not_stopped(
    tmp_path, kind, dtype
):
    model, optimizer = make_model(dtype), MAKERS[kind]()
    train(model, optimizer, range(3))
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    train(model, optimizer, range(3, 6))
    fresh, resumed = make_model(dtype), MAKERS[kind]()
    status = Checkpoint(optimizer=resumed, model=fresh).restore(path)
    assert status.assert_consumed().step == 3
    assert int(resumed.iterations) == 3
    train(fresh, resumed, range(3, 6))
    for one, two in zip(model.parameters(), fresh.parameters(), strict=True):
        assert same_bits(one, two)
        for name in optimizer.get_slot_names():
            assert same_bits(optimizer.get_slot(one, name), resumed.get_slot(two, name))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_built_optimizer_is_restored_in_place(tmp_path, kind):
    model, optimizer = make_model(), MAKERS[kind]()
    train(model, optimizer, range(2))
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    saved = [weight.detach().clone() for weight in optimizer.weights]
    places = [weight.data_ptr() for weight in optimizer.weights]
    train(model, optimizer, range(2, 4))
    Checkpoint(model=model, optimizer=optimizer).restore(path).assert_consumed()
    assert [weight.data_ptr() for weight in optimizer.weights] == places
    assert all(map(same_bits, optimizer.weights, saved))


def test_a_save_before_the_first_step_restores_too(tmp_path):
    model, optimizer = make_model(), Adam(0.25)
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    fresh, resumed = make_model(), Adam()
    status = Checkpoint(model=fresh, optimizer=resumed).restore(path)
    assert status.assert_consumed().step == 0
    assert resumed.learning_rate == 0.25


def test_another_optimizer_is_refused_with_the_list(tmp_path):
    model, optimizer = make_model(), Adam()
    train(model, optimizer, range(1))
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    other = SGD(0.5)
    with pytest.raises(CheckpointError, match=r"beta_1, .* another kind of"):
        Checkpoint(model=model, optimizer=other).restore(path)
    assert other.learning_rate == 0.5
    assert int(other.iterations) == 0


def test_a_variable_set_on_an_optimizer_is_saved(tmp_path):
    optimizer: Any = SGD()
    optimizer.threshold = Variable(3.0)
    path = Checkpoint(optimizer=optimizer).save(tmp_path / "save")
    optimizer.threshold.assign(0.0)
    status = Checkpoint(optimizer=optimizer).restore(path)
    assert "optimizer/threshold" in status.restored
    assert optimizer.threshold.item() == 3.0
    assert any(one is optimizer.threshold for one in optimizer.variables)


def test_the_saved_dtype_of_a_slot_is_kept_or_refused_but_never_cast(tmp_path):
    model, optimizer = make_model(torch.bfloat16), SGD(0.1, momentum=0.9)
    train(model, optimizer, range(2))
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    fresh = make_model(torch.bfloat16)
    low = SGD(0.1, momentum=0.9, slot_dtypes="variable")
    try:
        Checkpoint(model=fresh, optimizer=low).restore(path)
    except CheckpointError:
        return
    for one, two in zip(model.parameters(), fresh.parameters(), strict=True):
        slot = low.get_slot(two, "momentum")
        assert same_bits(slot, optimizer.get_slot(one, "momentum"))


def forget_hyperparameter(path: str, name: str) -> None:
    """Make a checkpoint what a version without this hyperparameter has saved."""
    manifest = Path(path) / "manifest.json"
    content = json.loads(manifest.read_bytes())
    del content["hyperparameters"]["optimizer"][name]
    manifest.write_bytes(seal(content))


def say_hyperparameter(path: str, name: str, value: Any) -> None:
    """Make a checkpoint what somebody else has saved."""
    manifest = Path(path) / "manifest.json"
    content = json.loads(manifest.read_bytes())
    content["hyperparameters"]["optimizer"][name] = value
    manifest.write_bytes(seal(content))


@pytest.mark.parametrize("make", [Adam, AdamW, Adamax, RMSprop, SGD])
def test_a_checkpoint_from_before_torch_formula_is_complete(tmp_path, make):
    model, optimizer = make_model(), make(0.02)
    train(model, optimizer, range(2))
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    fresh, resumed = make_model(), make()
    status = Checkpoint(model=fresh, optimizer=resumed).restore(path)
    assert status.assert_consumed().step == 2
    assert resumed.learning_rate == 0.02
    assert not resumed.torch_formula


@pytest.mark.parametrize("make", [Adam, AdamW, Adamax, RMSprop, SGD])
def test_a_checkpoint_without_torch_formula_switches_it_off(tmp_path, make, caplog):
    path = Checkpoint(optimizer=make(0.02)).save(tmp_path / "save")
    switched = make(0.02, torch_formula=True)
    checkpoint = Checkpoint(optimizer=switched)
    checkpoint.restore(path, hyper="keep").assert_consumed()
    assert switched.torch_formula
    with pytest.raises(CheckpointError, match=r"torch_formula: False in the checkpoi"):
        checkpoint.restore(path, hyper="error-if-different")
    assert switched.torch_formula
    with caplog.at_level(logging.WARNING):
        checkpoint.restore(path).assert_consumed()
    assert not switched.torch_formula
    assert "torch_formula: False in the checkpoint, True in the object" in caplog.text


def test_versions_with_and_without_torch_formula_save_the_same(tmp_path):
    paths = [Checkpoint(optimizer=Adam()).save(tmp_path / n) for n in ("new", "old")]
    content = json.loads((Path(paths[0]) / "manifest.json").read_bytes())
    assert "torch_formula" not in content["hyperparameters"]["optimizer"]
    assert list(compare(*paths)) == []
    on = Checkpoint(optimizer=Adam(torch_formula=True)).save(tmp_path / "on")
    (difference,) = compare(paths[1], on)
    assert difference.key == "optimizer/.hyper/torch_formula"
    # One of a development version, which said that it is off:
    say_hyperparameter(paths[0], "torch_formula", value=False)
    resumed = Adam(torch_formula=True)
    Checkpoint(optimizer=resumed).restore(paths[0]).assert_consumed()
    assert not resumed.torch_formula


@pytest.mark.parametrize("value", [3, "other", None, {"a": {"$float": "inf"}}, [True]])
@pytest.mark.parametrize("name", ["amsgrad", "torch_formula"])
def test_a_flag_that_is_no_bool_is_refused_before_the_first_write(
    tmp_path, name, value
):
    model, optimizer = make_model(), Adam(0.02)
    train(model, optimizer, range(2))
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    say_hyperparameter(path, name, value=value)
    fresh, resumed = make_model(), Adam(0.5)
    before = [one.detach().clone() for one in fresh.parameters()]
    with pytest.raises(CheckpointError, match=f"{name}: expected True or False"):
        Checkpoint(model=fresh, optimizer=resumed).restore(path)
    assert (resumed.learning_rate, int(resumed.iterations)) == (0.5, 0)
    assert resumed.amsgrad is resumed.torch_formula is False
    assert all(map(torch.equal, before, fresh.parameters()))


@pytest.mark.parametrize("name", ["iterations", "gradient_accumulation_position"])
def test_a_negative_count_is_refused_before_the_first_write(tmp_path, name):
    model, optimizer = make_model(), Adam(0.02, gradient_accumulation_steps=3)
    train(model, optimizer, range(2))
    reader = Reader(Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "a"))
    tensors = {key: reader.read(key).clone() for key in reader.manifest.tensors}
    tensors[f"optimizer/{name}"].fill_(-1)
    path = tmp_path / "forged"
    manifest = replace(reader.manifest, tensors={}, files={})
    write_folder(path, tensors, manifest, overwrite=True)
    fresh, resumed = make_model(), Adam(0.5, gradient_accumulation_steps=3)
    before = [one.detach().clone() for one in fresh.parameters()]
    with pytest.raises(CheckpointError, match=f"{name}: expected a count.*got -1"):
        Checkpoint(model=fresh, optimizer=resumed).restore(path)
    assert (resumed.learning_rate, int(resumed.iterations)) == (0.5, 0)
    assert all(map(torch.equal, before, fresh.parameters()))


def test_a_hyperparameter_that_was_always_there_is_missed(tmp_path):
    path = Checkpoint(optimizer=Adam()).save(tmp_path / "save")
    forget_hyperparameter(path, "amsgrad")
    status = Checkpoint(optimizer=Adam()).restore(path)
    assert status.missing == ("optimizer/.hyper/amsgrad",)


class _Stubborn:
    """Refuses its state, after others have taken theirs."""

    refuses = False

    def state_dict(self) -> dict[str, int]:
        return {"x": 1}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self.refuses:
            raise ValueError("never")


def _with_rate(rate: Any) -> tuple[tw.Checkpoint, tw.optimizers.SGD]:
    weight, optimizer = tw.Variable([1.0]), tw.optimizers.SGD(rate)
    optimizer.apply_gradients([(torch.ones(1), weight)])
    parts = {"weight": weight, "optimizer": optimizer, "other": _Stubborn()}
    return tw.Checkpoint(**parts), optimizer


def test_a_refused_restore_puts_a_number_back_where_a_schedule_came(
    tmp_path: Path,
) -> None:
    schedule = tw.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    path = _with_rate(schedule)[0].save(tmp_path / "schedule")
    checkpoint, optimizer = _with_rate(0.25)
    checkpoint.other.refuses = True
    with pytest.raises(CheckpointError):
        checkpoint.restore(path)
    assert optimizer.get_config()["learning_rate"] == 0.25


def test_a_number_does_not_replace_a_schedule_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = tw.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    path = _with_rate(0.25)[0].save(tmp_path / "number")
    checkpoint, optimizer = _with_rate(schedule)
    checkpoint.restore(path).assert_consumed()
    assert optimizer.get_config()["learning_rate"]["class_name"] == "ExponentialDecay"
    assert "whose own function stays." in caplog.text


@pytest.mark.parametrize("how", ["save", "save_async"])
def test_a_count_that_no_reader_takes_is_refused_before_writing(tmp_path, how):
    weight, optimizer = Variable([1.0]), SGD(0.1)
    optimizer.iterations.assign(-2)
    checkpoint = Checkpoint(weight=weight, mine=optimizer)
    with pytest.raises(CheckpointError, match="iterations = -2 of 'mine'"):
        getattr(checkpoint, how)(tmp_path / "below" / "save")
    assert list(tmp_path.iterdir()) == []
    optimizer.iterations.assign(0)
    getattr(checkpoint, how)(tmp_path / "save")
    checkpoint.wait()
    assert checkpoint.restore(tmp_path / "save").assert_consumed().step == 0
