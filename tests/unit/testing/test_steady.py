"""Counting allocations: new memory counts, views and updates in place do not."""

from __future__ import annotations

import torch

from thalweg.testing.steady import Allocations


def test_new_memory_is_counted() -> None:
    with Allocations() as counting:
        _ = torch.ones(3) + 1
        _ = torch.empty(2)
    assert counting.names == [
        "aten.ones.default",
        "aten.add.Tensor",
        "aten.empty.memory_format",
    ]


def test_views_and_updates_in_place_are_not() -> None:
    tensor = torch.ones(4)
    with Allocations() as counting:
        tensor.add_(1)
        tensor[1:].mul_(2)
        tensor.view(2, 2).detach().copy_(tensor.view(2, 2))
    assert counting.names == []
