"""Tables of a GPU kernel: items cut into pieces, and copies that nobody waits for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.compiler.reductions import CHUNK

__all__ = ["Upload", "chunks_and_folds", "cut", "is_capturing", "piece_length"]

Array = np.ndarray[Any, Any]

_SHORTEST, _PROGRAMS = 1024, 16384


def piece_length(num_elements: int) -> int:
    """Elements of one program: few for small work, so that all processors have some.

    Example:
        >>> piece_length(100_000), piece_length(50_000_000), piece_length(10**9)
        (1024, 4096, 16384)
    """
    length = _SHORTEST
    while length < CHUNK and num_elements > length * _PROGRAMS:
        length *= 2
    return length


def cut(items: Array, length: int) -> Array:
    """Cut items into pieces.

    Args:
        items: Shape (n, 5), int64: variable, offset, gradient offset, length, row.
        length: Of the longest piece.

    Returns:
        Shape (m, 5): the pieces in order; an item without elements has none.

    Example:
        >>> cut(np.array([[0, 8, 3, 5, 1]]), 4).tolist()
        [[0, 8, 3, 4, 1], [0, 12, 7, 1, 1]]
    """
    counts: Array = (items[:, 3] + length - 1) // length
    pieces = np.repeat(items, counts, axis=0)
    first: Array = np.repeat(np.cumsum(counts) - counts, counts)
    done: Array = (np.arange(len(pieces)) - first) * length
    pieces[:, 1] += done
    pieces[:, 2] += done
    pieces[:, 3] = np.minimum(length, pieces[:, 3] - done)
    return pieces


def chunks_and_folds(items: Array) -> tuple[Array, Array]:
    """The pieces of a reading pass and where those of each variable are.

    Args:
        items: Shape (n, 5); those of one variable, which has a scalar row of its own,
            in order and at multiples of a chunk.

    Returns:
        Chunks of shape (m, 5), those of one scalar row side by side, and folds of
        shape (rows, 3): scalar row, first chunk, chunk after the last.
    """
    chunks = cut(items, CHUNK)
    chunks = chunks[np.argsort(chunks[:, 4], kind="stable")]
    rows = np.unique(items[:, 4])
    first = np.searchsorted(chunks[:, 4], rows, side="left")
    last = np.searchsorted(chunks[:, 4], rows, side="right")
    return chunks, np.stack([rows, first, last], axis=1).astype(np.int64)


def is_capturing(device: torch.device) -> bool:
    """Whether work on a device is being recorded as a CUDA graph, not done.

    Example:
        >>> is_capturing(torch.device("cpu"))
        False
    """
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Upload:
    """Copies a host table to its device table without waiting for the device.

    Page-locked buffers are used in turn; an event says when one is free again. What
    was on the device is overwritten in stream order, so kernels that are still to
    run see what they were started with. Within a CUDA graph a copy has a buffer of its
    own, which nothing else is ever written to: each replay copies the same values.

    Args:
        table: The device table, contiguous.
        depth: Number of buffers: how many steps the host may be ahead.

    Example:
        >>> table = torch.zeros(2, 2)
        >>> Upload(table)(torch.ones(2, 2))
        >>> table.tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(self, table: Tensor, depth: int = 3) -> None:
        self.table = table
        self._is_cuda = table.device.type == "cuda"
        self._buffers = [self._buffer() for _ in range(depth if self._is_cuda else 0)]
        self._events: list[torch.cuda.Event | None] = [None] * len(self._buffers)
        # Made ahead, because page-locking memory does not belong into a capture.
        self._spare = self._buffer() if self._is_cuda else None
        self._captured: list[Tensor] = []
        self._next = 0

    def __call__(self, values: Tensor) -> None:
        """Copy, on the current stream.

        Args:
            values: A tensor on the CPU of the shape and dtype of the table. It may be
                changed as soon as the call returns.
        """
        if not self._is_cuda:
            self.table.copy_(values)
        elif is_capturing(self.table.device):
            self._captured.append(self._take_spare().copy_(values))
            self.table.copy_(self._captured[-1], non_blocking=True)
        else:
            self._copy_by_turns(values)

    def _copy_by_turns(self, values: Tensor) -> None:
        turn = self._next
        self._next = (turn + 1) % len(self._buffers)
        event = self._events[turn]
        if event is None:
            event = self._events[turn] = torch.cuda.Event()
        else:
            event.synchronize()
        self._buffers[turn].copy_(values)
        self.table.copy_(self._buffers[turn], non_blocking=True)
        event.record(torch.cuda.current_stream(self.table.device))
        if self._spare is None:
            self._spare = self._buffer()

    def _take_spare(self) -> Tensor:
        spare, self._spare = self._spare, None
        return self._buffer() if spare is None else spare

    def _buffer(self) -> Tensor:
        shape, dtype = tuple(self.table.shape), self.table.dtype
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)
