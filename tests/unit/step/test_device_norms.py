"""Squared norms and clip factors where the gradients are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.codegen.bits import same_bits
from tests.codegen.triton_runs import interpreting
from thalweg.step.device_norms import DeviceClip, DeviceNorms
from thalweg.step.norms import HostClip, SquaredNorms

DTYPES = (torch.float32, torch.bfloat16, torch.float32, torch.float64)


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    with interpreting(), np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("clipvalue", [None, 0.5])
def test_norms_have_the_bits_of_the_cpu(clipvalue: float | None) -> None:
    sizes = (7, 16_500, 0, 300)
    gradients = [
        torch.randn(n).to(dtype) for n, dtype in zip(sizes, DTYPES, strict=True)
    ]
    addresses = np.array([g.data_ptr() for g in gradients])
    is_clipped = clipvalue is not None
    here = SquaredNorms(gradients, is_clipped=is_clipped)
    there = DeviceNorms(gradients, is_clipped=is_clipped)
    for _ in range(2):
        expected = torch.from_numpy(here(addresses, clipvalue, 1))
        assert same_bits(there(addresses, clipvalue), expected)
        gradients[1].mul_(0.3)


@pytest.mark.parametrize("clips", [(0.5, None), (None, 0.5), (0.7, 0.9), (None, 1e9)])
@pytest.mark.parametrize("norms", [[9.0, 16.0, 0.0], [np.inf, 1.0], [np.nan, 4.0]])
def test_factors_are_those_of_the_cpu(clips: Any, norms: Any) -> None:
    squared = torch.tensor(norms, dtype=torch.float64)
    scales = DeviceClip(squared, *clips)()
    assert same_bits(
        scales, torch.from_numpy(HostClip(len(norms), *clips).of(np.array(norms)))
    )


def test_factors_unscale_first() -> None:
    squared = torch.tensor([9.0, 16.0], dtype=torch.float64)
    clip = DeviceClip(squared, None, 2.5)
    assert clip(0.5).tolist() == [0.5, 0.5]
    assert clip(torch.tensor(0.25).double()).tolist() == [0.25, 0.25]
    assert clip().tolist() == [0.5, 0.5]


def test_a_norm_starts_no_kernel_that_writes_elements() -> None:
    gradients = [torch.randn(2000)]
    norms = DeviceNorms(gradients, is_clipped=False)
    started: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "thalweg.compiler.triton_kernel.TritonKernel.start",
            lambda self, suffix, *_, **__: started.append(suffix),
        )
        norms(np.array([gradients[0].data_ptr()]), None)
    assert started == ["_pass0", "_fold0", "_store_cells"]
