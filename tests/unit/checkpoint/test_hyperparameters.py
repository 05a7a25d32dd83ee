"""Hyperparameters against the saved ones, by key of the optimizer and by name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.checkpoint.slot_keeper import SlotKeeper
from thalweg.checkpoint.hyperparameters import (
    HyperMatch,
    HyperPolicy,
    encode_hyperparameters,
    match_hyperparameters,
)

RATE = {"$float": (0.5).hex()}


class Keeper(SlotKeeper):
    """Holds these hyperparameters; `added` were not there in older checkpoints."""

    def __init__(self, added: dict[str, Any] | None = None, **table: Any) -> None:
        super().__init__()
        self.numbers = table
        self.hyperparameters_added_later = added or {}

    def hyperparameters(self) -> dict[str, Any]:
        return self.numbers


def matched(
    keeper: Keeper, saved: dict[str, Any], hyper: HyperPolicy = "checkpoint"
) -> HyperMatch:
    return match_hyperparameters({"o": keeper}, {"o": saved}, hyper, ())


def test_what_stands_as_before_it_was_there_is_not_saved() -> None:
    keeper = Keeper({"seed": 0, "shift": 0}, rate=0.5, seed=0, shift=3)
    table = encode_hyperparameters("o", keeper)
    assert table == {"rate": RATE, "shift": 3}
    assert matched(keeper, {"rate": RATE}).differences == [
        "o/.hyper/shift: 0 in the checkpoint, 3 in the object"
    ]
    assert matched(keeper, {"rate": RATE}).missing == []


@pytest.mark.parametrize("hyper", ["checkpoint", "error-if-different"])
def test_names_that_one_side_lacks_are_listed(hyper: HyperPolicy) -> None:
    found = matched(Keeper(rate=0.5, more=1), {"rate": RATE}, hyper)
    assert (found.missing, found.unexpected) == (["o/.hyper/more"], [])
    found = matched(Keeper(rate=0.5), {"rate": RATE, "more": 1}, hyper)
    assert (found.missing, found.unexpected) == ([], ["o/.hyper/more"])
    assert found.owners == ["o"]


@pytest.mark.parametrize("hyper", ["checkpoint", "keep", "error-if-different"])
def test_another_kind_of_optimizer_is_a_mismatch(hyper: HyperPolicy) -> None:
    found = matched(Keeper(rate=0.5, beta=1), {"rate": RATE, "rho": 1}, hyper)
    assert found.mismatched == [
        "o/.hyper: rho in the checkpoint, beta in the object: another kind of optimizer"
    ]


def test_values_are_not_compared_where_they_are_kept() -> None:
    keeper = Keeper(rate=0.25)
    assert matched(keeper, {"rate": RATE}, "keep").differences == []
    assert matched(keeper, {"rate": RATE}).differences == [
        "o/.hyper/rate: 0.5 in the checkpoint, 0.25 in the object"
    ]
    taken = match_hyperparameters(
        {"o": keeper}, {"o": {"rate": RATE}}, "checkpoint", ["o/.hyper"]
    )
    assert (taken.differences, taken.owners) == ([], [])
