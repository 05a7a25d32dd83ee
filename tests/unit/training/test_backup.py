"""BackupAndRestore: runs that are broken off, and go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryAUROC

import thalweg as tw
from tests.distributed.harness import run_ranks
from thalweg.errors import CheckpointError
from thalweg.training import History, Model
from thalweg.training.callbacks import (
    BackupAndRestore,
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
    TerminateOnNaN,
)
from thalweg.training.metrics import Metric

X = torch.randn(22, 4, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def new(seed: int = 8) -> Model:
    torch.manual_seed(seed)
    layers = torch.nn.Linear(4, 6), torch.nn.Dropout(0.3), torch.nn.Linear(6, 1)
    model = Model(torch.nn.Sequential(*layers))
    model.compile(tw.optimizers.Adam(0.01), loss="mse")
    return model


def run(model: Model, *callbacks: Any, epochs: int = 3) -> History:
    options: dict[str, Any] = {"epochs": epochs, "batch_size": 5, "verbose": 0}
    return model.fit(X, Y, callbacks=list(callbacks), **options)


def weights(model: Model) -> torch.Tensor:
    return torch.cat([one.detach().reshape(-1) for one in model.parameters()])


class PowerCutError(Exception):
    """What ends a run in these tests."""


def cut_after(steps: int) -> LambdaCallback:
    seen: list[int] = []

    def count(batch: int, logs: Any) -> None:
        seen.append(batch)
        if len(seen) == steps:
            raise PowerCutError

    return LambdaCallback(on_train_batch_end=count)


@pytest.mark.parametrize(("save_freq", "steps"), [("epoch", 7), (2, 7), (3, 13)])
def test_a_broken_run_gives_the_bits_of_a_whole_one(
    tmp_path: Path, save_freq: str | int, steps: int
) -> None:
    whole = new()
    history = run(whole)
    with pytest.raises(PowerCutError):
        run(new(), BackupAndRestore(tmp_path, save_freq), cut_after(steps))
    assert len(list(tmp_path.glob("step-*"))) == 1
    model = new(seed=99)
    record = run(model, BackupAndRestore(tmp_path, save_freq))
    assert torch.equal(weights(model), weights(whole))
    assert model.optimizer.iterations == 15
    assert record.epoch == [0, 1, 2]
    assert record.history == history.history


def cut_at_the_end_of(epoch: int) -> LambdaCallback:
    def cut(number: int, logs: Any) -> None:
        if number == epoch:
            raise PowerCutError

    return LambdaCallback(on_epoch_end=cut)


def test_an_epoch_saved_at_its_last_step_has_the_figures_of_a_whole_one(
    tmp_path: Path,
) -> None:
    def saving(*others: Any) -> History:
        named = ModelCheckpoint(tmp_path / "{epoch}-{loss:.3f}")
        backup = BackupAndRestore(tmp_path / "backup", save_freq=5)
        return run(new(), backup, *others, named)

    history = run(new())
    with pytest.raises(PowerCutError):
        saving(cut_at_the_end_of(1))
    record = saving()
    assert record.history == history.history
    assert record.epoch == [0, 1, 2]
    assert len(list(tmp_path.glob("*-*"))) == 3


class CountingSteps(Metric):
    """A metric of somebody's own."""

    def __init__(self) -> None:
        super().__init__("counted")
        self.steps = 0

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        self.steps += 1

    def result(self) -> Any:
        return self.steps

    def reset_state(self) -> None:
        self.steps = 0


class OwnState(CountingSteps):
    """One that gives its state itself."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.seen = "own", {"steps": 0}

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        self.seen["steps"] += 1

    def result(self) -> Any:
        return self.seen["steps"]

    def reset_state(self) -> None:
        self.seen = {"steps": 0}

    def state_dict(self) -> dict[str, int]:
        return self.seen

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.seen = state_dict


class OwnStep(Model):
    """A model whose step returns a number that is no metric's."""

    def train_step(self, data: Any) -> dict[str, Any]:
        return {**super().train_step(data), "first": data[0][0, 0]}


@pytest.mark.parametrize("steps", [2, 4, 5])
def test_metrics_of_all_kinds_go_on_with_a_broken_epoch(
    tmp_path: Path, steps: int
) -> None:
    def measured(*callbacks: Any) -> dict[str, list[float]]:
        torch.manual_seed(3)
        model = OwnStep(torch.nn.Linear(4, 1))
        kinds = ["accuracy", "precision", "mae", BinaryAUROC()]
        metrics = [*kinds, CountingSteps(), OwnState()]
        model.compile("adam", loss="binary_crossentropy", metrics=metrics)
        given = X, (Y > 0).long()
        options: dict[str, Any] = {"epochs": 2, "batch_size": 5, "verbose": 0}
        return model.fit(*given, callbacks=list(callbacks), **options).history

    whole = measured()
    assert whole["counted"] == whole["own"] == [5.0, 5.0]
    with pytest.raises(PowerCutError):
        measured(BackupAndRestore(tmp_path, steps), cut_at_the_end_of(0))
    assert measured(BackupAndRestore(tmp_path, steps)) == whole


def test_early_stopping_sees_the_figures_of_whole_epochs(tmp_path: Path) -> None:
    def stopping(*others: Any) -> tuple[Any, ...]:
        made = EarlyStopping("loss", patience=1)
        backup = BackupAndRestore(tmp_path, 2, stopping=made)
        record = run(new(), made, backup, *others, epochs=6)
        return made.best, made.best_epoch, made.stopped_epoch, record.history

    whole = stopping()
    with pytest.raises(PowerCutError):
        stopping(cut_after(9))
    assert stopping() == whole


def test_a_run_that_was_stopped_stays_stopped(tmp_path: Path) -> None:
    def stopping(save_freq: str | int) -> tuple[list[int], int | None, torch.Tensor]:
        made = EarlyStopping("loss", baseline=0.0)
        folder = tmp_path / str(save_freq)
        backup = BackupAndRestore(folder, save_freq, False, stopping=made)
        model = new()
        record = run(model, backup, made, epochs=5)
        return record.epoch, made.stopped_epoch, weights(model)

    for save_freq in ("epoch", 2):
        epochs, stopped, first = stopping(save_freq)
        assert (epochs, stopped) == ([0], 0)
        for _ in range(2):
            epochs, stopped, again = stopping(save_freq)
            assert (epochs, stopped) == ([0], 0)
            assert torch.equal(first, again)


def test_callbacks_keep_their_memory_wherever_they_are_listed(tmp_path: Path) -> None:
    def stopping(*others: Any) -> int | None:
        made = EarlyStopping("loss", patience=3, baseline=0.0)
        run(new(), BackupAndRestore(tmp_path, made=made), made, *others, epochs=9)
        return made.stopped_epoch

    with pytest.raises(PowerCutError):
        stopping(cut_after(11))
    assert stopping() == 2


@pytest.mark.parametrize("save_freq", ["epoch", 1])
def test_a_run_stopped_by_nan_goes_on_before_it(
    tmp_path: Path, save_freq: str | int
) -> None:
    broken = X.clone()
    broken[3] = float("nan")
    model = new()
    backup = BackupAndRestore(tmp_path, save_freq, delete_checkpoint=False)
    options: dict[str, Any] = {"batch_size": 5, "shuffle": False, "verbose": 0}
    model.fit(X, Y, callbacks=[backup], **options)
    whole = weights(model)
    callbacks = [backup, TerminateOnNaN()]
    with pytest.warns(UserWarning, match="TerminateOnNaN"):
        model.fit(broken, Y, epochs=2, callbacks=callbacks, **options)
    assert weights(model).isnan().any()
    again = new(seed=99)
    again.fit(X, Y, callbacks=[backup], **options)
    assert torch.equal(weights(again), whole)


@pytest.mark.parametrize("save_freq", ["epoch", 1])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_variables_that_are_lost_are_not_saved_whatever_the_loss(
    tmp_path: Path, save_freq: str | int, number: float
) -> None:
    def spoil(epoch: int, logs: Any) -> None:
        if epoch == 1:
            assert np.isfinite(logs["loss"])
            with torch.no_grad():
                next(model.parameters())[2] = number

    backup = BackupAndRestore(tmp_path, save_freq, delete_checkpoint=False)
    model = new()
    with pytest.warns(UserWarning, match=r"inf or NaN \(\S*0\.weight.*is not saved"):
        run(model, LambdaCallback(on_epoch_end=spoil), backup, epochs=3)
    again = new(seed=99)
    seen: list[int] = []
    note = LambdaCallback(on_epoch_begin=lambda epoch, logs: seen.append(epoch))
    run(again, note, backup, epochs=3)
    assert seen == [1, 2]
    assert weights(again).isfinite().all()


def test_buffers_may_be_infinite(tmp_path: Path) -> None:
    model, saved = new(), BackupAndRestore(tmp_path, delete_checkpoint=False)
    model.register_buffer("limits", torch.tensor([float("-inf")]))
    run(model, saved)
    assert len(list(tmp_path.glob("step-*"))) == 1


def test_a_run_that_ends_removes_its_backup(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    backup = BackupAndRestore(tmp_path)
    run(new(), backup)
    assert list(tmp_path.glob("step-*")) == []
    assert (tmp_path / "note.txt").read_text() == "mine"
    assert run(new(), backup).epoch == [0, 1, 2]


def test_a_backup_that_stays_is_gone_on_from(tmp_path: Path) -> None:
    backup = BackupAndRestore(tmp_path, delete_checkpoint=False)
    whole = new()
    run(whole, epochs=4)
    run(new(), backup, epochs=2)
    again = new(seed=99)
    assert run(again, backup, epochs=4).epoch == [0, 1, 2, 3]
    assert torch.equal(weights(again), weights(whole))
    assert run(again, backup, epochs=4).epoch == [0, 1, 2, 3]
    assert again.optimizer.iterations == 20


def test_callbacks_with_a_memory_go_on_with_it(tmp_path: Path) -> None:
    def stopping(model: Model, *others: Any) -> EarlyStopping:
        made = EarlyStopping("loss", patience=9)
        backup = BackupAndRestore(tmp_path, stopping=made)
        run(model, made, backup, *others)
        return made

    whole = EarlyStopping("loss", patience=9)
    run(new(), whole)
    with pytest.raises(PowerCutError):
        stopping(new(), cut_after(11))
    model = new(seed=99)
    made = stopping(model)
    assert (made.best, made.best_epoch) == (whole.best, whole.best_epoch)
    run(model, made, epochs=1)
    assert made.best_epoch == 0


def test_the_best_epoch_saved_is_not_forgotten(tmp_path: Path) -> None:
    def saving(*others: Any) -> None:
        best = ModelCheckpoint(tmp_path / "best", "loss", save_best_only=True)
        backup = BackupAndRestore(tmp_path / "backup", best=best)
        run(new(), *others, best, backup)

    def worse(epoch: int, logs: Any) -> None:
        logs["loss"] = 2.0 if epoch else 1.0

    with pytest.raises(PowerCutError):
        saving(LambdaCallback(on_epoch_end=worse), cut_after(7))
    before = (tmp_path / "best" / "manifest.json").stat().st_mtime_ns
    saving(LambdaCallback(on_epoch_end=worse))
    assert (tmp_path / "best" / "manifest.json").stat().st_mtime_ns == before


def test_a_backup_of_another_model_is_refused(tmp_path: Path) -> None:
    run(new(), BackupAndRestore(tmp_path, delete_checkpoint=False))
    other = Model(torch.nn.Linear(4, 1))
    other.compile("sgd", loss="mse")
    before = weights(other)
    with pytest.raises(ValueError, match="weight"):
        run(other, BackupAndRestore(tmp_path))
    assert torch.equal(weights(other), before)


def test_a_backup_of_more_is_refused_before_anything_changes(tmp_path: Path) -> None:
    made = EarlyStopping("loss", patience=9)
    run(new(), made, BackupAndRestore(tmp_path, 2, False, made=made))
    model = new(seed=99)
    before = weights(model)
    with pytest.raises(CheckpointError, match="unexpected"):
        run(model, BackupAndRestore(tmp_path, 2))
    assert torch.equal(weights(model), before)
    assert model.optimizer.iterations == 0
    assert run(model).epoch == [0, 1, 2]


@pytest.mark.parametrize("name", ["model", "position", "figures", "stopped", "save"])
def test_names_that_are_taken_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        BackupAndRestore(tmp_path, **{name: torch.nn.Linear(1, 1)})


@pytest.mark.parametrize("save_freq", ["batch", 0, True, 1.5])
def test_other_frequencies_are_refused(tmp_path: Path, save_freq: Any) -> None:
    with pytest.raises(ValueError, match="save_freq 'epoch' or a number of steps"):
        BackupAndRestore(tmp_path, save_freq)


def mirrored(folder: str) -> torch.Tensor:
    def begin(seed: int) -> Model:
        with tw.distribute.MirroredStrategy().scope():
            return new(seed)

    with pytest.raises(PowerCutError):
        run(begin(8), BackupAndRestore(folder, 2), cut_after(7))
    model = begin(99)
    record = run(model, BackupAndRestore(folder, 2))
    assert record.epoch == [0, 1, 2]
    assert record.history == run(begin(8)).history
    assert model.optimizer.iterations == 15
    return weights(model)


@pytest.mark.distributed
def test_two_ranks_go_on_together(tmp_path: Path) -> None:
    first, second = run_ranks(mirrored, 2, str(tmp_path))
    assert torch.equal(first, second)
    assert list(tmp_path.glob("step-*")) == []
