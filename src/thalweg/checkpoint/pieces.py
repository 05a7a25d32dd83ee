"""What this rank holds of a tensor: its elements, and the box that they are."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch

from thalweg.checkpoint.boxes import Box
from thalweg.distribute.components import is_distributed, local_tensor
from thalweg.errors import CheckpointError, describe, message

_PLACEMENTS = ("Shard", "Replicate", "_StridedShard")


class Piece(NamedTuple):
    """This rank's elements, the box that they are, and the global shape."""

    tensor: torch.Tensor
    box: Box
    shape: tuple[int, ...]


def piece_of(tensor: torch.Tensor, key: str = "tensor") -> Piece:
    """The part of a tensor that lies in this process.

    Args:
        tensor: A plain tensor, which is whole, or a DTensor.
        key: Its name, for the error text.

    Returns:
        A piece that shares the tensor's memory.

    Raises:
        CheckpointError: If a DTensor's local elements are not one box of it: partial
            sums, or shards that are dealt out in strides. FSDP2 over tensor
            parallelism deals out strides that another axis of the mesh makes boxes.
    """
    if not is_distributed(tensor):
        return Piece(tensor, Box.whole(tensor.shape), tuple(tensor.shape))
    sharded: Any = tensor
    shape = tuple(sharded.shape)
    for placement in sharded.placements:
        if type(placement).__name__ not in _PLACEMENTS:
            raise _no_box(tensor, key, placement)
    if 0 in shape:  # every rank holds all of nothing
        empty = torch.empty(shape, dtype=sharded.dtype, device="cpu")
        return Piece(empty, Box.whole(shape), shape)
    coordinate = sharded.device_mesh.get_coordinate()
    if coordinate is None:  # a rank outside of the mesh holds nothing
        nothing = Box.whole((0,) * max(1, len(shape)))
        return Piece(
            torch.empty(nothing.shape, dtype=sharded.dtype, device="cpu"),
            nothing,
            shape,
        )
    box, local = _box_of(sharded, coordinate), local_tensor(tensor)
    if box is None or box.shape != tuple(local.shape):
        raise _no_box(tensor, key, sharded.placements)
    return Piece(local, box, shape)


def _no_box(tensor: torch.Tensor, key: str, placed: object) -> CheckpointError:
    expected = "shards that are boxes of the global shape"
    action = "Redistribute it to Shard or Replicate before saving."
    got = f"{describe(tensor)} placed as {placed}"
    return CheckpointError(message(f"Checkpoint: '{key}'", expected, got, action))


class Cut(NamedTuple):
    """How an axis of a mesh divides a dimension.

    Attributes:
        ranks: How many ranks there are along the axis.
        number: Which of them this one is.
        groups: The dimension is divided into so many chunks first; of each of them
            every rank takes its part.
    """

    ranks: int
    number: int
    groups: int = 1


def _box_of(sharded: Any, coordinate: Sequence[int]) -> Box | None:
    """The box that a rank's elements are; None if they are dealt out in strides."""
    cuts: list[list[Cut]] = [[] for _ in sharded.shape]
    for axis, placement in enumerate(sharded.placements):
        if hasattr(placement, "dim"):
            groups = getattr(placement, "split_factor", 1)
            cut = Cut(sharded.device_mesh.size(axis), coordinate[axis], groups)
            cuts[placement.dim].append(cut)
    spans = [held(size, along) for size, along in zip(sharded.shape, cuts, strict=True)]
    found = [span for span in spans if span is not None]
    if len(found) < len(spans):
        return None
    return Box(tuple(span.start for span in found), tuple(map(len, found)))


def held(size: int, cuts: Sequence[Cut]) -> range | None:
    """The indices of a dimension that a rank holds.

    Args:
        size: Extent of the dimension.
        cuts: What divides it, in the order of the mesh's axes.

    Returns:
        None, on every rank, if they are dealt out in strides.

    Example:
        >>> held(8, [Cut(2, 1)]), held(8, [Cut(2, 1, groups=2), Cut(2, 0)])
        (range(4, 8), range(2, 4))
    """
    found = range(size)
    for ranks, number, groups in _as_made([cut for cut in cuts if cut.ranks > 1]):
        if groups > 1:
            return None
        each = -(-len(found) // ranks)  # as `torch.chunk` deals out
        found = found[number * each : (number + 1) * each]
    return found


def _as_made(cuts: Sequence[Cut]) -> list[Cut]:
    """Cuts in the order in which they were made.

    FSDP2 divides what tensor parallelism has divided along a later axis of the mesh; a
    placement says so by as many groups as there are ranks along those axes.
    """
    if not cuts:
        return []
    first, rest = cuts[0], _as_made(cuts[1:])
    is_last = first.groups == prod(cut.ranks for cut in rest)
    if is_last and all(cut.groups == 1 for cut in rest):
        return [*rest, first._replace(groups=1)]
    return [first, *rest]
