"""What the subject of a check is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.testing.subject import another_value


@pytest.mark.parametrize(
    ("field", "value", "other"),
    [
        (tw.Hyper(default=0.1, low=0.0), 0.5, 0.25),
        (tw.Hyper(default=0.0, low=0.0, below=1.0), 0.0, 0.25),
        (tw.Hyper(default=-0.5, high=0.0), -0.5, -0.25),
        (tw.Hyper(default=50.0, low=1.0), 1.0, 1.25),
        (tw.Hyper(default=1.0, low=1.0, high=1.1), 1.0, None),
        (tw.Hyper(default=0.1), torch.tensor(0.5), 0.25),
        (tw.Hyper(default=0.1), lambda: 0.5, None),
        (None, 0.5, 0.25),
    ],
)
def test_another_number(field: Any, value: Any, other: float | None) -> None:
    assert another_value(field, value) == other
