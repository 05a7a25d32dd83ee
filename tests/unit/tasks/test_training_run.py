"""Training a task: options, outcome, resume, refusals."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from thalweg.errors import CheckpointError
from thalweg.tasks import Options, Problem, Split, Task, train, training_run
from thalweg.training import Model


def load() -> Problem:
    """A line in three dimensions with little noise."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(96, 3)).astype(np.float32)
    y = (x @ np.array([[1.0], [-2.0], [0.5]])).astype(np.float32)
    return Problem(
        train=Split(x[:64], y[:64]),
        test=Split(x[64:], y[64:]),
        build_model=lambda: Model(nn.Linear(3, 1)),
        loss="mse",
        metrics=(),
        figure=_figure,
        report=lambda model: [f"{len(model.trainable_variables)} variables"],
    )


def _figure(logs: Mapping[str, float]) -> float:
    return logs["loss"]


LINE = Task("line", "a line", "test_loss", "adam", 0.05, 3, 16, load)


def options(out: Path, **others: object) -> Options:
    return replace(Options(out=out, verbose=0), **others)  # pyright: ignore[reportArgumentType]


def test_an_outcome_names_figure_steps_and_files(tmp_path: Path) -> None:
    said: list[str] = []
    outcome = train(LINE, options(tmp_path), said.append)
    assert outcome.steps == 3 * 4
    assert outcome.report == ["2 variables"]
    assert len(outcome.history["loss"]) == len(outcome.history["val_loss"]) == 3
    assert outcome.figure == pytest.approx(outcome.history["val_loss"][-1], rel=1e-5)
    assert (outcome.checkpoint / "manifest.json").is_file()
    assert outcome.curves == tmp_path / "curves.png"
    assert said == ["line: a line; 4 parameters; 64 rows to fit, 32 held out"]


def test_a_summary_is_plain_json(tmp_path: Path) -> None:
    outcome = train(LINE, options(tmp_path, epochs=1))
    summary = json.loads(json.dumps(outcome.summary()))
    assert summary["test_loss"] == outcome.figure
    assert summary.keys() == {
        "task",
        "test_loss",
        "steps",
        "seconds",
        "checkpoint",
        "curves",
    }


def test_the_history_is_written_beside_the_curves(tmp_path: Path) -> None:
    outcome = train(LINE, options(tmp_path, epochs=2))
    written = json.loads((tmp_path / "history.json").read_text())
    assert written == outcome.history


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    first = train(LINE, options(tmp_path / "a"))
    second = train(LINE, options(tmp_path / "b"))
    other = train(LINE, options(tmp_path / "c", seed=1))
    assert first.history == second.history
    assert first.history != other.history


def test_resume_goes_on_as_if_the_run_had_not_ended(tmp_path: Path) -> None:
    whole = train(LINE, options(tmp_path / "whole", epochs=5))
    part = train(LINE, options(tmp_path / "part", epochs=2))
    rest = train(
        LINE, options(tmp_path / "rest", epochs=5, seed=9, resume=part.checkpoint)
    )
    assert len(part.history["loss"]) == 2
    assert rest.steps == whole.steps == 5 * 4
    assert rest.history == whole.history
    assert rest.figure == whole.figure


def test_a_run_broken_in_the_middle_of_an_epoch_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(LINE, options(tmp_path / "whole", epochs=3))
    save_whole = training_run.Checkpoint.save
    saves: list[str] = []

    def save(checkpoint: Any, *arguments: Any, **named: Any) -> str:
        saves.append(save_whole(checkpoint, *arguments, **named))
        if len(saves) == 3:  # after step 3, epoch 1, step 7
            raise KeyboardInterrupt
        return saves[-1]

    with monkeypatch.context() as patched:
        patched.setattr(training_run.Checkpoint, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train(LINE, options(tmp_path / "part", epochs=3, save_every=3))
    rest = train(
        LINE, options(tmp_path / "rest", epochs=3, seed=9, resume=tmp_path / "part")
    )
    assert rest.steps == whole.steps
    assert rest.figure == whole.figure


def test_resume_takes_the_folder_of_a_run_too(tmp_path: Path) -> None:
    train(LINE, options(tmp_path, epochs=1))
    outcome = train(LINE, options(tmp_path, epochs=2, resume=tmp_path))
    assert outcome.steps == 2 * 4


def test_resume_restores_the_optimizer(tmp_path: Path) -> None:
    train(LINE, options(tmp_path, epochs=1, learning_rate=0.125))
    resumed = train(LINE, options(tmp_path, epochs=1, resume=tmp_path))
    manifest = (resumed.checkpoint / "manifest.json").read_text()
    assert (0.125).hex() in manifest
    assert resumed.steps == 4


def test_a_chosen_learning_rate_outlives_a_resume(tmp_path: Path) -> None:
    train(LINE, options(tmp_path, epochs=1))
    outcome = train(
        LINE, options(tmp_path, epochs=2, learning_rate=0.25, resume=tmp_path)
    )
    assert (0.25).hex() in (outcome.checkpoint / "manifest.json").read_text()


def test_another_optimizer_has_its_own_learning_rate(tmp_path: Path) -> None:
    outcome = train(LINE, options(tmp_path, epochs=1, optimizer="sgd"))
    assert (0.01).hex() in (outcome.checkpoint / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("wrong", "pattern"),
    [
        ({"epochs": 0}, "epochs: expected a number ≥ 1; got 0"),
        ({"batch_size": -1}, "batch_size: expected a number ≥ 1; got -1"),
        ({"strategy": "miror"}, "Did you mean 'mirrored'"),
        ({"optimizer": "adm"}, "Did you mean 'adam'"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"resume": Path("nowhere")}, "resume: expected a checkpoint"),
        ({"device": "nonsense"}, "device: expected a device of this machine"),
        ({"device": "cuda:99"}, "Pass another, such as cpu"),
        ({"device": "meta"}, "device: expected a device of this machine; got 'meta'"),
        ({"device": "meta", "strategy": "mirrored"}, "got 'meta'"),
        ({"seed": -1}, r"seed: expected a number from 0 to 4294967295; got -1\. Pass"),
        ({"seed": 2**32}, "got 4294967296"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_written(
    wrong: dict[str, object], pattern: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=pattern):
        train(LINE, options(tmp_path / "out", **wrong))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["", "run", "runs/one"])
def test_a_file_in_the_place_of_the_folder_is_refused_before_the_data_are_read(
    below: str, tmp_path: Path
) -> None:
    place = tmp_path / "file"
    place.write_text("mine")
    unread = replace(LINE, load=lambda: pytest.fail("the data were read"))
    with pytest.raises(ValueError, match=r"out: expected a folder.*the file .*file\."):
        train(unread, options(place / below))
    assert place.read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    with pytest.raises(ValueError, match="out: expected a folder that can be written"):
        train(LINE, options(tmp_path / "runs" / "one"))


def test_a_seed_beside_a_resume_is_said_to_be_left(tmp_path: Path) -> None:
    train(LINE, options(tmp_path, epochs=1))
    said: list[str] = []
    train(LINE, options(tmp_path, epochs=2, resume=tmp_path), said.append)
    assert len(said) == 1
    train(LINE, options(tmp_path, epochs=3, seed=9, resume=tmp_path), said.append)
    assert said[2:] == ["seed: that of the checkpoint is kept"]


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_that_is_past_its_last_epoch_says_so(tmp_path: Path, epochs: int) -> None:
    first, said = train(LINE, options(tmp_path / "a", epochs=2)), list[str]()
    rest = options(tmp_path / "b", epochs=epochs, resume=tmp_path / "a")
    again = train(LINE, rest, said.append)
    assert said[1:] == ["already at epoch 2: nothing to train"]
    assert (again.steps, again.figure) == (first.steps, first.figure)
    # What is printed as the checkpoint is there.
    assert train(LINE, replace(rest, resume=again.checkpoint)).steps == first.steps


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(LINE, options(tmp_path, epochs=1))

    def load_wider() -> Problem:
        return replace(load(), build_model=lambda: Model(nn.Linear(3, 2)))

    wider = replace(LINE, load=load_wider)
    with pytest.raises(CheckpointError, match="does not fit"):
        train(wider, options(tmp_path / "other", resume=tmp_path))


def test_processes_without_a_strategy_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="Pass --strategy mirrored"):
        train(LINE, options(tmp_path))


def test_a_task_may_bound_the_threads_for_its_time(tmp_path: Path) -> None:
    seen: list[int] = []
    torch.set_num_threads(3)
    bounded = replace(LINE, num_threads=2)
    train(
        bounded,
        options(tmp_path, epochs=1),
        lambda _: seen.append(torch.get_num_threads()),
    )
    assert seen == [2]
    assert torch.get_num_threads() == 3


def test_the_device_can_be_named(tmp_path: Path) -> None:
    outcome = train(LINE, options(tmp_path, epochs=1, device="cpu"))
    assert outcome.steps == 4


def test_one_mirrored_process_gives_the_same_as_none(tmp_path: Path) -> None:
    alone = train(LINE, options(tmp_path / "a"))
    mirrored = train(LINE, options(tmp_path / "b", strategy="mirrored", device="cpu"))
    assert alone.history == mirrored.history
