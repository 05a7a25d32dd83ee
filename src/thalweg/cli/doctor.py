"""`thalweg doctor`: say what this machine has, and whether kernels are right."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from thalweg.testing.machine import Finding

_WIDTH = 22


def doctor() -> None:
    """Show compiler, threads, GPU and cache, and check a kernel; status 1 if wrong."""
    is_wrong = False
    # Imported when the command runs: this is where torch comes in.
    for finding in import_module("thalweg.testing.machine").examine():
        typer.echo(_line(finding))
        is_wrong = is_wrong or finding.is_wrong
    typer.echo(
        "Something is wrong: see the lines with !." if is_wrong else "All is well."
    )
    if is_wrong:
        raise typer.Exit(1)


def _line(finding: Finding) -> str:
    mark = "!" if finding.is_wrong else " "
    return f"{mark} {finding.name:<{_WIDTH}}{finding.text}"
