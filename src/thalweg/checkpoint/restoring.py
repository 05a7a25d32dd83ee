"""The only writer of a restore: called when everything has been found to fit."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from thalweg.checkpoint.encoding import decode
from thalweg.checkpoint.folder import Reader
from thalweg.checkpoint.graph import Graph, pending_slots
from thalweg.checkpoint.hyperparameters import (
    HyperPolicy,
    added_later,
    encode_hyperparameters,
    takes_new_hyperparameters,
)
from thalweg.checkpoint.keys import hyper_key
from thalweg.checkpoint.matching import Match
from thalweg.distribute.components import is_distributed
from thalweg.distribute.row_shards import sharded_rows
from thalweg.errors import CheckpointError, message
from thalweg.state import colocate_with, handle_of, place

logger = logging.getLogger(__name__)


def carry_out(graph: Graph, found: Match, reader: Reader, hyper: HyperPolicy) -> None:
    """Write saved values into the objects, and log hyperparameters that differed.

    What belongs to others comes first (hyperparameters, states, slots to be made),
    because only they can refuse; if one does, those before it are put back.

    Args:
        graph: The objects, by key.
        found: What goes where.
        reader: The opened checkpoint.
        hyper: With "keep", hyperparameters are left alone.

    Raises:
        CheckpointError: If hyperparameters differ and may not, an object refused its
            state, or a number would be another one; the others are as they were.
    """
    if hyper == "error-if-different" and found.hyper_differences:
        differences = "".join(f"\n  {line}" for line in found.hyper_differences)
        raise CheckpointError(
            f"Checkpoint.restore: {reader.folder} has other hyperparameters."
            f'{differences}\nNothing was changed. Pass hyper="checkpoint" or '
            'hyper="keep".'
        )
    _check_numbers(found, reader)
    _check_pending(graph, found, reader)
    _apply(graph, found, reader, hyper)
    kept = tuple(f"{key}: " for key in _kept_functions(graph, reader))
    for difference in found.hyper_differences:
        is_kept = difference.startswith(kept)
        outcome = "own function stays" if is_kept else "value was replaced"
        logger.warning("Checkpoint.restore: %s, whose %s.", difference, outcome)


def _check_numbers(found: Match, reader: Reader) -> None:
    """Refuse a count whose existing tensor is of a dtype that cannot say it."""
    for copy in found.copies:
        saved = reader.manifest.tensors[copy.saved].dtype
        if is_lazy(copy.target) or saved == copy.target.dtype:
            continue
        value = reader.read(copy.saved)
        if not value.to(copy.target.dtype).to(saved).equal(value):
            raise CheckpointError(
                message(
                    f"Checkpoint.restore: '{copy.key}'",
                    f"a number that {copy.target.dtype} can say",
                    f"{value.item()!r}",
                    "Restore into an optimizer that has not stepped, which takes any. "
                    "Nothing was changed.",
                )
            )


def _apply(graph: Graph, found: Match, reader: Reader, hyper: HyperPolicy) -> None:
    values = {key: _decode_value(saved, reader) for saved, key in found.values.items()}
    undo: list[Callable[[], object]] = []
    key = ""
    try:
        if hyper != "keep":
            for key in found.owners:
                _restore_hyperparameters(key, graph, reader, undo)
        for key, value in values.items():
            _restore_value(key, value, graph, undo)
        for creation in found.creations:
            owner = graph.owners[creation.owner]
            if not _waits(owner, creation.slot):
                key = creation.keys[0]
                tensor = _read_like(key, creation.variable, reader)
                owner.restore_slot_variable(creation.slot, creation.variable, tensor)
        for key, owner in _with_pending(graph):
            owner.restore_pending(*_pending_of(key, owner, found, reader))
        _check_made(graph, found, reader)
    except Exception as problem:
        for step in reversed(undo):
            with suppress(Exception):  # the one that refused may refuse again
                step()
        raise CheckpointError(
            f"Checkpoint {reader.folder}: '{key}' was refused ({problem}). "
            "No variable was written."
        ) from problem
    _copy_tensors(found, reader)
    for face in graph.faces:
        face.show_restored()


def _check_made(graph: Graph, found: Match, reader: Reader) -> None:
    """Refuse slots that took their value with another dtype: bits would be lost."""
    made = {
        (key, id(handle_of(variable)), name): slot.dtype
        for key, owner in graph.owners.items()
        for variable, name, slot in owner.slot_variables()
    }
    for creation in found.creations:
        key = next(iter(creation.keys.values()))
        saved = reader.manifest.tensors[key].dtype
        place = (creation.owner, id(creation.variable), creation.slot)
        if made.get(place, saved) != saved:
            kinds = f"{made[place]} where the checkpoint holds {saved}"
            raise TypeError(f"its optimizer made '{key}' of {kinds}")


# ------------------------------------------------- slots that are there at times


class SavedPart(NamedTuple):
    """What one rank saved of a slot: its shape, its dtype, and how to read it.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        read: Gives it placed as its variable is.
        read_whole: Gives it plain, on the variable's device.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]
    read_whole: Callable[[], torch.Tensor]


class SavedSlot(NamedTuple):
    """A slot that waited when it was saved; its optimizer knows what to make of it.

    Attributes:
        slot: Its name.
        variable: The variable.
        parts: What each rank saved, by number; one part where they were all alike.
        ranks: How many ranks saved one each, or 1.
        reduction: What they would have made of them.
    """

    slot: str
    variable: torch.Tensor
    parts: Mapping[int, SavedPart]
    ranks: int
    reduction: str


def _with_pending(graph: Graph) -> Iterator[tuple[str, Any]]:
    for key, owner in graph.owners.items():
        if hasattr(owner, "restore_pending"):
            yield key, owner


def _waits(owner: object, slot: str) -> bool:
    return slot in pending_slots(owner) and hasattr(owner, "restore_pending")


def _pending_of(
    key: str, owner: object, found: Match, reader: Reader
) -> tuple[list[SavedSlot], Callable[[torch.Tensor], torch.Tensor | None]]:
    """The saved slots of an optimizer that wait, and what its variables will be."""
    entries, pending = reader.manifest.tensors, pending_slots(owner)
    targets = {id(copy.target): copy.saved for copy in found.copies}

    def part(saved: str, variable: torch.Tensor) -> SavedPart:
        entry = entries[saved]
        place = saved, variable, reader
        reads = partial(_read_like, *place), partial(_read_beside, *place)
        return SavedPart(entry.shape, entry.dtype, *reads)

    def saved_value(tensor: torch.Tensor) -> torch.Tensor | None:
        saved = targets.get(id(handle_of(tensor)))
        return None if saved is None else reader.read(saved)

    slots = [
        SavedSlot(
            made.slot,
            made.variable,
            {number: part(saved, made.variable) for number, saved in made.keys.items()},
            *made.parts,
        )
        for made in found.creations
        if made.owner == key and made.slot in pending
    ]
    return slots, saved_value


def _check_pending(graph: Graph, found: Match, reader: Reader) -> None:
    """Ask optimizers whether what waited fits them, before anything is written."""
    for key, owner in _with_pending(graph):
        try:
            owner.check_pending(*_pending_of(key, owner, found, reader))
        except ValueError as problem:
            raise CheckpointError(
                f"Checkpoint {reader.folder}: '{key}' was refused. {problem} Nothing "
                "was changed."
            ) from problem


def _decode_value(key: str, reader: Reader) -> Any:
    return decode(
        reader.manifest.values[key], key, lambda name: reader.read(name).clone()
    )


def _restore_hyperparameters(
    key: str, graph: Graph, reader: Reader, undo: list[Callable[[], object]]
) -> None:
    owner = graph.owners[key]
    before = dict(owner.hyperparameters())
    saved = {
        name: decode(content, hyper_key(key, name))
        for name, content in reader.manifest.hyperparameters[key].items()
        if name in before or takes_new_hyperparameters(owner)
    }
    keep = getattr(owner, "keep_hyperparameters", None)
    undo.append(keep() if keep else lambda: owner.restore_hyperparameters(before))
    owner.restore_hyperparameters({**added_later(owner), **saved})


def _kept_functions(graph: Graph, reader: Reader) -> list[str]:
    """Keys of hyperparameters that are not what the checkpoint has.

    A schedule or function of the object's own is not replaced by a number.
    """
    return [
        hyper_key(key, name)
        for key, saved in reader.manifest.hyperparameters.items()
        if key in graph.owners
        for name, content in encode_hyperparameters(key, graph.owners[key]).items()
        if content != saved.get(name, content)
    ]


def _restore_value(
    key: str, value: Any, graph: Graph, undo: list[Callable[[], object]]
) -> None:
    own = graph.values[key]
    before = _copied(own.get())
    undo.append(lambda: own.put(before))
    own.put(value)


def _copied(value: Any) -> Any:
    """A copy of a state whose tensors and containers are not those of the object."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(_copied, value))
    if isinstance(value, tuple):
        return tuple(map(_copied, value))
    return value.copy() if hasattr(value, "__array__") else value


def _read_like(key: str, variable: torch.Tensor, reader: Reader) -> torch.Tensor:
    """A slot's saved value, placed as a slot of this variable is."""
    entry = reader.manifest.tensors[key]
    if not is_distributed(variable):
        return reader.read(key).clone()
    if entry.shape == tuple(variable.shape):
        value = torch.zeros_like(variable, dtype=entry.dtype, requires_grad=False)
    else:
        value = sharded_rows(variable, entry.shape, entry.dtype)
    if value is None:
        with colocate_with(variable):
            return place(reader.read(key).clone())
    reader.read_into(key, value)
    return value


def _read_beside(key: str, variable: torch.Tensor, reader: Reader) -> torch.Tensor:
    """The whole of a saved tensor, on the device of this variable."""
    return reader.read(key).to(variable.device, copy=True)


def _copy_tensors(found: Match, reader: Reader) -> None:
    """Copy tensor by tensor from the mapped file; autograd sees each write."""
    for copy in found.copies:
        if is_lazy(copy.target):
            entry = reader.manifest.tensors[copy.saved]
            target: Any = copy.target
            target.materialize(entry.shape, dtype=entry.dtype)
        reader.read_into(copy.saved, copy.target)
