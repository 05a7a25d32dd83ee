"""What a contract test found: lines that passed, failed or did not apply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CheckFailedError", "Line", "NotApplicableError", "Report", "expect"]

Outcome = Literal["passed", "failed", "skipped"]


class CheckFailedError(AssertionError):
    """An optimizer does not keep its contract; the message says where."""


class NotApplicableError(Exception):
    """A check says nothing about this optimizer; the message says why."""


def expect(holds: object, otherwise: str) -> None:
    """Fail a check unless something holds.

    Args:
        holds: What is taken as true or false.
        otherwise: What is wrong where it is false.

    Raises:
        CheckFailedError: If it is false.
    """
    if not holds:
        raise CheckFailedError(otherwise)


@dataclass(frozen=True)
class Line:
    """One check.

    Attributes:
        name: What was checked, in words.
        outcome: "passed", "failed" or "skipped".
        detail: What was measured, what is wrong, or why it was skipped.
    """

    name: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Report:
    """All checks of one optimizer; printing it gives a table.

    Attributes:
        optimizer: The class and its arguments.
        lines: The checks, in order.
    """

    optimizer: str
    lines: tuple[Line, ...]

    @property
    def passed(self) -> list[Line]:
        """The checks that hold."""
        return [line for line in self.lines if line.outcome == "passed"]

    @property
    def failed(self) -> list[Line]:
        """The checks that do not hold."""
        return [line for line in self.lines if line.outcome == "failed"]

    @property
    def skipped(self) -> list[Line]:
        """The checks that say nothing about this optimizer."""
        return [line for line in self.lines if line.outcome == "skipped"]

    def __bool__(self) -> bool:
        """Whether no check failed, so that ``assert check(...)`` means what it says."""
        return not self.failed

    def raise_if_failed(self) -> None:
        """Raise if a check failed.

        Raises:
            CheckFailedError: With the whole table as message.
        """
        if self.failed:
            raise CheckFailedError(str(self))

    def __str__(self) -> str:
        width = max((len(line.name) for line in self.lines), default=0)
        counts = f"{len(self.passed)} passed, {len(self.failed)} failed"
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        rows = [f"{self.optimizer}: {counts}{skipped}"]
        rows += [
            f"  {line.outcome:<7}  {line.name:<{width}}  {line.detail}".rstrip()
            for line in self.lines
        ]
        return "\n".join(rows)
