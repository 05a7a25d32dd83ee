"""What there is to choose from: every optimizer with its state and its source."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from thalweg.optimizers import registry
from thalweg.optimizers.declarations import Slot

__all__ = ["Description", "catalogue", "describe"]

_BYTES = 4


@dataclass(frozen=True)
class Description:
    """An optimizer, as its class declares it.

    Attributes:
        name: Name of the class.
        slots: What it keeps beside every variable.
        options: Further slots, which exist where an argument asks for them.
        state_bytes: Bytes of the slots beside each number of a float32 variable.
        most_bytes: The same with all options.
        row_bytes: Bytes of the slots that have one number for each row.
        moves_rows: Whether a sparse gradient can leave the other rows alone.
        source: Where its formula comes from.
        arguments: The arguments of its constructor.
        text: Its documentation.
    """

    name: str
    slots: tuple[str, ...]
    options: tuple[str, ...]
    state_bytes: int
    most_bytes: int
    row_bytes: int
    moves_rows: bool
    source: str
    arguments: str
    text: str


def catalogue() -> list[Description]:
    """Describe every optimizer that `registry.names` knows, in that order.

    Example:
        >>> {found.name: found.state_bytes for found in catalogue()}["Adam"]
        8
    """
    return [describe(name) for name in registry.names()]


def describe(name: str) -> Description:
    """Describe one optimizer.

    Args:
        name: Its name, in any case.

    Raises:
        ValueError: If there is none of that name; the nearest is told.

    Example:
        >>> found = describe("adam")
        >>> found.slots, found.options, found.source
        (('m', 'v'), ('vhat',), 'Kingma and Ba, ICLR 2015')
    """
    optimizer: Any = registry.get(name)
    cls, active = type(optimizer), optimizer.active_slots()
    declared: dict[str, Slot] = cls._slots_declared
    further = {n: slot for n, slot in declared.items() if n not in active}
    text = inspect.getdoc(cls) or ""
    return Description(
        cls.__name__,
        tuple(active),
        tuple(further),
        _bytes(active, "like"),
        _bytes(declared, "like"),
        _bytes(active, "row"),
        optimizer._rows(optimizer._example()).rows is not None,
        _source(text),
        f"{cls.__name__}{inspect.signature(cls)}",
        text,
    )


def _bytes(slots: dict[str, Slot], shape: str) -> int:
    return sum(_BYTES for slot in slots.values() if slot.shape == shape)


def _source(text: str) -> str:
    """The first entry of a docstring's last section."""
    words = text.rpartition("Source:")[2].replace("`", "").split()
    return " ".join(words).partition(";")[0].rstrip(".")
