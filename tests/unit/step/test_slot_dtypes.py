"""What constructors take as storage dtypes of slots."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thalweg.step.slot_dtypes import checked_slot_dtypes

HALF = torch.bfloat16


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("variable", "variable"),
        ("bfloat16", HALF),
        (HALF, HALF),
        ({}, {}),
        ({"m": "bfloat16", "v": torch.float64}, {"m": HALF, "v": torch.float64}),
    ],
)
def test_what_may_be_given(given: Any, expected: Any) -> None:
    assert checked_slot_dtypes("Adam", given) == expected


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (16, TypeError, r"Adam: slot_dtypes: expected None.*got 16"),
        (["bfloat16"], TypeError, r"a mapping from slot name to dtype; got \["),
        ("int", ValueError, r"Adam: slot_dtypes: expected a dtype among float16"),
        ("nn", ValueError, r"got 'nn'"),
        (torch.int8, ValueError, r"got torch\.int8"),
        ({"m": "int8"}, ValueError, r"slot_dtypes\['m'\].*got 'int8'"),
        ({"m": None}, ValueError, r"slot_dtypes\['m'\].*got None"),
    ],
)
def test_what_is_refused(given: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        checked_slot_dtypes("Adam", given)
