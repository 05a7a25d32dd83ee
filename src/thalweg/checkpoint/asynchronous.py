"""What a `Checkpoint` keeps to save while training goes on."""

from __future__ import annotations

import torch.distributed as dist

from thalweg.checkpoint.background import BackgroundWriter, Staging
from thalweg.checkpoint.ranks import Ranks
from thalweg.distribute.collectives import Group, world_size

__all__ = ["Background"]


class Background:
    """Memory for copies, a thread that writes them, and a line between the threads.

    Attributes:
        staging: Copies tensors.
        writer: Writes the copies.
    """

    def __init__(self) -> None:
        self.staging = Staging()
        self.writer = BackgroundWriter()
        self._group: Group = None

    def ranks(self) -> Ranks:
        """The ranks on a line of their own: training talks on the other meanwhile.

        The first call is made by all ranks together.
        """
        if world_size() > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")
        return Ranks(self._group)
