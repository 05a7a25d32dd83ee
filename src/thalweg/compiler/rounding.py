"""Stochastic rounding to bfloat16: random bits that follow from what is rounded.

A float32 lies between two bfloat16 numbers; it becomes the upper one as often as it is
near to it, so that updates too small for the storage type are not lost on average. The
bits are a hash of where and when: seed and variable (one 32-bit number), step, pair of
outputs, global index of the element. So they are the same for any thread count, launch,
shard or set of touched rows, and nothing but the step count is kept. A hash has 32
bits, of which one output takes the lower half and the next one the upper half.

Source:
    The hash is ``lowbias32`` of Chris Wellons, "hash-prospector" (public domain). The
    rounding is that of Gupta et al., "Deep learning with limited numerical precision",
    ICML 2015.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "FIRST_INDEX",
    "ROUNDING_KEY",
    "STEP",
    "TURN",
    "Draw",
    "random_bits",
    "round_stochastically",
    "rounding_key",
]

Array = np.ndarray[Any, Any]

STEP = "step"
"""Scalar with the number of the step, which every rule that is rounded so takes."""
ROUNDING_KEY = "rounding_key"
"""Host column with a number that stands for seed and variable, see `rounding_key`."""
FIRST_INDEX = "first_index"
"""Host column with the global index of the first element of a variable or shard."""

TURN = 0x85EBCA6B
"""What the gradients that one row has in the same step are distinguished by."""
_WORD = 0xFFFFFFFF
_HIGH = 0x9E3779B9
_LARGEST = 0x7F7F0000
"""Bits of the largest finite bfloat16; what lies above is rounded to nearest."""


def rounding_key(seed: int, name: str) -> int:
    """The number that stands for a seed and a variable; the same on every machine.

    Args:
        seed: Any number >= 0.
        name: Of the variable.

    Example:
        >>> rounding_key(0, "dense/kernel")
        2284457210
    """
    return zlib.crc32(f"{seed} {name}".encode())


def random_bits(key: int, places: Array) -> Array:
    """A random 32-bit number for each element.

    Args:
        key: That of a pair of outputs in a step, see `Draw`.
        places: Global indices of the elements, int64.

    Returns:
        A uint32 array of the same shape.

    Example:
        >>> random_bits(1, np.array([0, 1, 2**32])) & 0xFFFF
        array([37056,  8577, 22068], dtype=uint32)
    """
    bits = (places >> 32).astype(np.uint32)
    bits *= np.uint32(_HIGH)
    bits += places.astype(np.uint32)
    bits += np.uint32(key & _WORD)
    return _mix(bits)


def round_stochastically(values: Array, bits: Array) -> Array:
    """Round float32 to bfloat16 by random bits.

    Args:
        values: Float32.
        bits: Uint32, of the same shape; the lower half counts.

    Returns:
        The bits of bfloat16 numbers, uint16. What is a bfloat16 already stays as it
        is; values beyond the largest finite one are rounded to nearest.
    """
    raw = values.view(np.uint32)
    nearest = ((raw >> 16) & 1) + 0x7FFF
    addend = np.where((raw & 0x7FFFFFFF) > _LARGEST, nearest, bits & 0xFFFF)
    rounded = (raw + addend.astype(np.uint32)) >> 16
    return np.where(values != values, 0x7FC0, rounded).astype(np.uint16)


class Draw:
    """The random bits of one item or row in one step.

    Args:
        numbers: A number for each of `ROUNDING_KEY`, `STEP` and `FIRST_INDEX`.
        outputs: Positions of the outputs that are rounded so.
    """

    def __init__(self, numbers: Mapping[str, float], outputs: Sequence[int]) -> None:
        variable, step = _mixed(int(numbers[ROUNDING_KEY])), int(numbers[STEP])
        self._first = int(numbers[FIRST_INDEX])
        self._keys = {
            output: _mixed(_mixed(variable + output // 2) + step) for output in outputs
        }

    def __contains__(self, output: int) -> bool:
        return output in self._keys

    def rounded(
        self, output: int, values: Array, places: Array, turn: int = 0
    ) -> Tensor:
        """The values of an output, rounded.

        Args:
            output: Position of the output.
            values: Its values, of a floating dtype; one number stands for all.
            places: For each element its index in this variable or shard, int64.
            turn: How many gradients of the same elements came before.

        Returns:
            A bfloat16 tensor of the shape of `places`.
        """
        bits = random_bits(self._keys[output] + turn * TURN, places + self._first)
        bits >>= 16 * (output % 2)
        wide = np.ascontiguousarray(
            np.broadcast_to(values.astype(np.float32), bits.shape)
        )
        found = round_stochastically(wide, bits).view(np.int16)
        return torch.from_numpy(found).view(torch.bfloat16)  # pyright: ignore[reportUnknownMemberType]


def _mix(bits: Array) -> Array:
    """The hash, in place."""
    bits ^= bits >> 16
    bits *= np.uint32(0x7FEB352D)
    bits ^= bits >> 15
    bits *= np.uint32(0x846CA68B)
    bits ^= bits >> 16
    return bits


def _mixed(number: int) -> int:
    return int(_mix(np.array([number & _WORD], dtype=np.uint32))[0])
