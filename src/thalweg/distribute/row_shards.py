"""One number for each row of a sharded variable, where the row lies."""

from __future__ import annotations

import sys
from typing import Any

import torch

from thalweg.distribute.components import is_distributed, local_tensor

__all__ = ["sharded_rows"]


def sharded_rows(
    variable: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> Any:
    """Make zeros, one for each row of a variable, where the rows lie.

    Args:
        variable: The variable.
        shape: Shape of the result: one number for each entry of the first axis.
        dtype: Its dtype.

    Returns:
        A DTensor; None if the shape is not one number a row, or the variable is not
        cut between rows only.
    """
    rows = (*variable.shape[:1], *(1 for _ in variable.shape[1:]))
    if shape != rows or not is_distributed(variable):
        return None
    placed: Any = variable
    if any(getattr(cut, "dim", 0) != 0 for cut in placed.placements):
        return None
    local = local_tensor(variable)
    size = (*local.shape[:1], *shape[1:])
    # Nobody has a DTensor who has not imported this.
    return sys.modules["torch.distributed.tensor"].DTensor.from_local(
        torch.zeros(size, dtype=dtype, device=local.device),
        placed.device_mesh,
        placed.placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=torch.empty(shape, device="meta").stride(),
    )
