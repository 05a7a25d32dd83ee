"""`thalweg compare`: several optimizers on one task, with the same budget for each."""

from __future__ import annotations

import json as json_text
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

import thalweg
from thalweg.cli.optimizers import state_size
from thalweg.cli.text import columns

if TYPE_CHECKING:
    from thalweg.tasks import Standing, Task


def compare(
    task: Annotated[
        str, typer.Argument(help="What to train: digits, text or skipgram.")
    ],
    optimizers: Annotated[
        str, typer.Option(help="Names, with commas between.")
    ] = "sgd,rmsprop,adam,lion",
    rates: Annotated[
        int, typer.Option(help="Learning rates around each one's default: 1, 3, 5 …")
    ] = 3,
    seeds: Annotated[int, typer.Option(help="Runs with each of them.")] = 3,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data; the task's by default.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows in a batch.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="End with a line of JSON.")
    ] = False,
) -> None:
    """Compare optimizers: rates around their defaults, the same seeds and epochs."""
    # Reached through the lazy table: this is where torch is imported.
    grid = thalweg.tasks.Grid(rates, seeds, epochs, batch_size)
    chosen = thalweg.tasks.get(task)
    names = [name.strip() for name in optimizers.split(",") if name.strip()]
    standings = thalweg.tasks.compare(chosen, names, grid, typer.echo)
    typer.echo()
    for line in table(chosen, standings):
        typer.echo(line)
    if json:
        found = [_plain(standing) for standing in standings]
        typer.echo(json_text.dumps({"task": task, "standings": found}))


def table(task: Task, standings: Sequence[Standing]) -> Iterator[str]:
    """Lines of a comparison.

    Args:
        task: The task.
        standings: Of `tasks.compare`, the best first.

    Yields:
        A row for each optimizer, a note where its best rate is the last one tried, and
        what can be said.
    """
    head = ("optimizer", task.figure_name, "of all seeds", "rate", "bytes", "seconds")
    yield from columns([head, *map(_row, standings)])
    yield ""
    for one in standings:
        if one.is_at_edge:
            rate = f"{one.learning_rate:g}"
            yield f"{one.optimizer}: {rate} is at the edge; try more --rates"
    yield thalweg.tasks.verdict(task, standings)


def _row(one: Standing) -> tuple[str, ...]:
    # Imported when the command runs: this is where torch comes in.
    describe = import_module("thalweg.optimizers.catalogue").describe
    low, high = min(one.figures), max(one.figures)
    size = state_size(describe(one.optimizer))
    return (
        one.optimizer,
        f"{one.mean:.4f}",
        f"{low:.4f}–{high:.4f}",
        f"{one.learning_rate:g}",
        size,
        f"{one.seconds:.2f}",
    )


def _plain(one: Standing) -> dict[str, Any]:
    """A standing as values of JSON, which has no NaN."""
    figures = [figure if math.isfinite(figure) else None for figure in one.figures]
    return {**asdict(one), "figures": figures}
