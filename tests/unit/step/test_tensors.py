"""What may be written through a pointer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg.step.tensors import check_readable, check_writable, is_dense, same_order


def test_an_empty_array_of_numpy_shares_nothing() -> None:
    empty = torch.from_numpy(np.zeros((0, 4), np.float32))
    assert empty.stride() == (0, 0)
    check_writable("step", "var", empty)
    variable = tw.Variable(empty)
    tw.optimizers.Adam().apply_gradients([(empty.clone(), variable)])
    assert variable.shape == (0, 4)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(1).expand(3), "share memory"),
        (torch.zeros(3, dtype=torch.complex64).conj(), "conjugated"),
        (torch.zeros(3).to_sparse(), r"another layout\. Pass tensor\.to_dense\(\)"),
    ],
)
def test_what_cannot_be_written_is_refused(tensor: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_writable("step", "var", tensor)


def test_an_expanded_tensor_can_be_read() -> None:
    check_readable("step", "grad", torch.zeros(1).expand(3))


def test_a_permutation_is_dense_and_a_slice_is_not() -> None:
    whole = torch.zeros(2, 3, 4)
    assert is_dense(whole.permute(2, 0, 1))
    assert not is_dense(whole[:, :2])
    assert same_order(whole.permute(2, 0, 1), torch.zeros(2, 3, 4).permute(2, 0, 1))
    assert not same_order(whole, torch.zeros(4, 3, 2).permute(2, 1, 0))
