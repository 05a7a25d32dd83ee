"""Which tensors are variables of an optimizer, and that the others change nothing."""

from __future__ import annotations

import pytest
import torch

import thalweg as tw


def test_a_variable_without_memory_is_refused_before_anything_is_made() -> None:
    optimizer = tw.optimizers.Adam()
    model = torch.nn.Linear(2, 1, device="meta")
    part = r"build: expected a variable with memory; got weight, .*on meta\. Give it"
    with pytest.raises(ValueError, match=part):
        optimizer.build(model)
    here, there = torch.nn.Parameter(torch.ones(1)), model.bias
    pairs = [(torch.ones(1), here), (torch.ones(1, device="meta"), there)]
    with pytest.raises(ValueError, match="apply_gradients: expected a variable with"):
        optimizer.apply_gradients(pairs)
    assert (optimizer.weights, here.item()) == ([], 1.0)
    optimizer.build(model.to_empty(device="cpu"))
    assert optimizer.get_slot(model.weight, "m").shape == (1, 2)


def test_complex_and_whole_numbers_are_refused() -> None:
    optimizer = tw.optimizers.SGD()
    with pytest.raises(ValueError, match="view_as_real"):
        optimizer.build([torch.zeros(2, dtype=torch.complex64)])
    with pytest.raises(ValueError, match=r"an int64 tensor.*Only floating variables"):
        optimizer.build([torch.zeros(2, dtype=torch.int64)])
    with pytest.raises(TypeError, match=r"build: expected a variable \(a tensor"):
        optimizer.build([3])
