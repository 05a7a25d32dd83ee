"""What `thalweg bench` measures: memory bandwidth, and a few kernels beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from thalweg.optimizers import SGD, Adam, Lion, Optimizer
from thalweg.state import IndexedSlices, Variable
from thalweg.step.bandwidth import Bandwidth

__all__ = [
    "Speed",
    "cache_bytes",
    "measure",
    "measure_bandwidth",
    "measure_kernels",
    "time_calls",
]

_ROUNDS = 9
_WARM_UP = 2
_ROW_WIDTH = 64
_CACHES = Path("/sys/devices/system/cpu")
_GUESSED_CACHE_BYTES = 1 << 25


@dataclass(frozen=True)
class Speed:
    """One measurement.

    Attributes:
        name: What was run.
        seconds: The least of some rounds.
        num_bytes: Bytes it reads and writes; an estimate for rows.
        held_bytes: Bytes of the memory where it does so.
    """

    name: str
    seconds: float
    num_bytes: float
    held_bytes: float = math.inf

    @property
    def bytes_per_second(self) -> float:
        """Bytes over time."""
        return self.num_bytes / self.seconds

    def is_of_memory(self, caches: int) -> bool:
        """Whether caches of so many bytes keep little of it from round to round."""
        return self.held_bytes > 2 * caches


def time_calls(function: Callable[[], object], rounds: int = _ROUNDS) -> float:
    """The time of the least disturbed of some calls, after two that do not count."""
    taken = []
    for number in range(-_WARM_UP, rounds):
        start = time.perf_counter()
        function()
        if number >= 0:
            taken.append(time.perf_counter() - start)
    return min(taken)


def measure(num_elements: int) -> tuple[Bandwidth, list[Speed]]:
    """Measure steps of some optimizers, and memory before and after each of them.

    Args:
        num_elements: As for `measure_bandwidth` and `measure_kernels`.

    Returns:
        The best of the bandwidths, since other work on the machine makes it smaller
        only, and the steps.
    """
    found, bandwidths = list[Speed](), [measure_bandwidth(num_elements)]
    for speed in measure_kernels(num_elements):
        found.append(speed)
        bandwidths.append(measure_bandwidth(num_elements))
    return max(bandwidths, key=lambda one: one.bytes_per_second), found


def cache_bytes(place: Path = _CACHES) -> int:
    """Bytes of the last level of caches, all of its caches together.

    Args:
        place: Where Linux tells of the processors.

    Returns:
        The number; a guess where the system does not say.
    """
    sizes: dict[int, dict[str, int]] = {}
    for folder in place.glob("cpu[0-9]*/cache/index*"):
        try:
            level, size, cores = (
                (folder / name).read_text().strip()
                for name in ("level", "size", "shared_cpu_list")
            )
            number = int(size.removesuffix("K")) << 10 * size.endswith("K")
            sizes.setdefault(int(level), {})[cores] = number
        except (OSError, ValueError):
            continue
    return sum(sizes[max(sizes)].values()) if sizes else _GUESSED_CACHE_BYTES


def measure_bandwidth(num_elements: int) -> Bandwidth:
    """Measure how fast memory is read and written, by torch, in all threads.

    Args:
        num_elements: Float32 numbers of a variable, far more than caches hold. The
            memory is that of an Adam step on it, so that what a call costs beside its
            bytes weighs as much as there.

    Returns:
        The best one of a copy, an update in place, and a sum in place.
    """
    length = 2 * num_elements
    source, target = torch.ones(length), torch.zeros(length)
    runs: Sequence[tuple[int, Callable[[], object]]] = (
        (2, lambda: target.copy_(source)),
        (2, lambda: source.mul_(1.0)),
        (3, lambda: target.add_(source)),
    )
    best = max(4 * passes * length / time_calls(run) for passes, run in runs)
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
    # The gradient is read only, all else is read and written.
    held_bytes = 4.0 * (passes + 1) / 2 * sum(sizes)
    return Speed(name, seconds, 4.0 * passes * sum(sizes), held_bytes)


def _rows(num_rows: int, num_indices: int) -> Speed:
    table, optimizer = Variable(torch.ones(num_rows, _ROW_WIDTH)), Adam()
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(num_rows, (num_indices,), generator=generator)
    values = torch.full((num_indices, _ROW_WIDTH), 1e-3)
    pairs = [(IndexedSlices(values, indices, tuple(table.shape)), table)]
    seconds = time_calls(lambda: optimizer.apply_gradients(pairs))
    name = f"Adam, {num_indices:,} of {num_rows:,} rows of {_ROW_WIDTH}"
    written, row_bytes = 3 * len(indices.unique()), 4.0 * _ROW_WIDTH
    passed, held = 2 * written + num_indices, written + num_indices
    return Speed(name, seconds, row_bytes * passed, row_bytes * held)
