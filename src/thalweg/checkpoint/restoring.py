"""The only writer of a restore: called when everything has been found to fit."""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from thalweg.checkpoint.encoding import decode
from thalweg.checkpoint.folder import Reader
from thalweg.checkpoint.graph import Graph
from thalweg.checkpoint.keys import hyper_key
from thalweg.checkpoint.matching import (
    HyperPolicy,
    Match,
    takes_new_hyperparameters,
)
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
    _apply(graph, found, reader, hyper)
    for difference in found.hyper_differences:
        logger.warning("Checkpoint.restore took the first: %s", difference)


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
            key = creation.saved
            owner = graph.owners[creation.owner]
            tensor = _read_like(key, creation.variable, reader)
            owner.restore_slot_variable(creation.slot, creation.variable, tensor)
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
        saved = reader.manifest.tensors[creation.saved].dtype
        place = (creation.owner, id(creation.variable), creation.slot)
        if made.get(place, saved) != saved:
            kinds = f"{made[place]} where the checkpoint holds {saved}"
            raise TypeError(f"its optimizer made '{creation.saved}' of {kinds}")


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
    undo.append(lambda: owner.restore_hyperparameters(before))
    owner.restore_hyperparameters(saved)


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


def _copy_tensors(found: Match, reader: Reader) -> None:
    """Copy tensor by tensor from the mapped file; autograd sees each write."""
    for copy in found.copies:
        if is_lazy(copy.target):
            entry = reader.manifest.tensors[copy.saved]
            target: Any = copy.target
            target.materialize(entry.shape, dtype=entry.dtype)
        reader.read_into(copy.saved, copy.target)
