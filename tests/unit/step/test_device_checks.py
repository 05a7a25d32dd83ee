"""What a device finds out, and when the host hears of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.unit.step.pretended_device import DEVICE, PretendedDevice, pretended_device
from thalweg.step.device_checks import LateCheck, refuse_late_errors


@pytest.fixture(scope="module")
def device() -> Iterator[PretendedDevice]:
    with pretended_device() as found:
        yield found


def check() -> LateCheck:
    return LateCheck(DEVICE, lambda: IndexError("row 9"))


def test_an_error_is_told_once(device: PretendedDevice) -> None:
    late, verdicts = check(), torch.tensor([True, False]).to(DEVICE)
    with device.no_waiting():
        late.refuse_known()
        late.note(verdicts[0])
        late.refuse_known()
        late.note(verdicts[1])
        late.note(verdicts[0])
        with pytest.raises(IndexError, match="row 9"):
            late.refuse_known()
        late.note(verdicts[0])
        late.refuse_known()
    late.refuse()


def test_all_are_asked_where_the_host_reads(device: PretendedDevice) -> None:
    del device
    first, second = check(), check()
    for late in (first, second):
        late.note(torch.tensor(False).to(DEVICE))
    for _ in range(2):
        with pytest.raises(IndexError, match="row 9"):
            refuse_late_errors()
    refuse_late_errors()


def test_nobody_asks_in_a_capture(device: PretendedDevice) -> None:
    late, wrong = check(), torch.tensor(False).to(DEVICE)
    with device.graph() as graph:
        late.note(wrong)
        late.refuse_known()
    late.refuse()
    graph.replay()
    with pytest.raises(IndexError, match="row 9"):
        late.refuse()


def test_what_is_not_noted_is_not_asked(device: PretendedDevice) -> None:
    late = check()
    with device.no_waiting():
        late.refuse()
