"""Clips and checks of a step whose gradients are on one device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.codegen.bits import same_bits
from tests.codegen.triton_runs import interpreting
from thalweg.step.device_fold import DeviceFold
from thalweg.step.norms import HostClip, SquaredNorms


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    with interpreting(), np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("is_checked", [False, True])
@pytest.mark.parametrize("clipvalue", [None, 0.5])
@pytest.mark.parametrize("clips", [(0.5, None), (None, 0.5), (None, None)])
def test_factors_are_those_of_the_host(
    clips: Any, clipvalue: float | None, is_checked: bool
) -> None:
    gradients = [torch.randn(7), torch.randn(300)]
    addresses = np.array([g.data_ptr() for g in gradients])
    fold = DeviceFold(
        gradients,
        clips_values=clipvalue is not None,
        clipnorm=clips[0],
        global_clipnorm=clips[1],
    )
    if is_checked:
        assert fold.check(addresses, gradients).tolist() == [True, True]
    scales = fold.scales(addresses, clipvalue, 0.25, is_checked=is_checked)
    bound = None if clipvalue is None else clipvalue / 0.25
    norms = SquaredNorms(gradients, is_clipped=clipvalue is not None)
    expected = HostClip(2, *clips).of(norms(addresses, bound, 1), 0.25)
    assert same_bits(scales, torch.as_tensor(expected))


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_one_bad_element_is_found(bad: float) -> None:
    gradients = [torch.randn(7), torch.randn(300)]
    addresses = np.array([g.data_ptr() for g in gradients])
    fold = DeviceFold(gradients, clips_values=True, clipnorm=None, global_clipnorm=None)
    assert fold.check(addresses, gradients).all()
    gradients[1][299] = bad
    assert fold.check(addresses, gradients).tolist() == [True, False]


def test_a_sum_that_overflows_is_no_bad_element() -> None:
    gradients = [torch.full((9,), 1e200, dtype=torch.float64), torch.full((9,), 3e38)]
    addresses = np.array([g.data_ptr() for g in gradients])
    fold = DeviceFold(gradients, clips_values=False, clipnorm=1.0, global_clipnorm=None)
    assert fold.check(addresses, gradients).all()
    gradients[0][4] = torch.nan
    assert fold.check(addresses, gradients).tolist() == [False, True]
