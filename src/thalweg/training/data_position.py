"""Where a run stands in its data: the epoch, the batch, and the order of the samples.

The order is drawn from a generator of its own, whose state at the start of the epoch
is kept. So a run that is resumed in the middle of an epoch draws the same order and
passes over the batches it has seen. What was measured in them can be saved, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from thalweg.distribute import broadcast
from thalweg.distribute.collectives import communication_device
from thalweg.errors import message

_KEYS = {"epoch", "batch", "generator", "random"}


class RunningFigures:
    """What was measured so far in the epoch that runs; each replica has its own.

    Saved beside the position, it makes the figures of an epoch that is gone on with
    those of the whole epoch, not of its rest.

    Example:
        >>> figures = RunningFigures()
        >>> figures.load_state_dict({"names": ["loss"]})
        >>> figures.begin(lambda: {"names": []}), figures.state_dict()
        ({'names': ['loss']}, {'names': []})
    """

    is_per_rank = True

    def __init__(self) -> None:
        self._read: Callable[[], dict[str, Any]] | None = None
        self._restored: dict[str, Any] = {}

    def __repr__(self) -> str:
        return "RunningFigures()"

    def begin(self, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Begin an epoch.

        Args:
            read: Gives what is to be saved in its course.

        Returns:
            What was restored for it; it is empty in an epoch that begins anew.
        """
        restored, self._restored, self._read = self._restored, {}, read
        return restored

    def end(self) -> None:
        """End the epoch: forget what was measured and what was restored."""
        self._read, self._restored = None, {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint saves: nothing between two epochs."""
        return {} if self._read is None else self._read()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave, for the next epoch that begins."""
        self._restored = state_dict


class DataPosition:
    """The position in the data of a model's training.

    Attributes:
        epoch: Number of the current epoch, or of the next one between two epochs.
        batch: How many batches of it have been trained on.
        first_epoch: Where the current run began.
        figures: What was measured in the current epoch.

    Example:
        >>> position = DataPosition()
        >>> position.start(epoch=0)
        >>> order = position.order(4)
        >>> state = position.state_dict()
        >>> again = DataPosition()
        >>> again.load_state_dict(state)
        >>> again.start(epoch=5), again.epoch
        (None, 0)
        >>> torch.equal(again.order(4), order)
        True
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.batch = 0
        self.first_epoch = 0
        self.figures = RunningFigures()
        self._generator = torch.Generator()
        self._state = self._generator.get_state()
        self._random = torch.get_rng_state()
        self._is_restored = False

    def __repr__(self) -> str:
        return f"<DataPosition: epoch {self.epoch}, batch {self.batch}>"

    def start(self, epoch: int, replicas: int = 1) -> None:
        """Begin a run: at the restored position if there is one, else anew.

        A new run draws its seed from torch's default generator, so `torch.manual_seed`
        decides the order; all replicas take the first one's seed.

        Args:
            epoch: Where a new run begins.
            replicas: How many replicas take part.
        """
        if self._is_restored:
            self._is_restored = False
            self.first_epoch = self.epoch
            return
        self.figures.end()
        seed = torch.randint(2**62, ())
        if replicas > 1:
            seed = seed.to(communication_device())
            broadcast([seed])
        self._generator.manual_seed(int(seed))
        self._state = self._generator.get_state()
        self.epoch = self.first_epoch = epoch
        self.batch = 0

    def order(self, count: int) -> torch.Tensor:
        """Return the order of `count` samples in the current epoch, int64."""
        self._generator.set_state(self._state)
        return torch.randperm(count, generator=self._generator)

    def iterate(self, batches: Iterable[Any], skip: int) -> Iterator[Any]:
        """Begin an epoch of somebody's batches, past those that were trained on.

        What a loader draws from torch's default generator, such as an order, it draws
        as it did in the run before; the generator is then left as it was.

        Args:
            batches: The batches of a whole epoch.
            skip: How many of them were trained on.

        Returns:
            The others.
        """
        now = torch.get_rng_state()
        if not skip:
            self._random = now
            return iter(batches)
        torch.set_rng_state(self._random)
        try:
            iterator = iter(batches)
            for _ in itertools.islice(iterator, skip):
                pass
        finally:
            torch.set_rng_state(now)
        return iterator

    def finish_epoch(self) -> None:
        """Go on to the start of the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0
        self._state = self._generator.get_state()

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs: two numbers and two uint8 tensors."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "generator": self._state.clone(),
            "random": self._random.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the position at which the next run begins.

        Raises:
            ValueError: If entries are missing or unknown.
        """
        if set(state) != _KEYS:
            raise ValueError(
                message(
                    "DataPosition.load_state_dict",
                    f"the entries {sorted(_KEYS)}",
                    f"{sorted(state)}",
                    "Pass what state_dict() returned.",
                )
            )
        self._generator.set_state(state["generator"])
        self._state = state["generator"].clone()
        self._random = state["random"].clone()
        self.epoch, self.batch = int(state["epoch"]), int(state["batch"])
        self._is_restored = True

    def __getstate__(self) -> dict[str, Any]:
        return self.state_dict() | {"restored": self._is_restored}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._generator = torch.Generator()
        self.figures = RunningFigures()
        self.first_epoch = state["epoch"]
        restored = state.pop("restored")
        self.load_state_dict(state)
        self._is_restored = restored
