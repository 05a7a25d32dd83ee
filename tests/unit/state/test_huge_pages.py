"""Large tables ask for huge pages; nothing else changes."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

import thalweg as tw
from thalweg.state import huge_pages
from thalweg.state.huge_pages import prefer_huge_pages

_OFFER = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_LARGE = (9, 1 << 20)  # 36 MiB of float32


def _flags_of(address: int) -> str:
    """The flags of the mapping an address lies in."""
    lines = iter(Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines())
    for line in lines:
        first, dash, rest = line.split(" ", 1)[0].partition("-")
        if dash and int(first, 16) <= address < int(rest, 16):
            return next(x for x in lines if x.startswith("VmFlags"))
    return ""


needs_huge_pages = pytest.mark.skipif(
    not _OFFER.exists() or not hasattr(mmap, "MADV_HUGEPAGE"),
    reason="the system has no transparent huge pages",
)


@needs_huge_pages
def test_a_large_tensor_is_advised_and_keeps_its_values() -> None:
    tensor = torch.full(_LARGE, 3.0)
    assert prefer_huge_pages(tensor)
    middle = tensor.data_ptr() + tensor.nbytes // 2
    assert " hg" in _flags_of(middle)
    assert bool((tensor == 3.0).all())


@needs_huge_pages
def test_a_large_variable_and_its_slots_are_advised() -> None:
    variable = tw.Variable(torch.zeros(_LARGE))
    optimizer = tw.optimizers.Adagrad()
    optimizer.build([variable])
    for tensor in (variable, optimizer.get_slot(variable, "accumulator")):
        assert " hg" in _flags_of(tensor.data_ptr() + tensor.nbytes // 2)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(5),
        torch.empty(_LARGE, device="meta"),
        torch.zeros(3, 3).to_sparse(),
    ],
    ids=["small", "meta", "sparse"],
)
def test_others_are_left_alone(tensor: torch.Tensor) -> None:
    assert not prefer_huge_pages(tensor)


def test_without_such_advice_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_ADVICE", None)
    assert not prefer_huge_pages(torch.empty(_LARGE))


def test_a_refusal_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_ADVICE", 12345)
    assert not prefer_huge_pages(torch.empty(_LARGE))


def test_strides_of_a_large_value_are_kept() -> None:
    value = torch.zeros(_LARGE).t()
    value[5] = 1.0
    variable = tw.Variable(value)
    assert variable.stride() == value.stride()
    assert torch.equal(variable, value)
