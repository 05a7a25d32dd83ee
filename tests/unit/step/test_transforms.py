"""What is said of gradients that are not finite."""

from __future__ import annotations

import pytest
import torch

import thalweg as tw
from thalweg.step import refuse_nonfinite


def test_names_of_a_few_variables_are_told() -> None:
    named = tw.Variable(torch.ones(2), name="kernel")
    with pytest.raises(FloatingPointError, match="in that of kernel"):
        refuse_nonfinite([named])
    unnamed = torch.ones(3, 2)
    part = r"those of kernel, an unnamed one of shape \(3, 2\)\."
    with pytest.raises(FloatingPointError, match=part):
        refuse_nonfinite([named, unnamed])


def test_of_many_variables_five_are_told() -> None:
    many = [tw.Variable(torch.ones(2), name=f"v{i}") for i in range(12)]
    with pytest.raises(FloatingPointError, match=r"v3, v4 and 7 more\."):
        refuse_nonfinite(many)
