"""Train a task from start to end: data, strategy, fit, checkpoint, curves, figure."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from thalweg import distribute, optimizers
from thalweg.checkpoint import Checkpoint, RandomState
from thalweg.errors import CheckpointError, message, nearest
from thalweg.tasks.curves import draw_curves
from thalweg.tasks.task import Problem, Task
from thalweg.training import Model
from thalweg.training.callbacks import Callback

CHECKPOINT_FOLDER = "checkpoint"
HISTORY_FILE = "history.json"
History = dict[str, list[float]]
STRATEGIES = ("default", "mirrored")
_LAST_SEED = 2**32 - 1  # of NumPy


@dataclass(frozen=True)
class Options:
    """How to train; None stands for the task's own value.

    Attributes:
        optimizer: A name of `optimizers.names()`.
        learning_rate: Its learning rate.
        epochs: The epoch to stop after, counted from the first run on.
        batch_size: Rows in a batch.
        seed: Of the model's first values and the order of the rows; 0 by default, and
            of no effect on a run that goes on.
        out: Folder for checkpoint, curves and history.
        strategy: One of `STRATEGIES`.
        resume: Checkpoint to go on from, or the folder of an earlier run.
        save_every: Save after so many steps, too, not only after epochs.
        device: Where to train, such as "cuda"; chosen by the strategy by default.
        verbose: As for `Model.fit`: 0 silent, 1 a live bar on a terminal and lines
            elsewhere, 2 a line an epoch.
    """

    optimizer: str | None = None
    learning_rate: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    seed: int | None = None
    out: Path = Path("runs")
    strategy: str = "default"
    resume: Path | None = None
    save_every: int | None = None
    device: str | None = None
    verbose: int = 1


@dataclass(frozen=True)
class Outcome:
    """What a training run gave.

    Attributes:
        task: The task's name.
        figure_name: The name of its figure.
        figure: The figure on the held-out data.
        steps: Applied steps of the optimizer, those before a resume included.
        seconds: How long `fit` took.
        checkpoint: The folder that `--resume` takes.
        curves: The drawn curves, or None without matplotlib.
        history: Each number of the logs, one value an epoch.
        report: Lines that show what the model can do.
    """

    task: str
    figure_name: str
    figure: float
    steps: int
    seconds: float
    checkpoint: Path
    curves: Path | None
    history: History = field(repr=False)
    report: list[str] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """The outcome as plain JSON values, without history and report."""
        return {
            "task": self.task,
            self.figure_name: self.figure,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "checkpoint": str(self.checkpoint),
            "curves": None if self.curves is None else str(self.curves),
        }


@dataclass
class _Run:
    """A model with all that is saved beside it."""

    model: Model
    checkpoint: Checkpoint
    history: History
    folder: Path

    def save(self, logs: Mapping[str, float]) -> None:
        """Keep an epoch: its logs, and a checkpoint that is whole or the last one."""
        for name, value in logs.items():
            self.history.setdefault(name, []).append(float(value))
        self.keep()

    def keep(self) -> None:
        """Save where the run stands, in the middle of an epoch, too."""
        path = self.folder / CHECKPOINT_FOLDER
        self.checkpoint.save(path, overwrite=True, metadata={"history": self.history})


class _SaveEpoch(Callback):
    def __init__(self, run: _Run, save_every: int | None) -> None:
        super().__init__()
        self._run, self._save_every = run, save_every

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save in the middle of an epoch, where that was asked for."""
        if self._save_every and (batch + 1) % self._save_every == 0:
            self._run.keep()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Save after every epoch, so that a broken run can go on."""
        del epoch
        self._run.save(logs or {})


def train(
    task: Task, options: Options, announce: Callable[[str], None] | None = None
) -> Outcome:
    """Train a task and judge it.

    Args:
        task: What to train.
        options: How.
        announce: Is told what is trained before the first epoch, line by line.

    Returns:
        The outcome, alike on every rank.

    Raises:
        ValueError: If the optimizer, the strategy, the device, the folder or a number
            is not valid.
        CheckpointError: If there is no checkpoint to resume, or it does not fit.
    """
    _check(options)
    # Made again in the strategy's scope: here a wrong name or number is found before
    # the data are read.
    _optimizer(task, options)
    strategy = _strategy(options)
    set_seeds(options.seed or 0)
    problem = task.load()
    with strategy.scope(), at_most_threads(task.num_threads):
        run = _prepare(task, problem, options)
        for line in _introduction(task, problem, options, run):
            if announce is not None:
                announce(line)
        seconds = _fit(task, problem, options, run)
        logs = evaluate(problem, run.model, options.batch_size or task.batch_size)
        report = problem.report(run.model)
    return Outcome(
        task=task.name,
        figure_name=task.figure_name,
        figure=problem.figure(logs),
        steps=int(run.model.optimizer.iterations),
        seconds=seconds,
        checkpoint=run.folder / CHECKPOINT_FOLDER,
        curves=_draw(run),
        history=run.history,
        report=report,
    )


def _check(options: Options) -> None:
    for name in ("epochs", "batch_size", "save_every"):
        value = getattr(options, name)
        if value is not None and value < 1:
            action = f"Pass --{name.replace('_', '-')} 1 or more."
            raise ValueError(message(name, "a number ≥ 1", str(value), action))
    if options.seed is not None and not 0 <= options.seed <= _LAST_SEED:
        expected, got = f"a number from 0 to {_LAST_SEED}", str(options.seed)
        raise ValueError(message("seed", expected, got, "Pass another --seed."))
    _check_folder(options.out.absolute())
    _check_processes(options.strategy)


def _check_folder(out: Path) -> None:
    """Refuse a folder that the first epoch could not be saved in."""
    place = next(one for one in (out, *out.parents) if one.exists())
    if not place.is_dir():
        expected, got = "a folder, or a place for one", f"the file {place}"
        raise ValueError(message("out", expected, got, "Pass another --out."))
    if not os.access(place, os.W_OK | os.X_OK):
        expected, got = "a folder that can be written", str(place)
        raise ValueError(message("out", expected, got, "Pass another --out."))


def _check_processes(strategy: str) -> None:
    if strategy not in STRATEGIES:
        action = nearest(strategy, STRATEGIES)
        got = repr(strategy)
        raise ValueError(message("strategy", "a known strategy", got, action))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and strategy == "default":
        got = f"{processes} processes that would not know of each other"
        action = "Pass --strategy mirrored."
        raise ValueError(message("strategy default", "one process", got, action))


def _strategy(options: Options) -> distribute.Strategy:
    if options.device is not None:
        _check_device(options.device)
    if options.strategy == "mirrored":
        return distribute.MirroredStrategy(options.device)
    if options.device is not None:
        return distribute.OneDeviceStrategy(options.device)
    return distribute.get_strategy()


def _check_device(device: str) -> None:
    try:
        # Read, too: "meta" makes tensors that hold nothing.
        torch.zeros(1, device=device).item()
    # torch's errors about devices are of many kinds.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        expected, reason = "a device of this machine", str(error).partition("\n")[0]
        action = f"Pass another, such as cpu ({reason})."
        raise ValueError(message("device", expected, repr(device), action)) from error


def _optimizer(task: Task, options: Options) -> optimizers.Optimizer:
    """Make the optimizer; the task's learning rate belongs to the task's optimizer."""
    rate = options.learning_rate
    if rate is None and options.optimizer is None:
        rate = task.learning_rate
    config = {} if rate is None else {"learning_rate": rate}
    name = options.optimizer or task.optimizer
    return optimizers.get({"class_name": name, "config": config})


def set_seeds(seed: int) -> None:
    """Seed every source of random numbers that a run draws from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def at_most_threads(most: int | None) -> Iterator[None]:
    """Let torch use at most so many threads, and put its number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, most or before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prepare(task: Task, problem: Problem, options: Options) -> _Run:
    """Build, compile and, where asked, restore; nothing is written to disk."""
    chosen = _optimizer(task, options)
    model = problem.build_model()
    model.compile(chosen, loss=problem.loss, metrics=list(problem.metrics))
    checkpoint = Checkpoint(
        model=model,
        optimizer=chosen,
        position=model.data_position,
        figures=model.data_position.figures,
        random_state=RandomState(),
    )
    run = _Run(model, checkpoint, {}, options.out.absolute())
    if options.resume is not None:
        path = _resumed_folder(options.resume)
        keep = options.learning_rate is not None
        status = checkpoint.restore(path, hyper="keep" if keep else "checkpoint")
        status.assert_consumed()
        run.history.update(checkpoint.read_metadata(path).get("history", {}))
    return run


def _resumed_folder(path: Path) -> Path:
    folder = path / CHECKPOINT_FOLDER
    found = folder if folder.is_dir() else path
    if not found.is_dir():
        action = "Pass the folder that an earlier run printed as its checkpoint."
        text = message("resume", "a checkpoint", f"no folder {path}", action)
        raise CheckpointError(text)
    return found


def _introduction(
    task: Task, problem: Problem, options: Options, run: _Run
) -> Iterator[str]:
    count = sum(weight.numel() for weight in run.model.trainable_variables)
    rows = f"{len(problem.train.y):,} rows to fit, {len(problem.test.y):,} held out"
    epoch = run.model.data_position.epoch
    start = f", after epoch {epoch}" if epoch else ""
    yield f"{task.name}: {task.summary}; {count:,} parameters; {rows}{start}"
    if options.resume is not None and options.seed is not None:
        yield "seed: that of the checkpoint is kept"
    if _is_done(task, options, run):
        yield f"already at epoch {epoch}: nothing to train"


def _is_done(task: Task, options: Options, run: _Run) -> bool:
    return run.model.data_position.epoch >= (options.epochs or task.epochs)


def _fit(task: Task, problem: Problem, options: Options, run: _Run) -> float:
    start = time.perf_counter()
    if _is_done(task, options, run):
        run.keep()  # no epoch ends here, and the folder may be another one
        return time.perf_counter() - start
    run.model.fit(
        problem.train.x,
        problem.train.y,
        batch_size=options.batch_size or task.batch_size,
        epochs=options.epochs or task.epochs,
        validation_data=(problem.test.x, problem.test.y),
        callbacks=[_SaveEpoch(run, options.save_every)],
        verbose=options.verbose,
    )
    return time.perf_counter() - start


def evaluate(problem: Problem, model: Model, batch_size: int) -> dict[str, float]:
    """The logs of a problem's held-out data."""
    x, y = problem.test.x, problem.test.y
    figures = model.evaluate(x, y, batch_size=batch_size, verbose=0, return_dict=True)
    return cast(dict[str, float], figures)


def _draw(run: _Run) -> Path | None:
    if distribute.rank() != 0:
        return None
    text = json.dumps(run.history, indent=2)
    (run.folder / HISTORY_FILE).write_text(text + "\n", encoding="utf-8")
    return draw_curves(run.history, run.folder / "curves.png")
