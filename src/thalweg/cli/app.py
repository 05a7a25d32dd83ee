"""The command line's entry: its commands, and how a refusal is shown."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import thalweg
from thalweg.cli.bench import bench
from thalweg.cli.compare import compare
from thalweg.cli.convert import convert
from thalweg.cli.diff import diff
from thalweg.cli.doctor import doctor
from thalweg.cli.inspect import inspect
from thalweg.cli.optimizers import optimizers
from thalweg.cli.train import train
from thalweg.cli.verify import verify

app = typer.Typer(
    name="thalweg",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help: the decorated one imports a Markdown parser, which takes longer than
    # everything else together.
    rich_markup_mode=None,
)
for command in (
    *(train, compare, optimizers, bench, doctor),
    *(inspect, verify, diff, convert),
):
    app.command()(command)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"thalweg {thalweg.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and stop.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Train PyTorch models with optimizers whose rule is written once."""
    del version


def main() -> None:
    """Run the command line; a refusal is one message on stderr and exit status 2."""
    try:
        app()
    except (ValueError, ModuleNotFoundError, OSError) as error:
        typer.echo(f"thalweg: {error}", err=True)
        sys.exit(2)
