"""`thalweg inspect`: what a checkpoint holds, without reading its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli.text import columns, counted, printable

if TYPE_CHECKING:
    from thalweg.checkpoint import Manifest

_RATE = re.compile(r"(\d+\.)?(learning_rate|lr)")


def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint's folder.")],
) -> None:
    """List names, shapes, dtypes and bytes of a checkpoint, step and learning rate."""
    # Imported when the command runs: this is where torch comes in.
    manifest = import_module("thalweg.checkpoint").read_manifest(checkpoint)
    for line in describe(manifest):
        typer.echo(line)


def describe(manifest: Manifest) -> Iterator[str]:
    """Say in lines what a checkpoint holds.

    Args:
        manifest: Its manifest.

    Yields:
        Step, learning rates, a table of the tensors, aliases, and names of values.
    """
    yield f"step: {'unknown' if manifest.step is None else f'{manifest.step:,}'}"
    for owner, rate in _rates(manifest):
        yield f"learning rate: {rate} ({printable(owner)})"
    files = sum(file.bytes for file in manifest.files.values())
    yield f"files: {len(manifest.files):,}, {files:,} bytes"
    yield ""
    rows = [("name", "shape", "dtype", "bytes")]
    total = 0
    for key, entry in sorted(manifest.tensors.items()):
        size = entry.dtype.itemsize
        for extent in entry.shape:
            size *= extent
        total += size
        shape = " × ".join(map(str, entry.shape)) or "number"
        dtype = str(entry.dtype).removeprefix("torch.")
        rows.append((printable(key), shape, dtype, f"{size:,}"))
    count = counted(len(rows) - 1, "tensor")
    yield from columns([*rows, (count, "", "", f"{total:,}")])
    for alias, key in sorted(manifest.aliases.items()):
        yield f"{printable(alias)} is {printable(key)}"
    if manifest.values:
        yield f"values: {', '.join(map(printable, sorted(manifest.values)))}"


def _rates(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Optimizers' keys, and their learning rates."""
    encoding, torch = (
        import_module("thalweg.checkpoint.encoding"),
        import_module("torch"),
    )
    for owner, table in manifest.hyperparameters.items():
        for name, content in table.items():
            if _RATE.fullmatch(name):
                yield owner, _shown(encoding.decode(content, owner))
    for owner, content in manifest.values.items():
        # An optimizer that was saved by its state dict has groups there.
        if isinstance(content, dict) and isinstance(content.get("param_groups"), list):
            nothing = torch.empty(0)
            value = encoding.decode(content, owner, lambda _, empty=nothing: empty)
            for group in value["param_groups"]:
                if isinstance(group, dict) and "lr" in group:
                    yield owner, _shown(group["lr"])


def _shown(rate: Any) -> str:
    if isinstance(rate, dict) and isinstance(rate.get("config"), dict):
        inside = ", ".join(
            f"{k}={v}" for k, v in rate["config"].items() if v is not None
        )
        return printable(f"{rate.get('class_name')}({inside})")
    return f"{rate:g}" if isinstance(rate, float) else printable(str(rate))
