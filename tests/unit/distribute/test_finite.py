"""Checks for inf and NaN in one process; meshes are in tests/distributed."""

from __future__ import annotations

import torch

from thalweg.distribute.finite import are_nonfinite


def test_one_process_says_what_it_sees() -> None:
    bad = torch.tensor([1.0, float("-inf")])
    assert are_nonfinite([torch.ones(2), bad]) == [False, True]
    assert are_nonfinite([torch.ones(0), torch.ones(2, dtype=torch.float64)]) == [
        False,
        False,
    ]
