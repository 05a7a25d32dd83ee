"""`thalweg optimizers`: what there is to choose from, and what each costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from thalweg.cli.text import columns

if TYPE_CHECKING:
    from thalweg.optimizers.catalogue import Description

_HEAD = ("name", "slots", "sparse", "bytes")
_LEGEND = (
    "bytes: of slots beside each float32 parameter; [what an argument asks for]",
    "sparse: the rows that a gradient of some rows moves",
    "More about one of them: thalweg optimizers NAME",
)
_UNITS = "Units: U is that of the variable, L that of the loss, 1 a plain number."


def optimizers(
    name: Annotated[
        str | None, typer.Argument(help="Tell all about this one, such as adam.")
    ] = None,
) -> None:
    """List all optimizers with their slots, bytes per parameter, and sources."""
    # Imported when the command runs: this is where torch comes in.
    import_module("thalweg.optimizers")
    catalogue = import_module("thalweg.optimizers.catalogue")
    lines = (
        table(catalogue.catalogue())
        if name is None
        else details(catalogue.describe(name))
    )
    for line in lines:
        typer.echo(line)


def table(found: Sequence[Description]) -> Iterator[str]:
    """Lines of a table of optimizers.

    Args:
        found: The optimizers.

    Yields:
        A heading, a line for each optimizer, and what the columns mean.
    """
    rows = [_HEAD, *map(_row, found)]
    sources = ["source", *(one.source for one in found)]
    for line, source in zip(columns(rows), sources, strict=True):
        yield f"{line}  {source}"
    yield ""
    yield from _LEGEND


def details(one: Description) -> Iterator[str]:
    """Everything about one optimizer.

    Args:
        one: The optimizer.

    Yields:
        Its constructor, its row of the table, its documentation, and what units mean
        there.
    """
    yield one.arguments
    yield ""
    names = dict(zip(_HEAD[1:], _row(one)[1:], strict=True))
    yield "; ".join(f"{name}: {text}" for name, text in names.items())
    yield ""
    yield from one.text.splitlines()
    if "Unit " in one.text:
        yield ""
        yield _UNITS


def state_size(one: Description) -> str:
    """Bytes that an optimizer keeps beside each float32 parameter, as text.

    Args:
        one: The optimizer.

    Returns:
        The number, or what there is for each row.
    """
    return f"{one.row_bytes} a row" if one.row_bytes else str(one.state_bytes)


def _row(one: Description) -> tuple[str, ...]:
    slots = [*one.slots, *(f"[{slot}]" for slot in one.options)]
    extra = f" [{one.most_bytes}]" if one.most_bytes > one.state_bytes else ""
    rows = "its rows" if one.moves_rows else "all rows"
    return (one.name, " ".join(slots), rows, state_size(one) + extra)
