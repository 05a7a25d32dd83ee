"""The measurements of `thalweg bench`, on sizes that take no time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from thalweg.step.bandwidth import Bandwidth
from thalweg.testing import speed
from thalweg.testing.speed import (
    Speed,
    cache_bytes,
    measure_bandwidth,
    measure_kernels,
    time_calls,
)


def test_bandwidth_is_a_rate() -> None:
    found = measure_bandwidth(10_000)
    assert found.threads == torch.get_num_threads()
    assert 1e6 < found.bytes_per_second < 1e14


def test_kernels_are_measured_with_their_bytes() -> None:
    found = list(measure_kernels(8192))
    assert [speed.name.split(",")[0] for speed in found] == [
        "SGD",
        "Lion",
        "Adam",
        "Adam",
        "Adam",
    ]
    assert found[0].num_bytes == 3 * 4 * 8192
    assert all(speed.seconds > 0 for speed in found)
    assert Speed("x", 2.0, 8.0).bytes_per_second == 4.0


@pytest.mark.parametrize("rates", [(1.0, 1.5, 2.0), (1.0, 2.0, 1.5), (2.0, 1.0, 1.5)])
def test_the_best_of_the_bandwidths_is_kept(
    rates: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[object] = []
    bandwidths = iter(Bandwidth(rate, 1, "2026-01-31") for rate in rates)
    step = Speed("x", 2.0, 8.0)

    def measure_memory(elements: int) -> Bandwidth:
        order.append(elements)
        return next(bandwidths)

    def measure_steps(elements: int) -> Iterator[Speed]:
        for _ in range(2):
            order.append(step)
            yield step

    monkeypatch.setattr(speed, "measure_bandwidth", measure_memory)
    monkeypatch.setattr(speed, "measure_kernels", measure_steps)
    bandwidth, steps = speed.measure(3)
    assert bandwidth.bytes_per_second == 2.0
    assert steps == [step, step]
    assert order == [3, step, 3, step, 3]


def test_memory_that_is_held_is_counted_once() -> None:
    sgd, lion, adam, small, rows = measure_kernels(8192)
    arrays = {sgd: 2, lion: 3, adam: 4}
    for found, count in arrays.items():
        assert found.held_bytes == count * 4 * 8192
    assert small.held_bytes == 4 * 4 * 300 * 1024
    assert rows.held_bytes == 4 * 64 * (3 * 2 + 2)  # two of 32 rows, both different
    assert not sgd.is_of_memory(1 << 15)
    assert lion.is_of_memory(1 << 15)


def test_the_last_level_of_caches_is_added_up(tmp_path: Path) -> None:
    caches = [
        *((0, 1, "32K", "0"), (3, 3, "8192K", "0-1"), (3, 3, "8192K", "0-1")),
        *((3, 3, "4096K", "2-3"), (3, 3, "?", "4"), (4, "?", "1K", "5")),
    ]
    for core, (index, level, size, cores) in enumerate(caches):
        folder = tmp_path / f"cpu{core}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
        (folder / "shared_cpu_list").write_text(f"{cores}\n")
    assert cache_bytes(tmp_path) == 12 << 20
    assert cache_bytes(tmp_path / "nothing") == 32 << 20
    assert cache_bytes() >= 1 << 15


def test_the_least_disturbed_call_counts() -> None:
    waits = iter([0.0, 0.0, 0.02, 0.001, 0.02])
    taken = time_calls(lambda: time.sleep(next(waits)), rounds=3)
    assert 0.001 <= taken < 0.02
