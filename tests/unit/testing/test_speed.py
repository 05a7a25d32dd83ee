"""The measurements of `thalweg bench`, on sizes that take no time."""

from __future__ import annotations

import time

import torch

from thalweg.testing.speed import (
    Speed,
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


def test_the_least_disturbed_call_counts() -> None:
    waits = iter([0.0, 0.0, 0.02, 0.001, 0.02])
    taken = time_calls(lambda: time.sleep(next(waits)), rounds=3)
    assert 0.001 <= taken < 0.02
