"""`thalweg train`: train one of the tasks, show how it goes, say what it gave."""

from __future__ import annotations

import json as json_text
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import thalweg
from thalweg.cli.report import describe

if TYPE_CHECKING:
    from thalweg.tasks import Options, Outcome


def train(
    task: Annotated[
        str, typer.Argument(help="What to train: digits, text or skipgram.")
    ],
    optimizer: Annotated[
        str | None, typer.Option(help="Name of an optimizer, such as adam or sgd.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Step size; the task's own by default.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="The epoch to stop after.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows in a batch.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of first values and order; 0 by default.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what is written; by default the run that is resumed, "
            "or runs/TASK."
        ),
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="default, or mirrored under torchrun.")
    ] = "default",
    resume: Annotated[
        Path | None, typer.Option(help="Go on from this checkpoint or run.")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Save after so many steps, too.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on a line.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Where to train, such as cpu or cuda.")
    ] = None,
) -> None:
    """Train a small task on real data that needs no download."""
    # Reached through the lazy table: this is where torch is imported.
    options = thalweg.tasks.Options(
        optimizer=optimizer,
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        out=out or _run_folder(resume) or Path("runs") / task,
        strategy=strategy,
        resume=resume,
        save_every=save_every,
        device=device,
    )
    _show(_train(task, options), json)


def _train(task: str, options: Options) -> Outcome:
    chosen = thalweg.tasks.get(task)
    return thalweg.tasks.train(chosen, options, announce=_print)


def _run_folder(resume: Path | None) -> Path | None:
    """The run that a checkpoint is part of: it goes on there."""
    if resume is None:
        return None
    if resume.name == "checkpoint":
        return resume.parent
    return resume if (resume / "checkpoint").is_dir() else None


def _show(outcome: Outcome, is_json: bool) -> None:
    for line in describe(outcome):
        _print(line)
    if is_json:
        _print(json_text.dumps(outcome.summary()))


def _print(line: str) -> None:
    """Print on the first of torchrun's processes only."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(line)
