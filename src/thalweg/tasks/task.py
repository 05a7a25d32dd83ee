"""What a task is: real data, a model, how to train it, and a figure to judge it by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from thalweg.training import Model


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        x: What the model is called with: a NumPy array, a tensor, or a dict of such,
            which is passed by keywords.
        y: Targets, an array or a tensor with one row for each row of x.
    """

    x: Any
    y: Any


@dataclass(frozen=True)
class Problem:
    """A task with its data in memory.

    Attributes:
        train: What is fitted.
        test: What is held out; it is evaluated after each epoch and never fitted.
        build_model: Makes an untrained model; the seed is set by the caller.
        loss: As for `Model.compile`.
        metrics: As for `Model.compile`.
        figure: From the logs of an evaluation of `test` to the task's figure.
        report: Lines that show what the trained model can do.
    """

    train: Split
    test: Split
    build_model: Callable[[], Model]
    loss: Any
    metrics: tuple[Any, ...]
    figure: Callable[[Mapping[str, float]], float]
    report: Callable[[Model], list[str]]


@dataclass(frozen=True)
class Task:
    """A task by name. A module of this package that has one as `TASK` is registered.

    Attributes:
        name: What the command line calls it.
        summary: One line for the list of tasks.
        figure_name: Name of the figure, such as "test_accuracy".
        optimizer: The optimizer's name where none is chosen.
        learning_rate: Its learning rate.
        epochs: Passes over the training data.
        batch_size: Rows in a batch.
        load: Reads the data; deterministic.
        higher_is_better: Whether a higher figure is a better one.
        num_threads: At most so many threads: on small matrices more of them only wait
            for each other, for a very long time where the machine is busy. None
            leaves torch's number.
    """

    name: str
    summary: str
    figure_name: str
    optimizer: str
    learning_rate: float
    epochs: int
    batch_size: int
    load: Callable[[], Problem]
    higher_is_better: bool = False
    num_threads: int | None = None
