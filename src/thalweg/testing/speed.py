"""What `thalweg bench` measures: memory bandwidth, and a few kernels beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from thalweg.optimizers import SGD, Adam, Lion, Optimizer
from thalweg.state import IndexedSlices, Variable
from thalweg.step.bandwidth import Bandwidth

__all__ = ["Speed", "measure_bandwidth", "measure_kernels", "time_calls"]

_ROUNDS = 9
_WARM_UP = 2
_ROW_WIDTH = 64


@dataclass(frozen=True)
class Speed:
    """One measurement.

    Attributes:
        name: What was run.
        seconds: The least of some rounds.
        num_bytes: Bytes it reads and writes; an estimate for rows.
    """

    name: str
    seconds: float
    num_bytes: float

    @property
    def bytes_per_second(self) -> float:
        """Bytes over time."""
        return self.num_bytes / self.seconds


def time_calls(function: Callable[[], object], rounds: int = _ROUNDS) -> float:
    """The time of the least disturbed of some calls, after two that do not count."""
    taken = []
    for number in range(-_WARM_UP, rounds):
        start = time.perf_counter()
        function()
        if number >= 0:
            taken.append(time.perf_counter() - start)
    return min(taken)


def measure_bandwidth(num_elements: int) -> Bandwidth:
    """Measure how fast memory is read and written, by torch, in all threads.

    Args:
        num_elements: Float32 numbers; far more than caches hold.

    Returns:
        The better one of a copy and an update in place.
    """
    source, target = torch.ones(num_elements), torch.zeros(num_elements)
    runs: Sequence[Callable[[], object]] = (
        lambda: target.copy_(source),
        lambda: source.mul_(1.0),
    )
    num_bytes = 2 * 4 * num_elements
    best = max(num_bytes / time_calls(run) for run in runs)
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    return Bandwidth(best, torch.get_num_threads(), today)


def measure_kernels(num_elements: int) -> Iterator[Speed]:
    """Measure whole steps of some optimizers.

    Args:
        num_elements: Elements of the variables together.

    Yields:
        A dense step of SGD, Lion and Adam, Adam on many small variables, and Adam on
        the touched rows of a table.
    """
    for optimizer, passes in ((SGD(), 3), (Lion(), 5), (Adam(), 7)):
        name = f"{type(optimizer).__name__}, {num_elements:,} elements"
        yield _dense(name, optimizer, [num_elements], passes)
    yield _dense("Adam, 300 × 1,024 elements", Adam(), [1024] * 300, 7)
    yield _rows(num_elements // (4 * _ROW_WIDTH), num_elements // (64 * _ROW_WIDTH))


def _dense(name: str, optimizer: Optimizer, sizes: list[int], passes: int) -> Speed:
    held = [Variable(torch.ones(size)) for size in sizes]
    pairs = [
        (torch.full((size,), 1e-3), variable)
        for size, variable in zip(sizes, held, strict=True)
    ]
    seconds = time_calls(lambda: optimizer.apply_gradients(pairs))
    return Speed(name, seconds, 4.0 * passes * sum(sizes))


def _rows(num_rows: int, num_indices: int) -> Speed:
    table, optimizer = Variable(torch.ones(num_rows, _ROW_WIDTH)), Adam()
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(num_rows, (num_indices,), generator=generator)
    values = torch.full((num_indices, _ROW_WIDTH), 1e-3)
    pairs = [(IndexedSlices(values, indices, tuple(table.shape)), table)]
    seconds = time_calls(lambda: optimizer.apply_gradients(pairs))
    name = f"Adam, {num_indices:,} of {num_rows:,} rows of {_ROW_WIDTH}"
    touched = 6 * len(indices.unique()) + num_indices
    return Speed(name, seconds, 4.0 * _ROW_WIDTH * touched)
