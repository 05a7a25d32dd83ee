"""What a shard is a part of, and totals over the whole of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from thalweg import errors
from thalweg.distribute.collectives import join_totals, world_size
from thalweg.distribute.components import is_distributed

__all__ = ["Join", "ShardJoin", "Whole", "whole_of"]

Join = Callable[[Tensor, Tensor], Tensor]
"""From float64 totals of this rank, shape (variables, totals), to those of all ranks.

The second argument has shape (totals,), bool: which are joined by a maximum, not by a
sum. Every rank calls it at the same point of a step, with the same shapes.
"""


@dataclass(frozen=True)
class Whole:
    """What a shard is a part of.

    Attributes:
        shape: Global shape of the variable.
        cut: The axes along which it is divided.
        join: Joins totals over the ranks that hold the parts; what has an equal one
            can be joined at once.
    """

    shape: tuple[int, ...]
    cut: frozenset[int]
    join: Join


@dataclass(frozen=True)
class ShardJoin:
    """Joins totals of shards over one mesh; equal for variables that are cut alike.

    Attributes:
        groups: A process group for each axis of the mesh that cuts the variable.
    """

    groups: tuple[Any, ...]

    def __call__(self, totals: Tensor, is_maximum: Tensor) -> Tensor:
        """The totals of the whole variables; one message for each group.

        Args:
            totals: Shape (variables, totals), float64: what this rank's shards give.
            is_maximum: Shape (totals,), bool: where the largest counts, not the sum.

        Returns:
            A new tensor of that shape, with the same bits on every rank.
        """
        for group in self.groups:
            totals = join_totals(totals, is_maximum, group)
        return totals


def whole_of(variable: Tensor) -> Whole | None:
    """What the local part of a variable is a part of.

    Args:
        variable: a parameter or DTensor.

    Returns:
        None if this process holds the whole variable.

    Raises:
        ValueError: the variable is a DTensor whose local tensors are no parts of it,
            but terms of a sum.
    """
    if not is_distributed(variable):
        return None
    placed: Any = variable
    module = sys.modules["torch.distributed.tensor"]
    if any(isinstance(p, module.Partial) for p in placed.placements):
        raise ValueError(
            errors.message(
                "update",
                "a variable that is sharded or replicated",
                f"placements {placed.placements}",
                "Redistribute it before the update.",
            )
        )
    axes = {
        axis: placement.dim
        for axis, placement in enumerate(placed.placements)
        if not isinstance(placement, module.Replicate)
        and placed.device_mesh.size(axis) > 1
    }
    groups = tuple(placed.device_mesh.get_group(axis) for axis in axes)
    if all(world_size(group) == 1 for group in groups):
        return None
    shape = tuple(variable.shape)
    return Whole(shape, frozenset(axes.values()), ShardJoin(groups))
