"""Runs that go on in the middle of an epoch: loaders, and callbacks with a memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import thalweg as tw
from thalweg.checkpoint import RandomState
from thalweg.training import DataPosition, Model
from thalweg.training.callbacks import EarlyStopping, LambdaCallback
from thalweg.training.history import History

X = torch.randn(22, 4, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def new(**others: Any) -> tuple[Model, tw.Checkpoint]:
    torch.manual_seed(8)
    layers = torch.nn.Linear(4, 6), torch.nn.Dropout(0.3), torch.nn.Linear(6, 1)
    model = Model(torch.nn.Sequential(*layers))
    model.compile(tw.optimizers.Adam(0.01), loss="mse")
    return model, tw.Checkpoint(
        model=model,
        optimizer=model.optimizer,
        position=model.data_position,
        random_state=RandomState(),
        **others,
    )


def loader() -> Any:
    return DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True)


@pytest.mark.parametrize("stop", [1, 7, 10])
def test_a_shuffling_loader_goes_on_with_the_batches_not_seen(tmp_path, stop):
    model, checkpoint = new()
    steps = []

    def keep(batch: int, logs: Any) -> None:
        steps.append(batch)
        if len(steps) == stop:
            checkpoint.save(tmp_path / "save")

    model.fit(
        loader(),
        epochs=3,
        verbose=0,
        callbacks=[LambdaCallback(on_train_batch_end=keep)],
    )
    other, checkpoint = new()
    torch.manual_seed(99)
    checkpoint.restore(tmp_path / "save").assert_consumed()
    other.fit(loader(), epochs=3, verbose=0)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_the_default_generator_is_left_as_it_was():
    position = DataPosition()
    seen = list(position.iterate(loader(), 0))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    rest = list(position.iterate(loader(), 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(rest) == 3
    for (x, _), (y, _) in zip(rest, seen[2:], strict=True):
        assert torch.equal(x, y)


def test_history_and_early_stopping_remember(tmp_path):
    record, stopping = History(), EarlyStopping("loss", patience=2, mode="min")
    losses = [3.0, 1.0, 2.0]
    for one in (record, stopping):
        one.set_model(new()[0])
        one.on_train_begin()
        for epoch, loss in enumerate(losses):
            one.on_epoch_end(epoch, {"loss": loss})
    model, checkpoint = new(record=record, stopping=stopping)
    path = checkpoint.save(tmp_path / "save")
    other, waiting = History(), EarlyStopping("loss", patience=2, mode="min")
    model, checkpoint = new(record=other, stopping=waiting)
    checkpoint.restore(path).assert_consumed()
    for one in (other, waiting):
        one.set_model(model)
        one.on_train_begin()
    assert other.history == {"loss": losses}
    assert other.epoch == [0, 1, 2]
    assert (waiting.best, waiting.best_epoch) == (1.0, 1)
    model.stop_training = False
    waiting.on_epoch_end(3, {"loss": 1.5})
    assert model.stop_training
    for one in (other, waiting):
        one.on_train_begin()
    assert other.history == {}
    assert waiting.best_epoch is None
