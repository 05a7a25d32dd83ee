"""Hyperparameters as entries of torch's groups, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.interop.group_numbers import (
    GroupNumber,
    entries_of,
    numbers_of,
    numbers_shown,
)

ADAM = {"learning_rate": 0.5, "beta_1": 0.9, "beta_2": 0.99, "epsilon": 1e-7}
ENTRIES = {"lr": 0.5, "betas": (0.9, 0.99), "eps": 1e-7}


def test_names_are_torchs() -> None:
    assert entries_of(ADAM) == ENTRIES
    assert entries_of({"beta_1": 0.9, "rho": 0.5}) == {"beta_1": 0.9, "rho": 0.5}


@pytest.mark.parametrize("name", tw.optimizers.names())
def test_there_and_back(name: str) -> None:
    shown = numbers_shown(tw.optimizers.get(name))
    assert numbers_of(entries_of(shown), shown) == shown


def test_decay_and_flags_are_not_shown() -> None:
    optimizer = tw.optimizers.Adam(decay=0.5, amsgrad=True)
    assert set(numbers_shown(optimizer)) == set(ADAM)


def test_tensors_are_numbers() -> None:
    group = {**ENTRIES, "lr": torch.tensor(0.25)}
    assert numbers_of(group, ADAM)["learning_rate"] == 0.25


@pytest.mark.parametrize(
    "wrong", [{"lr": "fast"}, {"lr": None}, {"betas": 0.9}, {"betas": (0.9,)}]
)
def test_what_is_no_number_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="expected a number for"):
        numbers_of({**ENTRIES, **wrong}, ADAM)


def test_a_group_number_gives_what_it_holds() -> None:
    number = GroupNumber(0.5)
    number.value = 0.25
    assert number() == 0.25
