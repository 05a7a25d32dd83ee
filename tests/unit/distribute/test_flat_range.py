"""Where a shard begins; two ranks are in tests/distributed."""

from __future__ import annotations

import torch

from thalweg.distribute.flat_range import first_index


def test_a_whole_variable_begins_at_0() -> None:
    assert first_index(torch.ones(3, 2)) == 0
    assert first_index(torch.nn.Parameter(torch.ones(()))) == 0
