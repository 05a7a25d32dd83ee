"""Raw ops on a GPU: the bits of the CPU, no waiting, graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import thalweg as tw
from tests.gpu.test_graphs import no_waiting, warmed_up
from thalweg.compiler.triton_kernel import has_triton

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not has_triton(), reason="needs Triton"),
]

DEVICE = torch.device("cuda", 0)


def held(device: Any) -> dict[str, Any]:
    """Variable, slot, gradient of all of it or of some rows."""
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(64, 32, generator=generator) for _ in range(2)]
    return {
        "var": tensors[0].to(device),
        "accum": torch.ones(64, 32, device=device),
        "grad": tensors[1].to(device),
        "indices": torch.tensor([3, 9, 3, 63] * 16, device=device),
    }


def step(given: dict[str, Any]) -> None:
    """One op on the whole variable, one on rows."""
    dense = {name: tensor for name, tensor in given.items() if name != "indices"}
    tw.raw_ops.ResourceApplyAdagrad(**dense, lr=0.5)
    tw.raw_ops.ResourceSparseApplyAdagrad(**given, lr=0.25, check_indices=False)


def agree(given: dict[str, Any], count: int) -> bool:
    """Whether so many steps were taken, with the bits of a CPU."""
    here = held("cpu")
    for _ in range(count):
        step(here)
    return all(torch.equal(given[name].cpu(), here[name]) for name in ("var", "accum"))


def test_ops_have_the_bits_of_the_cpu_and_wait_for_nothing() -> None:
    given = held(DEVICE)
    step(given)
    with no_waiting():
        step(given)
    assert agree(given, 2)
    tw.raw_ops.check_deferred()


def test_ops_can_be_captured() -> None:
    given = held(DEVICE)
    graph = warmed_up(lambda: step(given), 2)
    for _ in range(3):
        graph.replay()
    step(given)
    torch.cuda.synchronize()
    assert agree(given, 6)
