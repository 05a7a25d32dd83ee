"""Budgets of what reading takes."""

from __future__ import annotations

import pytest

from thalweg.checkpoint.allowance import (
    ALWAYS_ALLOWED,
    MEMBER_BYTES,
    OBJECT_BYTES,
    STORED_BYTES_OF_TEXT,
    TEXT_BYTES,
    Allowance,
    Budget,
    most_text,
)


def test_what_is_spent_stays_and_what_is_checked_does_not() -> None:
    budget = Budget("text", 10, unlimited=False)
    budget.check(10)
    budget.spend(6)
    budget.check(4)
    assert (budget.spent, budget.left, budget.excess) == (6, 4, 0)
    for ask in (budget.check, budget.spend):
        with pytest.raises(ValueError, match="11 bytes of text, where 10 are allowed"):
            ask(5)
    assert budget.spent == 6


def test_what_is_given_back_can_be_spent_again() -> None:
    budget = Budget("text", 10, unlimited=False)
    for _ in range(3):
        budget.spend(8)
        budget.spend(-8)
    assert budget.left == 10


def test_an_unlimited_one_tells_what_was_asked_for_at_the_most() -> None:
    budget = Budget("text", 10, unlimited=True)
    budget.spend(12)
    budget.check(5)
    budget.spend(-12)
    assert (budget.excess, budget.spent) == (7, 0)


def test_an_allowance_is_of_memory_and_of_text() -> None:
    allowance = Allowance(100, most_text(6_400))
    assert allowance.memory.granted == ALWAYS_ALLOWED + 200
    assert allowance.text.granted == TEXT_BYTES + 6_400 // STORED_BYTES_OF_TEXT
    allowance.spend_members(["a", "bc"])
    assert allowance.memory.spent == 2 * (MEMBER_BYTES + OBJECT_BYTES) + 3
    allowance.spend_members(["é"])
    assert allowance.memory.spent == 3 * (MEMBER_BYTES + OBJECT_BYTES) + 7
    assert allowance.text.spent == 0
