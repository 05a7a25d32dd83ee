"""Random number generators: the state of one, and of all that are global.

A state is given as plain values and arrays, so that it is stored like everything else
and nothing is unpickled to read it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

__all__ = ["RandomState", "generator_access"]

logger = logging.getLogger(__name__)

Access = tuple[Callable[[], Any], Callable[[Any], object]]


class RandomState:
    """The global random number generators of this process, as one object.

    Python's `random`, NumPy's global generator, torch's for the CPU and for each CUDA
    device that this process has begun to use. Give it to a `Checkpoint`, best under
    the name `random_state`, and a resumed run draws the numbers that the first one
    would have drawn. With several ranks each has its own.

    Example:
        >>> state = RandomState()
        >>> kept = state.state_dict()
        >>> drawn = random.random(), float(np.random.rand()), float(torch.rand(()))
        >>> state.load_state_dict(kept)
        >>> drawn == (random.random(), float(np.random.rand()), float(torch.rand(())))
        True
    """

    is_per_rank = True

    def __repr__(self) -> str:
        return "RandomState()"

    def state_dict(self) -> dict[str, Any]:
        """The states of all generators, by where they are."""
        return {
            "python": _python_state(random.getstate()),
            "numpy": np.random.get_state(legacy=False),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if _uses_cuda() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to states that `state_dict` gave.

        States of CUDA devices that this machine does not have are left out, which is
        logged: numbers drawn on other devices are other numbers.

        Args:
            state_dict: What `state_dict` returned.
        """
        devices = torch.cuda.device_count()
        cuda = state_dict["cuda"]
        if len(cuda) > devices:
            logger.warning(
                "RandomState: the states of %d CUDA devices were saved, and there are "
                "%d here.",
                len(cuda),
                devices,
            )
        random.setstate(_tuple_of(state_dict["python"]))
        np.random.set_state(state_dict["numpy"])
        torch.set_rng_state(state_dict["torch"])
        for device, state in enumerate(cuda[:devices]):
            torch.cuda.set_rng_state(state, device)


def generator_access(generator: object) -> Access | None:
    """How to read the state of a random number generator, and how to set it.

    Args:
        generator: Of torch (`Generator`), NumPy (`Generator`, `BitGenerator`,
            `RandomState`) or Python (`random.Random`).

    Returns:
        Two functions, or None if this is no generator.

    Example:
        >>> generator = torch.Generator().manual_seed(1)
        >>> read, write = generator_access(generator)
        >>> kept, drawn = read(), torch.rand((), generator=generator)
        >>> _ = write(kept)
        >>> bool(torch.rand((), generator=generator) == drawn)
        True
    """
    if isinstance(generator, torch.Generator):
        return generator.get_state, generator.set_state
    if isinstance(generator, random.Random):
        return (
            lambda: _python_state(generator.getstate()),
            lambda state: generator.setstate(_tuple_of(state)),
        )
    if isinstance(generator, np.random.RandomState):
        return lambda: generator.get_state(legacy=False), generator.set_state
    bits = getattr(generator, "bit_generator", generator)
    if isinstance(bits, np.random.BitGenerator):
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    return None


def _python_state(state: Any) -> dict[str, Any]:
    """Python's tuple of 625 numbers as an array, which is not a line for each."""
    version, words, gauss = state
    return {"version": version, "words": np.array(words, np.uint32), "gauss": gauss}


def _tuple_of(state: dict[str, Any]) -> tuple[Any, ...]:
    words = tuple(map(int, state["words"]))
    return state["version"], words, state["gauss"]


def _uses_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
