"""What this rank holds of a tensor: its elements, and the box that they are."""

import importlib
from typing import Any, NamedTuple

import torch

from thalweg.checkpoint.boxes import Box
from thalweg.distribute.components import is_distributed, local_tensor
from thalweg.errors import CheckpointError, describe, message


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
            sums, or shards that are dealt out in strides.
    """
    if not is_distributed(tensor):
        return Piece(tensor, Box.whole(tensor.shape), tuple(tensor.shape))
    sharded: Any = tensor
    for placement in sharded.placements:
        if type(placement).__name__ not in ("Shard", "Replicate"):
            expected = "shards that are boxes of the global shape"
            action = "Redistribute it to Shard or Replicate before saving."
            got = f"{describe(tensor)} placed as {placement}"
            raise CheckpointError(
                message(f"Checkpoint: '{key}'", expected, got, action)
            )
    if 0 in sharded.shape:  # every rank holds all of nothing
        empty = torch.empty(tuple(sharded.shape), dtype=sharded.dtype)
        return Piece(empty, Box.whole(empty.shape), tuple(empty.shape))
    layout = importlib.import_module("torch.distributed.tensor._utils")
    shape, offset = layout.compute_local_shape_and_global_offset(
        sharded.shape, sharded.device_mesh, sharded.placements
    )
    box = Box(tuple(map(int, offset)), tuple(map(int, shape)))
    return Piece(local_tensor(tensor), box, tuple(tensor.shape))
