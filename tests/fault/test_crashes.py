"""Processes that die while they save: what they acknowledged is there, or newer."""

from __future__ import annotations

import pytest

from benchmarks import reliability


def test_kill_9_at_random_moments() -> None:
    (row,) = reliability.kill(rounds=10, megabytes=1)
    assert row["trials"] == 10
    assert row["failures"] == 0


def test_exit_before_every_change_of_the_disk() -> None:
    (row,) = reliability.exit_everywhere()
    assert row["trials"] >= 40
    assert row["failures"] == 0


def test_a_saver_that_loses_checkpoints_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome = {"rounds": 10, "lost": 3, "saved": 7}
    monkeypatch.setattr(reliability, "run_crashes", lambda *arguments: outcome)
    (row,) = reliability.kill(rounds=10, megabytes=1)
    assert row["failures"] == 3
    assert row["rate_95"] == ""
