"""`thalweg diff`: what is different in two checkpoints."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from thalweg.cli.text import counted, printable


def diff(
    first: Annotated[Path, typer.Argument(help="A checkpoint's folder.")],
    second: Annotated[Path, typer.Argument(help="Another one's.")],
) -> None:
    """Show what differs in two checkpoints; status 1 if something does."""
    # Imported when the command runs: this is where torch comes in.
    compare = import_module("thalweg.checkpoint.comparison").compare
    count = 0
    for difference in compare(first, second):
        count += 1
        typer.echo(f"{printable(difference.key)}: {printable(difference.text)}")
    typer.echo(counted(count, "difference") if count else "no difference")
    if count:
        raise typer.Exit(1)
