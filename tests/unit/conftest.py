"""A device for the tests of what runs on one: kernels are evaluated, never launched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.step.pretended_device import PretendedDevice, pretended_device


@pytest.fixture(scope="module")
def device() -> Iterator[PretendedDevice]:
    with pretended_device() as found:
        yield found
