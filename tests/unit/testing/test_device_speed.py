"""The bandwidth of a GPU, measured on a device whose copies are not waited for."""

from __future__ import annotations

import pytest
import torch

from thalweg.testing.device_speed import measure_device_bandwidth


def test_bandwidth_is_a_rate_that_waits_for_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, waits = torch.device("cpu"), []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    found = measure_device_bandwidth(10_000, device)
    assert set(waits) == {device}
    assert found.threads == 0
    assert 1e6 < found.bytes_per_second < 1e14
