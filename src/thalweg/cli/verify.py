"""`thalweg verify`: read a checkpoint through, and say whether it is sound."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from thalweg.cli.text import counted
from thalweg.errors import CheckpointError


def verify(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint's folder.")],
) -> None:
    """Check sizes, structure and checksums of a checkpoint; status 1 if damaged."""
    try:
        # Imported when the command runs: this is where torch comes in.
        manifest = import_module("thalweg.checkpoint").verify(checkpoint)
    except (CheckpointError, OSError) as problem:
        typer.echo(f"thalweg: {problem}", err=True)
        raise typer.Exit(1) from None
    size = sum(file.bytes for file in manifest.files.values())
    tensors = counted(len(manifest.tensors), "tensor")
    files = counted(len(manifest.files), "file")
    typer.echo(f"sound: {tensors}, {files}, {counted(size, 'byte')}")
