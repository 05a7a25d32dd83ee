"""`thalweg convert`: a checkpoint of what `torch.save` has written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Annotated, Any

import typer

from thalweg.errors import message, nearest


def convert(
    state: Annotated[
        Path, typer.Argument(help="File of torch.save with an optimizer's state dict.")
    ],
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint to make.")],
    module: Annotated[
        str,
        typer.Option(help="FILE.py:FUNCTION that returns (model, optimizer); it runs."),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(
            help="The model's weights: safetensors, or a state dict; by default as "
            "the function gave them."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint.")
    ] = False,
) -> None:
    """Make a checkpoint of a model and an optimizer's state of torch."""
    _check_paths(state, checkpoint, weights, overwrite)
    model, optimizer = _made(module)
    # Imported when the command runs: this is where torch comes in.
    conversion = import_module("thalweg.interop.conversion")
    path = conversion.convert(
        *(state, checkpoint, model, optimizer), weights=weights, overwrite=overwrite
    )
    if weights is None:
        typer.echo(f"weights: as {module.rpartition(':')[2]}() gave them")
    typer.echo(f"checkpoint: {path}")


def _check_paths(
    state: Path, checkpoint: Path, weights: Path | None, overwrite: bool
) -> None:
    if not state.is_file():
        expected, action = "a file of torch.save", "Name one that is there."
        raise ValueError(message("convert", expected, f"no file {state}", action))
    if weights is not None and not weights.exists():
        expected, action = "a file of weights", "Name one that is there."
        raise ValueError(message("--weights", expected, f"no file {weights}", action))
    if os.path.lexists(checkpoint) and not overwrite:
        expected, got = "a path where nothing stands", f"the existing {checkpoint}"
        action = "Choose another path, or pass --overwrite."
        raise ValueError(message("convert", expected, got, action))


def _made(place: str) -> tuple[Any, Any]:
    made = _function(place)()
    torch = import_module("torch")
    is_pair = isinstance(made, tuple | list) and len(made) == 2
    if not is_pair or not isinstance(made[0], torch.nn.Module):
        expected, got = "a model and its optimizer", type(made).__name__
        action = "Let the function return (model, optimizer)."
        raise ValueError(message(f"--module {place}", expected, got, action))
    return made[0], made[1]


def _function(place: str) -> Callable[[], Any]:
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not file or path.suffix != ".py" or not path.is_file():
        expected, action = "FILE.py:FUNCTION", "Name a file that is there."
        raise ValueError(message("--module", expected, repr(place), action))
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--module: {path} cannot be imported.")
    found = module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # as for a script
    try:
        spec.loader.exec_module(found)
    finally:
        sys.path.pop(0)
    function = getattr(found, name, None)
    if not callable(function):
        known = [n for n, v in vars(found).items() if callable(v) and n[0] != "_"]
        expected, action = f"a function {name!r}", nearest(name, known)
        raise ValueError(message(f"--module {file}", expected, "none", action))
    return function
