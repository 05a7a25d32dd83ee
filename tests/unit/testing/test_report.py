"""The report: counts, the table, raising."""

from __future__ import annotations

import pytest

from thalweg.testing.report import CheckFailedError, Line, Report, expect

REPORT = Report(
    "Descent()",
    (
        Line("short", "passed", "fine"),
        Line("a longer name", "failed", "wrong"),
        Line("third", "skipped", "no reason"),
    ),
)


def test_the_table_is_plain_text() -> None:
    assert str(REPORT).splitlines() == [
        "Descent(): 1 passed, 1 failed, 1 skipped",
        "  passed   short          fine",
        "  failed   a longer name  wrong",
        "  skipped  third          no reason",
    ]


def test_lines_are_sorted_by_outcome() -> None:
    groups = [REPORT.passed, REPORT.failed, REPORT.skipped]
    assert [[line.name for line in lines] for lines in groups] == [
        ["short"],
        ["a longer name"],
        ["third"],
    ]


def test_only_a_failure_raises() -> None:
    with pytest.raises(CheckFailedError, match="a longer name  wrong"):
        REPORT.raise_if_failed()
    Report("Descent()", (REPORT.lines[0], REPORT.lines[2])).raise_if_failed()


def test_an_expectation_that_holds_says_nothing() -> None:
    expect([1], "never said")
    with pytest.raises(CheckFailedError, match="said"):
        expect([], "said")


def test_a_report_with_a_failure_is_false() -> None:
    assert not REPORT
    assert Report("Descent()", (REPORT.lines[0], REPORT.lines[2]))
