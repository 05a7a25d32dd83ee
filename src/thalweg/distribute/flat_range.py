"""Where a shard lies in the flat order of the elements of its variable."""

from __future__ import annotations

import importlib
from itertools import dropwhile
from typing import Any

from torch import Tensor

from thalweg import errors
from thalweg.distribute.components import is_distributed

__all__ = ["first_index"]


def first_index(variable: Tensor) -> int:
    """The flat index, in a whole variable, of the first element of its local part.

    Args:
        variable: A parameter or DTensor.

    Returns:
        0 for a variable that this process holds as a whole.

    Raises:
        ValueError: If the elements of the local part are not consecutive ones.

    Example:
        >>> import torch
        >>> first_index(torch.zeros(3, 4))
        0
    """
    if not is_distributed(variable):
        return 0
    placed: Any = variable
    boxes = importlib.import_module("torch.distributed.tensor._utils")
    shape, offset = boxes.compute_local_shape_and_global_offset(
        placed.shape, placed.device_mesh, placed.placements
    )
    sizes = zip(map(int, shape), map(int, variable.shape), strict=True)
    # A part that has one entry of the first axes may be cut along the next one.
    _, *inner = dropwhile(lambda size: size[0] == 1, [*sizes, (0, 0)])
    if 0 in map(int, shape):
        return 0
    if any(part != whole for part, whole in inner):
        raise ValueError(
            errors.message(
                "stochastic_rounding",
                "variables whose shards are ranges of the flat order of elements",
                f"shape {tuple(variable.shape)} placed as {placed.placements}",
                "Shard the first axis.",
            )
        )
    index = 0
    for start, size in zip(offset, variable.shape, strict=True):
        index = index * int(size) + int(start)
    return index
