"""Variables that have become inf or NaN are found, and no others."""

from __future__ import annotations

import pytest
import torch

from thalweg.training.lost_variables import lost_among


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_one_number_is_found(dtype: torch.dtype, number: float) -> None:
    lost = torch.ones(7, 3, dtype=dtype)
    lost[4, 1] = number
    both = torch.tensor([float("inf"), float("-inf")])
    found = {"sound": torch.ones(2, dtype=dtype), "lost": lost, "both": both}
    assert lost_among(found) == ["lost", "both"]


def test_a_sum_that_overflows_is_no_loss() -> None:
    large = torch.full((9,), 3e38), torch.full((9,), 6e4, dtype=torch.float16)
    others = torch.empty(0), torch.arange(3), torch.tensor([True])
    tensors = dict(enumerate([*large, *others]))
    assert not torch.isfinite(large[0].sum())
    assert lost_among({str(n): one for n, one in tensors.items()}) == []
