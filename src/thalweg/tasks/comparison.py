"""Compare optimizers on a task: the same budget, data, first values and grid for each.

Each optimizer is trained with some learning rates around its default, each with some
seeds. An optimizer stands where its best rate leaves it, and where the seeds of two of
them overlap, nothing is said to be better.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from thalweg import optimizers
from thalweg.errors import message
from thalweg.tasks.task import Problem, Task
from thalweg.tasks.training_run import at_most_threads, evaluate, set_seeds

_STEP = 4.0


@dataclass(frozen=True)
class Grid:
    """What every optimizer is given, the same for each.

    Attributes:
        rates: Learning rates to try, an odd number: the default, and as many above as
            below, each four times the one before.
        seeds: Runs with each of them.
        epochs: Passes over the training data; the task's own number by default.
        batch_size: Rows in a batch; the task's own number by default.
    """

    rates: int = 3
    seeds: int = 3
    epochs: int | None = None
    batch_size: int | None = None

    def around(self, default: float) -> list[float]:
        """The learning rates around a default.

        Example:
            >>> Grid(rates=3).around(0.01)
            [0.0025, 0.01, 0.04]
        """
        half = self.rates // 2
        return [default * _STEP**power for power in range(-half, half + 1)]

    def check(self) -> None:
        """Refuse numbers that are no counts.

        Raises:
            ValueError: If one is below 1, or ``rates`` is even.
        """
        for name in ("rates", "seeds", "epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                action = f"Pass --{name.replace('_', '-')} 1 or more."
                raise ValueError(message(name, "a number ≥ 1", str(value), action))
        if self.rates % 2 == 0:
            action = "The default is in the middle: pass 1, 3, 5 …"
            raise ValueError(message("rates", "an odd number", str(self.rates), action))


@dataclass(frozen=True)
class Standing:
    """What an optimizer reached.

    Attributes:
        optimizer: Its name.
        learning_rate: The best of its rates, by the mean over the seeds.
        figures: The task's figure with that rate, for each seed.
        seconds: How long `fit` took, the median of all its runs.
        is_at_edge: Whether a rate beyond those tried may be better still.
    """

    optimizer: str
    learning_rate: float
    figures: tuple[float, ...]
    seconds: float
    is_at_edge: bool

    @property
    def mean(self) -> float:
        """Mean of the figures; NaN if a run has failed."""
        return fmean(self.figures)


def compare(
    task: Task,
    names: Sequence[str],
    grid: Grid,
    announce: Callable[[str], None] | None = None,
) -> list[Standing]:
    """Train a task with several optimizers.

    Args:
        task: What to train.
        names: Names of optimizers, each once.
        grid: What each is given.
        announce: Is told of each optimizer when it is done.

    Returns:
        Where they stand, the best first.

    Raises:
        ValueError: If a name is unknown or given twice, or the grid is no grid.
    """
    grid.check()
    found: list[Any] = [optimizers.get(name) for name in names]
    chosen = [type(one).__name__ for one in found]
    if len(set(chosen)) < len(chosen) or not chosen:
        action = "Name at least one, and each once."
        raise ValueError(message("optimizers", "different names", str(chosen), action))
    rates = [grid.around(one.learning_rate) for one in found]
    problem, standings = task.load(), []
    with at_most_threads(task.num_threads):
        for name, own in zip(chosen, rates, strict=True):
            standing = _standing(task, problem, name, own, grid)
            standings.append(standing)
            if announce is not None:
                announce(_told(task, standing))
    return sorted(standings, key=lambda one: _loss(task, one.mean))


def verdict(task: Task, standings: Sequence[Standing]) -> str:
    """What a comparison shows, in a sentence.

    Args:
        task: The task.
        standings: Of `compare`.

    Returns:
        Which optimizer is better than all others, with every seed, or that this cannot
        be said, as of one alone.
    """
    best, others = standings[0], standings[1:]
    if not others:
        return f"{best.optimizer} is the only one: name others to compare it with"
    worst = max(_loss(task, figure) for figure in best.figures)
    near = [
        other.optimizer
        for other in others
        if min(_loss(task, figure) for figure in other.figures) <= worst
    ]
    if near:
        return f"no clear difference between {', '.join([best.optimizer, *near])}"
    if len(best.figures) < 2:
        return f"{best.optimizer} is best, in too few runs to say more"
    return f"{best.optimizer} is best, with every seed"


def _standing(
    task: Task, problem: Problem, name: str, rates: Sequence[float], grid: Grid
) -> Standing:
    runs = {
        rate: [
            _run(task, problem, name, rate, seed, grid) for seed in range(grid.seeds)
        ]
        for rate in rates
    }
    figures = {rate: tuple(figure for figure, _ in own) for rate, own in runs.items()}
    best = min(rates, key=lambda rate: _loss(task, fmean(figures[rate])))
    seconds = median(taken for own in runs.values() for _, taken in own)
    is_at_edge = len(rates) > 1 and best in (rates[0], rates[-1])
    return Standing(name, best, figures[best], seconds, is_at_edge)


def _run(
    task: Task, problem: Problem, name: str, rate: float, seed: int, grid: Grid
) -> tuple[float, float]:
    """The figure of one run, and the seconds that `fit` took."""
    set_seeds(seed)
    config = {"class_name": name, "config": {"learning_rate": rate}}
    size = grid.batch_size or task.batch_size
    model = problem.build_model()
    optimizer = optimizers.get(config)
    model.compile(optimizer, loss=problem.loss, metrics=list(problem.metrics))
    start = time.perf_counter()
    model.fit(
        problem.train.x,
        problem.train.y,
        batch_size=size,
        epochs=grid.epochs or task.epochs,
        verbose=0,
    )
    taken = time.perf_counter() - start
    return problem.figure(evaluate(problem, model, size)), taken


def _loss(task: Task, figure: float) -> float:
    """A figure as a number that is lower where it is better; NaN is the worst."""
    if math.isnan(figure):
        return math.inf
    return -figure if task.higher_is_better else figure


def _told(task: Task, standing: Standing) -> str:
    name = task.figure_name.replace("_", " ")
    rate = f"learning rate {standing.learning_rate:g}"
    return f"{standing.optimizer}: {name} {standing.mean:.4f} with {rate}"
