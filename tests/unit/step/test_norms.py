"""Squared norms and clip factors of gradients on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg.compiler import compilation
from thalweg.step.norms import HostClip, SquaredNorms

NORMS = ([9.0, 16.0, 0.0], [np.inf, 1.0], [np.nan, 4.0], [1e-300, 1e300], [4.0] * 70)
CLIPS = ((0.5, None), (None, 0.5), (0.7, 0.9), (None, 1e9), (None, None))


def by_formula(squared: np.ndarray, unscale: float, clips: Any) -> np.ndarray:
    """The factors as the formula of the rule reads, in NumPy."""
    norms = np.sqrt(squared * (unscale * unscale))
    scales = np.ones_like(norms)
    if clips[0] is not None:
        scales = clips[0] / np.maximum(norms, clips[0])
    if clips[1] is not None:
        common = np.sqrt(np.sum((norms * scales) ** 2))
        factor = clips[1] / max(common, clips[1])
        scales = scales * (factor if np.isfinite(common) else np.nan)
    return scales * unscale


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("clips", CLIPS)
@pytest.mark.parametrize("unscale", [1.0, 0.25])
@pytest.mark.parametrize("norms", NORMS)
def test_factors_are_those_of_the_formula(
    norms: Any,
    unscale: float,
    clips: Any,
    is_compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("THALWEG_COMPILER", str(int(is_compiled)))
    compilation.clear()
    squared = np.array(norms)
    clip = HostClip(len(squared), *clips)
    with np.errstate(all="ignore"):
        expected = by_formula(squared, unscale, clips)
    for _ in range(2):  # the second time on tables that were used
        found = clip.of(squared, unscale)
        assert np.allclose(found, expected, rtol=1e-14, atol=0.0, equal_nan=True)
    compilation.clear()


def test_norms_are_read_anew_each_time() -> None:
    gradients = [torch.tensor([3.0, 4.0]), torch.empty(0), torch.full((3,), 2.0)]
    norms = SquaredNorms(gradients, is_clipped=True)
    addresses = np.array([gradient.data_ptr() for gradient in gradients])
    assert norms(addresses, 10.0, 1).tolist() == [25.0, 0.0, 12.0]
    gradients[2].fill_(1.0)
    assert norms(addresses, 3.5, 1).tolist() == [3.0**2 + 3.5**2, 0.0, 3.0]


def test_limits_can_change() -> None:
    clip = HostClip(2, 1.0, 10.0)
    squared = np.array([4.0, 16.0])
    assert clip.of(squared).tolist() == [0.5, 0.25]
    clip.limit(2.0, 10.0)
    assert clip.of(squared).tolist() == [1.0, 0.5]


def test_a_clip_that_changes_in_every_step_keeps_nothing() -> None:
    weight = tw.Variable([0.0, 0.0])
    optimizer = tw.optimizers.SGD(1.0, global_clipnorm=1.0)
    for limit in (1.0, 2.0, 4.0):
        weight.assign([0.0, 0.0])
        optimizer.global_clipnorm = limit
        optimizer.apply_gradients([(torch.tensor([-6.0, -8.0]), weight)])
        assert weight.tolist() == pytest.approx([0.6 * limit, 0.8 * limit])
    assert optimizer._plan is not None
    assert len(optimizer._plan._clips) == 1
