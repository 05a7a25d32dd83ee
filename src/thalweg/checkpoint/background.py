"""Writing beside the training: a copy first, then a thread that writes it.

What `Staging` copied belongs to the writer until it is done, so that training may
change every tensor at once. A failure is never lost: it is logged when it happens,
and raised by `wait` or by the next save.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from thalweg.checkpoint.pieces import Piece, piece_of

logger = logging.getLogger(__name__)


class BackgroundWriter:
    """Runs one write at a time on a thread of its own.

    The interpreter does not end before a write that has begun.

    Example:
        >>> writer = BackgroundWriter()
        >>> writer.submit(lambda: "written")
        >>> writer.wait()
        'written'
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: Any = None
        self._problem: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a write is under way."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, write: Callable[[], Any]) -> None:
        """Begin to write, once the write before is done.

        Args:
            write: Called on the thread; it must touch nothing that training changes.

        Raises:
            BaseException: What the write before raised; `write` is not begun then.
        """
        self.wait()
        self._thread = threading.Thread(
            target=self._run, args=(write,), name="checkpoint"
        )
        self._thread.start()

    def wait(self) -> Any:
        """Wait for the write that is under way.

        Returns:
            What it returned; None if there was none since the last wait.

        Raises:
            BaseException: What it raised, once.
        """
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        result, problem = self._result, self._problem
        self._result = self._problem = None
        if problem is not None:
            raise problem
        return result

    def _run(self, write: Callable[[], Any]) -> None:
        try:
            self._result = write()
        except BaseException as problem:
            self._problem = problem
            logger.error("A checkpoint could not be written: %r", problem)


class Staging:
    """Copies of tensors on the CPU, in memory that is kept for the next time.

    Memory that is new costs several times the copying, so it is used again for each
    tensor that has kept its key, shape and dtype. There is one copy at most.
    """

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Piece]:
        """Copy what this rank holds of each tensor.

        The copies of the time before are overwritten: they must be done with.

        Args:
            tensors: Key to tensor or DTensor.

        Returns:
            Key to a piece that nobody else changes.
        """
        pieces = {key: piece_of(tensor, key) for key, tensor in tensors.items()}
        kept, self._kept = self._kept, {}
        for key in kept.keys() - pieces.keys():
            del kept[key]  # before memory for others is taken
        for key, piece in pieces.items():
            place = kept.pop(key, None)
            if place is None or not _is_alike(place, piece.tensor):
                place = _new(piece.tensor)
            place.copy_(piece.tensor, non_blocking=piece.tensor.is_cuda)
            self._kept[key] = place
        for device in {p.tensor.device for p in pieces.values() if p.tensor.is_cuda}:
            torch.cuda.synchronize(device)
        return {
            key: Piece(self._kept[key], piece.box, piece.shape)
            for key, piece in pieces.items()
        }


def _is_alike(place: torch.Tensor, tensor: torch.Tensor) -> bool:
    return place.shape == tensor.shape and place.dtype == tensor.dtype


def _new(tensor: torch.Tensor) -> torch.Tensor:
    # Pinned, a copy from the GPU runs at the full speed of the bus.
    return torch.empty(
        tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda
    )
