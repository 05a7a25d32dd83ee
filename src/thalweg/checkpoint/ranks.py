"""What the ranks tell each other while they save: plain JSON, never pickled."""

from collections.abc import Callable
from typing import Any

import torch

from thalweg.checkpoint.encoding import dump, parse
from thalweg.distribute.collectives import (
    Group,
    all_gather_counts,
    all_gather_padded,
    communication_device,
    rank,
    world_size,
)
from thalweg.errors import CheckpointError


class Ranks:
    """The processes that save one checkpoint; one alone where there is no group.

    Args:
        group: A process group; the whole world by default.
    """

    def __init__(self, group: Group = None) -> None:
        self._group = group

    @classmethod
    def alone(cls) -> "Ranks":
        """This process by itself, whatever groups there are."""
        return _Alone()

    @property
    def number(self) -> int:
        """This process among them; 0 leads."""
        return rank(self._group)

    @property
    def size(self) -> int:
        """How many they are."""
        return world_size(self._group)

    def share(self, value: Any) -> list[Any]:
        """Give every rank the JSON value of every rank, in rank order."""
        if self.size == 1:
            return [value]
        device = communication_device(self._group)
        text = torch.frombuffer(bytearray(dump(value)), dtype=torch.uint8).to(device)
        counts = all_gather_counts([text.numel()], device, self._group)
        lengths = [count for (count,) in counts]
        joined = all_gather_padded(text, lengths, self._group).cpu()
        parts = joined.split(lengths)
        return [parse(part.numpy().tobytes()) for part in parts]

    def together(self, work: Callable[[], Any]) -> list[Any]:
        """Call `work` on every rank, and go on only if it succeeded on all.

        Args:
            work: Returns a JSON value.

        Returns:
            What it returned on each rank.

        Raises:
            Exception: What `work` raised on this rank.
            CheckpointError: If it raised on another rank.
        """
        problem: Exception | None = None
        result = None
        try:
            result = work()
        except Exception as caught:
            problem = caught  # the other ranks have to hear of it first
        text = None if problem is None else f"{type(problem).__name__}: {problem}"
        told = self.share([text, result])
        if problem is not None:
            raise problem
        for number, (failure, _) in enumerate(told):
            if failure is not None:
                raise CheckpointError(f"Checkpoint: rank {number} failed. {failure}")
        return [value for _, value in told]

    def lead(self, work: Callable[[], Any]) -> Any:
        """Call `work` on the first rank, and give every rank what it returned.

        Raises:
            Exception: As `together`.
        """
        return self.together(lambda: work() if self.number == 0 else None)[0]


class _Alone(Ranks):
    @property
    def number(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return 1
