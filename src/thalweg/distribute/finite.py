"""Which tensors have an inf or NaN, told alike to all ranks that share them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg.distribute.collectives import all_reduce
from thalweg.distribute.components import is_distributed, local_tensor

__all__ = ["are_nonfinite"]


def are_nonfinite(tensors: Sequence[Tensor]) -> list[bool]:
    """Tell for each tensor whether an element of it, on any rank, is no finite number.

    The ranks of a mesh are asked about its tensors, one message for each of its axes;
    a rank that shares no tensor with this one has no say.

    Args:
        tensors: Plain tensors, alike on all ranks, and DTensors; at least one.

    Returns:
        The same on every rank of a mesh for its tensors. All are true if none is, but
        a rank of a mesh has found another one that is not shared with this rank.

    Example:
        >>> are_nonfinite([torch.ones(2), torch.tensor([1.0, float("nan")])])
        [False, True]
    """
    parts = [torch.isfinite(local_tensor(t)).all().logical_not() for t in tensors]
    bad = torch.stack([part.to(parts[0].device) for part in parts])
    knows = bad.any().reshape(1)
    for group, places in _shared(tensors):
        sent = torch.cat([bad[places], knows]).to(tensors[places[0]].device)
        found = (all_reduce(sent.to(torch.int32), "sum", group) > 0).to(bad.device)
        bad[places], knows = found[:-1], found[-1:]
    verdicts = bad.tolist()
    is_elsewhere = bool(knows) and not any(verdicts)
    return [True] * len(verdicts) if is_elsewhere else verdicts


def _shared(tensors: Sequence[Any]) -> Iterator[tuple[Any, list[int]]]:
    """The groups of ranks that share tensors, and the places of these tensors."""
    meshes: dict[Any, list[int]] = defaultdict(list)
    for place, tensor in enumerate(tensors):
        if is_distributed(tensor):
            meshes[tensor.device_mesh].append(place)
    for mesh, places in meshes.items():
        for axis in range(mesh.ndim):
            if mesh.size(axis) > 1 and mesh.get_coordinate() is not None:
                yield mesh.get_group(axis), places
