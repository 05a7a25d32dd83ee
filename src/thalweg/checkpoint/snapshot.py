"""From a graph to what is written: tensors by key, and the rest of the manifest."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from thalweg.checkpoint.encoding import encode
from thalweg.checkpoint.graph import Graph
from thalweg.checkpoint.hyperparameters import encode_hyperparameters
from thalweg.checkpoint.keys import escape, is_face_key, rank_key
from thalweg.checkpoint.manifest import Manifest, encode_metadata
from thalweg.checkpoint.tensor_file import CODES
from thalweg.checkpoint.values import parts_key
from thalweg.distribute.collectives import rank, world_size
from thalweg.distribute.components import is_distributed, local_tensor
from thalweg.errors import CheckpointError, describe, message


class Snapshot(NamedTuple):
    """What a save writes.

    Attributes:
        tensors: Tensors by key, those of the objects themselves.
        manifest: The manifest without files, tensors, and values of single ranks.
        own_values: Encoded values that not every rank has, by key.
    """

    tensors: dict[str, torch.Tensor]
    manifest: Manifest
    own_values: dict[str, Any]

    def with_values(self, values: Iterable[Mapping[str, Any]]) -> Manifest:
        """The manifest with the own values of all ranks."""
        merged = dict(self.manifest.values)
        for own in values:
            merged.update(own)
        return replace(self.manifest, values=merged)


def take_snapshot(graph: Graph, metadata: dict[str, Any] | None) -> Snapshot:
    """Collect everything that a save writes, before it writes anything.

    Args:
        graph: The objects, by key.
        metadata: The caller's own plain values.

    Returns:
        Tensors by key (those of the objects, not copied), and the rest.

    Raises:
        CheckpointError: If something cannot be stored, or two come by one name; all
            tensors that cannot be stored are listed. If an optimizer counts less than
            no steps.
    """
    _check_step(graph)
    tensors = {key: one for key, one in graph.tensors.items() if not is_lazy(one)}
    tensors.update({key: slot.tensor for key, slot in graph.slots.items()})
    shared: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in graph.values.items():
        if value.is_per_rank and world_size() > 1:
            place = rank_key(key, rank())
            own[place] = _encode_value(place, value.get(), tensors)
        else:
            shared[key] = _encode_value(key, value.get(), tensors)
    # Not every rank need have such slots: those that do tell the others.
    own.update({parts_key(k): parts._asdict() for k, parts in graph.parts.items()})
    _check_storable(tensors)
    hyperparameters = {
        key: encode_hyperparameters(key, owner) for key, owner in graph.owners.items()
    }
    empty = [k for k, table in hyperparameters.items() if is_face_key(k) and not table]
    for key in empty:
        del hyperparameters[key]
    manifest = Manifest(
        step=graph.step,
        aliases=graph.aliases,
        hyperparameters=hyperparameters,
        values=shared,
        metadata=encode_metadata(metadata),
    )
    return Snapshot(tensors, manifest, own)


def _check_step(graph: Graph) -> None:
    """Refuse a count of steps that no reader would take."""
    step = graph.step
    if step is not None and step < 0:
        expected = "no less than 0 steps that an optimizer has taken"
        got = f"iterations = {step} of '{next(iter(graph.owners))}'"
        action = "Assign the right number to it."
        raise CheckpointError(message("Checkpoint.save", expected, got, action))


def _encode_value(key: str, value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    def put_tensor(where: str, tensor: torch.Tensor) -> str:
        path = where.removeprefix(key).removeprefix(".")
        joint = "." if "/" in key else "/"
        place = f"{key}{joint}{escape(path)}" if path else key
        if place in tensors:
            raise CheckpointError(
                message(
                    "Checkpoint.save",
                    "different names for different tensors",
                    f"two by the name '{place}'",
                    "Rename one of them.",
                )
            )
        tensors[place] = tensor
        return place

    return encode(value, key, put_tensor)


def _check_storable(tensors: Mapping[str, torch.Tensor]) -> None:
    refused = [
        f"\n  {key}: {describe(tensor)}"
        for key, tensor in tensors.items()
        if not _is_storable(tensor)
    ]
    if refused:
        raise CheckpointError(
            message(
                "Checkpoint.save",
                "dense tensors of a dtype that safetensors knows",
                "".join(refused),
                "Convert them, or leave them out.",
            )
        )


def _is_storable(tensor: torch.Tensor) -> bool:
    if is_distributed(tensor):
        tensor = local_tensor(tensor)
    if is_traceable_wrapper_subclass(tensor) or tensor.is_meta:
        return False
    return tensor.layout == torch.strided and tensor.dtype in CODES
