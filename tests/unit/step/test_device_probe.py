"""A device is trusted after its first kernel, on the CPU under Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.codegen.triton_runs import interpreting
from thalweg.step import captures, device_kernel
from thalweg.step.device_kernel import gives_right_bits

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    gives_right_bits.cache_clear()
    with interpreting():
        yield
    gives_right_bits.cache_clear()


def test_a_kernel_that_works_is_trusted() -> None:
    assert gives_right_bits(CPU)


def test_a_kernel_that_raises_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such architecture")

    monkeypatch.setattr(device_kernel, "DeviceKernel", fail)
    with pytest.warns(RuntimeWarning, match="no such architecture"):
        assert not gives_right_bits(CPU)
    assert not gives_right_bits(CPU)  # and says so once


def test_a_capture_does_not_judge_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(captures, "is_capturing", lambda device: True)
        with pytest.raises(RuntimeError, match=r"before it.*torch\.cuda\.Stream"):
            gives_right_bits(CPU)
    assert gives_right_bits(CPU)
    monkeypatch.setattr(captures, "is_capturing", lambda device: True)
    assert gives_right_bits(CPU)  # which is known


def test_a_kernel_with_other_bits_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: Any, __: Any, tensors: list[torch.Tensor], *___: Any) -> Any:
        return tuple(torch.nextafter(t, t + 1) for t in tensors[:2])

    monkeypatch.setattr(device_kernel, "interpret", wrong)
    with pytest.warns(RuntimeWarning, match="other bits"):
        assert not gives_right_bits(CPU)
