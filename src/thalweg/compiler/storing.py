"""From values of the compute type to what is stored: to nearest, or by chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.compiler.program import Program
from thalweg.compiler.rounding import Draw

__all__ = ["RoundOutput", "round_to_nearest", "rounder"]

RoundOutput = Callable[[int, Tensor, torch.dtype], Tensor]
"""From position, flat values and storage dtype of an output to what is stored."""


def rounder(
    program: Program,
    numbers: Mapping[str, float],
    places: np.ndarray[Any, Any],
    turn: int = 0,
) -> RoundOutput:
    """What rounds the outputs of some elements.

    Args:
        program: The program.
        numbers: A number for each host column.
        places: For each element its index in the variable or shard.
        turn: How many gradients of the same elements came before.
    """
    if not program.rounded:
        return round_to_nearest
    draw = Draw(numbers, program.rounded)

    def round_output(position: int, wide: Tensor, dtype: torch.dtype) -> Tensor:
        if position not in draw:
            return round_to_nearest(position, wide, dtype)
        found = draw.rounded(position, wide.numpy(force=True), places, turn)
        return found.to(wide.device)

    return round_output


def round_to_nearest(position: int, wide: Tensor, dtype: torch.dtype) -> Tensor:
    """Round an output of any position to its storage dtype."""
    del position
    if wide.dtype == torch.float64 and dtype.itemsize == 2:
        wide = wide.float()
    return wide.to(dtype)
