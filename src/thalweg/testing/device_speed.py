"""The memory bandwidth of a GPU, for `thalweg bench`."""

from __future__ import annotations

from datetime import UTC, datetime

import torch

from thalweg.step.bandwidth import Bandwidth
from thalweg.testing.speed import time_calls

__all__ = ["measure_device_bandwidth"]

_COPIES = 20  # for each wait for the device, whose time is then none of theirs


def measure_device_bandwidth(num_elements: int, device: torch.device) -> Bandwidth:
    """Measure how fast a GPU copies its memory.

    Args:
        num_elements: Float32 numbers; far more than caches hold.
        device: The GPU.

    Returns:
        Bytes read and written in a second; no thread shares that work.
    """
    source = torch.ones(num_elements, device=device)
    target = torch.zeros_like(source)

    def copy() -> None:
        for _ in range(_COPIES):
            target.copy_(source)
        torch.cuda.synchronize(device)

    seconds = time_calls(copy) / _COPIES
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    return Bandwidth(2 * 4 * num_elements / seconds, 0, today)
