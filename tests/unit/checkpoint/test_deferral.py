"""Saved values wait for what is made later, and what is left over is said."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.checkpoint.slot_keeper import SlotKeeper, same_bits
from thalweg.checkpoint import Checkpoint, CheckpointError, UnmatchedError, deferral
from thalweg.optimizers import Adam
from thalweg.state import Trackable, Variable, listeners
from thalweg.training import Layer, Model


@pytest.fixture(autouse=True)
def nothing_waits_afterwards():
    yield
    for one in list(deferral._waiting):
        deferral._forget(one)
    assert not deferral._handles
    assert listeners.steps == listeners.attributes == []


class Dense(Layer):
    """Makes its weights in its first call."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units

    def build(self, input_shape: Any) -> None:
        # Both are called "weight" until they are attributes.
        self.kernel = self.add_weight((input_shape[-1], self.units))
        self.weight = self.add_weight((input_shape[-1], self.units))

    def call(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ (self.kernel + self.weight)


class Network(Model):
    def __init__(self) -> None:
        super().__init__()
        self.first = Dense(4)
        self.rest = [Dense(3), Dense(1)]

    def call(self, inputs: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, *self.rest):
            inputs = layer(inputs)
        return inputs


def step(model: nn.Module, optimizer: Any, inputs: torch.Tensor) -> None:
    parameters = list(model.parameters())
    gradients = torch.autograd.grad((model(inputs) ** 2).mean(), parameters)
    optimizer.apply_gradients(zip(gradients, parameters, strict=True))


def test_layers_built_by_a_call_take_their_values_in_that_call(tmp_path):
    inputs = torch.randn(5, 2)
    model, optimizer = Network(), Adam(0.1)
    model(inputs)
    step(model, optimizer, inputs)
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "save")
    fresh, resumed = Network(), Adam(0.1)
    status = Checkpoint(model=fresh, optimizer=resumed).restore(path)
    assert len(status.unexpected) == 6 * 3
    with pytest.raises(UnmatchedError, match=r"first\.kernel"):
        status.assert_consumed()
    status.assert_existing_objects_matched()
    expected = model(inputs)
    assert torch.equal(fresh(inputs), expected)
    assert status.assert_consumed().step == 1
    assert len(status.restored) == 1 + 6 * 3
    for one, two in zip(model.parameters(), fresh.parameters(), strict=True):
        assert same_bits(optimizer.get_slot(one, "m"), resumed.get_slot(two, "m"))
    step(model, optimizer, inputs)
    step(fresh, resumed, inputs)
    assert torch.equal(model(inputs), fresh(inputs))


def test_modules_put_in_later_bring_variables_and_slots_of_any_shape(tmp_path):
    model: Any = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    keeper = SlotKeeper(known=("m",))
    keeper.add(model[1].weight, "m", torch.full((7, 2), 0.5, dtype=torch.bfloat16))
    path = Checkpoint(model=model, optimizer=keeper).save(tmp_path / "save")
    fresh: Any = nn.Sequential()
    other = SlotKeeper(known=("m",))
    Checkpoint(model=fresh, optimizer=other).restore(path)
    fresh.append(nn.Linear(2, 3))
    assert torch.equal(fresh[0].weight, model[0].weight)
    norm = nn.BatchNorm1d(3)
    norm.running_mean = torch.full((3,), 9.0)
    fresh.append(norm)
    assert norm.running_mean.tolist() == [0.0, 0.0, 0.0]
    slot = other.slot(norm.weight, "m")
    assert slot.dtype == torch.bfloat16
    assert slot.tolist() == [[0.5, 0.5]] * 7
    assert not deferral._waiting


def test_parameters_and_buffers_registered_later_take_their_values(tmp_path):
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(3))
    model.register_buffer("count", torch.tensor(4))
    path = Checkpoint(model=model).save(tmp_path / "save")
    fresh = nn.Module()
    status = Checkpoint(model=fresh).restore(path)
    elsewhere = nn.Linear(1, 1)
    elsewhere.register_buffer("count", torch.tensor(1))
    fresh.weight = nn.Parameter(torch.zeros(3))
    assert fresh.weight.tolist() == [1.0, 1.0, 1.0]
    fresh.register_buffer("count", torch.tensor(0))
    assert int(fresh.count) == 4
    assert int(elsewhere.count) == 1
    status.assert_consumed()


def test_lazy_parameters_take_the_saved_shape(tmp_path):
    model = nn.Linear(3, 2)
    path = Checkpoint(model=model).save(tmp_path / "save")
    lazy: Any = nn.LazyLinear(2)
    Checkpoint(model=nn.LazyLinear(2)).save(tmp_path / "empty")
    Checkpoint(model=lazy).restore(path).assert_consumed()
    inputs = torch.randn(4, 3)
    assert torch.equal(lazy(inputs), model(inputs))


def test_an_object_that_comes_by_update_takes_its_value(tmp_path):
    first, second = nn.Linear(1, 1), nn.Linear(2, 1)
    path = Checkpoint(parts=[first], more=[second]).save(tmp_path / "save")
    fresh = nn.Linear(2, 1)
    checkpoint = Checkpoint(parts=[nn.Linear(1, 1)], more=[])
    checkpoint.restore(path)
    checkpoint.update(more=[fresh])
    assert torch.equal(fresh.weight, second.weight)


def test_a_trackable_tells_of_its_attributes_and_steps_look_again(tmp_path):
    owner: Any = Trackable()
    owner.scale = Variable([2.0])
    path = Checkpoint(owner=owner).save(tmp_path / "save")
    for tell in (
        lambda one: [hear(one, one.scale) for hear in listeners.attributes],
        lambda one: [hear(one) for hear in listeners.steps],
    ):
        fresh: Any = Trackable()
        status = Checkpoint(owner=fresh).restore(path)
        fresh.scale = Variable([0.0])
        tell(fresh)
        assert fresh.scale.tolist() == [2.0]
        assert status.assert_consumed().unexpected == ()


def test_another_shape_is_said_and_nothing_is_written(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3))
    path = Checkpoint(model=model).save(tmp_path / "save")
    fresh = nn.Sequential()
    status = Checkpoint(model=fresh).restore(path)
    other = nn.Linear(2, 4)
    before = other.weight.detach().clone()
    fresh.append(other)
    assert torch.equal(other.weight, before)
    assert len(status.mismatched) == 2
    with pytest.raises(UnmatchedError, match=r"shape or dtype \(2\):\n.*\(3, 2\)"):
        status.assert_existing_objects_matched()


def partly_restored(tmp_path) -> tuple[Any, Any, Checkpoint]:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    path = Checkpoint(model=model).save(tmp_path / "save")
    fresh = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1, bias=False))
    checkpoint = Checkpoint(model=fresh)
    return fresh, checkpoint.restore(path), checkpoint


def test_a_status_nobody_looked_at_warns_at_the_next_save(tmp_path):
    _, status, checkpoint = partly_restored(tmp_path)
    with pytest.warns(UserWarning, match=r"in part(?s:.*)model/1\.bias") as caught:
        checkpoint.save(tmp_path / "next")
    assert caught[0].filename == __file__
    checkpoint.save(tmp_path / "after")
    assert status.unexpected == ("model/1.bias",)


def test_a_status_nobody_looked_at_warns_at_the_next_step_of_any_kind(tmp_path):
    model, _, _ = partly_restored(tmp_path)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.warns(UserWarning, match="expect_partial"):
        optimizer.step()
    optimizer.step()


@pytest.mark.parametrize(
    "look",
    [
        lambda status: status.expect_partial(),
        lambda status: status.missing,
        lambda status: status.unexpected,
        lambda status: status.assert_existing_objects_matched(),
    ],
    ids=["expect_partial", "missing", "unexpected", "assert_existing"],
)
def test_who_has_looked_is_not_warned(tmp_path, look):
    model, status, checkpoint = partly_restored(tmp_path)
    look(status)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.optim.SGD(model.parameters()).step()
        checkpoint.save(tmp_path / "next")


def test_a_replaced_part_is_not_overwritten_and_steps_cost_nothing(tmp_path):
    model, status, _ = partly_restored(tmp_path)
    status.expect_partial()
    head = nn.Linear(2, 3)
    before = head.weight.detach().clone()
    model[0] = head
    assert torch.equal(head.weight, before)
    torch.optim.SGD(model.parameters()).step()
    (waiting,) = deferral._waiting
    assert waiting.has_stepped


def test_a_later_optimizer_with_other_hyperparameters_is_refused_on_demand(tmp_path):
    owner: Any = Trackable()
    owner.optimizer = SlotKeeper(learning_rate=0.5)
    path = Checkpoint(owner=owner).save(tmp_path / "save")
    fresh: Any = Trackable()
    status = Checkpoint(owner=fresh).restore(path, hyper="error-if-different")

    def come_later() -> None:
        fresh.optimizer = SlotKeeper(learning_rate=0.25)
        status.assert_consumed()

    with pytest.raises(CheckpointError, match="other hyperparameters"):
        come_later()
    assert fresh.optimizer.learning_rate == 0.25


def test_objects_are_not_kept_alive(tmp_path):
    status = partly_restored(tmp_path)[1]
    gc.collect()
    assert not deferral._handles  # torch.compile warns of hooks on all modules
    status.expect_partial()
    assert status.restored
    assert not deferral._waiting
