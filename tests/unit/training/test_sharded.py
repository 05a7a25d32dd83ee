"""The lasting ones of parameters that FSDP2 shows between forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed.harness import run_ranks
from thalweg.training import sharded

pytestmark = pytest.mark.distributed


def test_what_nobody_has_sharded_is_shown_as_it_is():
    model = nn.Linear(2, 1)
    shown = list(model.parameters())
    found = list(sharded.lasting_parameters(shown, [model]))
    assert all(one is other for one, other in zip(found, shown, strict=True))


def gradients(has_fields: bool) -> tuple[list[bool], list[torch.Tensor]]:
    """Whether parameters are found again, and their gradients."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    fully_shard(model[0])
    fully_shard(model)
    before = list(model.parameters())
    if not has_fields:
        sharded._pairs = sharded._pairs_by_resharding
    loss = model(torch.ones(4, 3)).square().sum()
    found = list(sharded.lasting_parameters(list(model.parameters()), [model]))
    loss.backward()
    same = [one is other for one, other in zip(found, before, strict=True)]
    grads: list[Any] = [parameter.grad for parameter in found]
    return same, [grad.full_tensor() for grad in grads]


def test_the_lasting_ones_are_found_also_without_private_fields():
    (by_fields, expected), *_ = run_ranks(gradients, 2, True)
    (by_public, found), *_ = run_ranks(gradients, 2, False)
    assert all(by_fields)
    assert all(by_public)
    assert all(map(torch.equal, found, expected))
