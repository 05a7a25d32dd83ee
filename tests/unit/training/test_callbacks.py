"""Callbacks and the progress bar."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import nn

import thalweg as tw
from thalweg.training import Model
from thalweg.training.callbacks import (
    Callback,
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
    ProgressBar,
    TerminateOnNaN,
)

X, Y = torch.ones(8, 2), torch.ones(8, 1)


def model_of(rate: float = 0.01) -> Model:
    torch.manual_seed(0)
    model = Model(nn.Linear(2, 1))
    model.compile(tw.optimizers.SGD(rate), "mse")
    return model


def test_hooks_come_in_order():
    seen: list[str] = []
    names = [name for name in vars(Callback) if name.startswith("on_")]
    hooks = {
        name: (lambda *args, name=name: seen.append(name))
        for name in names
        if "predict" not in name
    }
    model = model_of()
    model.fit(
        X,
        Y,
        batch_size=8,
        verbose=0,
        validation_data=(X, Y),
        callbacks=[LambdaCallback(**hooks)],
    )
    assert seen == [
        "on_train_begin",
        "on_epoch_begin",
        "on_train_batch_begin",
        "on_train_batch_end",
        "on_test_begin",
        "on_test_batch_begin",
        "on_test_batch_end",
        "on_test_end",
        "on_epoch_end",
        "on_train_end",
    ]
    with pytest.raises(ValueError, match="Did you mean 'on_epoch_end'"):
        LambdaCallback(on_epoch_ends=print)


def test_early_stopping_restores_the_best_weights():
    model = model_of(rate=3.0)
    stop = EarlyStopping("loss", patience=2, restore_best_weights=True)
    kept = {}
    keep = LambdaCallback(
        on_epoch_begin=lambda epoch, logs: kept.setdefault(
            epoch + 1, model.state_dict()["weight"].clone()
        )
    )
    history = model.fit(X, Y, epochs=20, verbose=0, callbacks=[keep, stop])
    assert len(history.epoch) == 3
    assert (stop.best_epoch, stop.stopped_epoch) == (0, 2)
    assert torch.equal(model.state_dict()["weight"], kept[2])


def test_early_stopping_directions_and_refusals():
    stop = EarlyStopping("val_accuracy")
    stop.on_train_begin()
    stop.model = model_of()
    stop.on_epoch_end(0, {"val_accuracy": 0.5})
    stop.on_epoch_end(1, {"val_accuracy": 0.6})
    assert stop.best == 0.6
    with pytest.warns(UserWarning, match="val_accuracy"):
        stop.on_epoch_end(2, {"loss": 1.0})
    with pytest.raises(ValueError, match="mode"):
        EarlyStopping(mode="least")
    with pytest.raises(ValueError, match="patience"):
        EarlyStopping(patience=-1)


def test_model_checkpoint_saves_what_can_be_restored(tmp_path):
    model = model_of()
    save = ModelCheckpoint(
        tmp_path / "{epoch:02d}", save_best_only=True, monitor="loss"
    )
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[save])
    assert save.last_saved == tmp_path / "02"
    other = model_of()
    tw.Checkpoint(model=other, optimizer=other.optimizer).restore(tmp_path / "02")
    assert torch.equal(other.state_dict()["weight"], model.state_dict()["weight"])
    bad = ModelCheckpoint(tmp_path / "{los}")
    with pytest.raises(ValueError, match="Did you mean 'loss'"):
        model.fit(X, Y, verbose=0, callbacks=[bad])
    with pytest.raises(ValueError, match="save_freq"):
        ModelCheckpoint(tmp_path, save_freq="step")


def written(verbose: int, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    bar = ProgressBar(verbose, console)
    model_of().fit(X, Y, epochs=2, verbose=0, callbacks=[bar])
    return stream.getvalue()


def test_plain_lines_where_there_is_no_terminal():
    lines = written(1, terminal=False).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2")
    assert "loss" in lines[1]
    assert len(written(2, terminal=True).splitlines()) == 2
    assert written(0, terminal=True) == ""


def test_a_bar_and_a_table_on_a_terminal():
    text = written(1, terminal=True)
    assert "epoch 2/2" in text
    assert "seconds" in text


def test_the_bar_is_closed_when_training_fails():
    bar = ProgressBar(1, Console(file=io.StringIO(), force_terminal=True))

    def fail(batch, logs):
        raise KeyError("stop")

    with pytest.raises(KeyError):
        model_of().fit(
            X, Y, verbose=0, callbacks=[bar, LambdaCallback(on_train_batch_end=fail)]
        )
    assert bar._bar is None


def test_evaluate_writes_one_line(capsys):
    model_of().evaluate(X, Y)
    assert capsys.readouterr().out.startswith("evaluated")


def test_a_loss_that_is_nan_ends_training_and_names_variables():
    model = Model(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))
    model.compile(tw.optimizers.SGD(0.01), "mse")
    x = X.clone()
    x[5] = float("nan")
    seen: list[int] = []
    note = LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    options = {"batch_size": 2, "epochs": 3, "shuffle": False, "verbose": 0}
    with pytest.warns(
        UserWarning, match=r"is nan in step 3; .*0\.weight, 0\.bias, 1\."
    ):
        model.fit(x, Y, callbacks=[TerminateOnNaN(), note], **options)
    assert seen == [0, 1, 2]


def test_a_finite_loss_ends_nothing():
    history = model_of().fit(X, Y, epochs=2, callbacks=[TerminateOnNaN()], verbose=0)
    assert history.epoch == [0, 1]
