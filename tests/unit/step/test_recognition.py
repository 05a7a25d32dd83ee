"""Tensors that are like those of an earlier step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thalweg.step.recognition import recognizer

LIKE = torch.zeros(2, 3), torch.zeros(()), torch.zeros(0, 2)


@pytest.fixture(name="is_like")
def make_recognizer() -> Any:
    return recognizer(LIKE)


def test_new_tensors_of_the_same_kind_are_recognized(is_like: Any) -> None:
    assert is_like(torch.ones(2, 3), torch.ones(()), torch.ones(0, 2))
    with torch.no_grad():
        assert is_like(*LIKE)


@pytest.mark.parametrize(
    "other",
    [
        torch.ones(3, 2),
        torch.ones(3, 2).T,
        torch.ones(2, 3, dtype=torch.float64),
        torch.ones(2, 3, device="meta"),
        torch.ones(2, 3).to_sparse(),
        torch.ones(2, 3, requires_grad=True),
        torch.nn.Parameter(torch.ones(2, 3)),
        torch.ones(2, 3, dtype=torch.complex64).conj().imag,  # lazily negated
        torch.ones(2, 6)[:, ::2],
        None,
        3.0,
    ],
    ids=str,
)
def test_others_are_not(is_like: Any, other: Any) -> None:
    assert not is_like(other, *LIKE[1:])


def test_the_second_and_third_count_too(is_like: Any) -> None:
    assert not is_like(LIKE[0], torch.ones(1), LIKE[2])
    assert not is_like(LIKE[0], LIKE[1], torch.ones(0, 3))


def test_no_tensors_are_like_no_tensors() -> None:
    assert recognizer(())()
