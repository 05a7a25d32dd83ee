"""What a restore did and what it left: nothing is dropped in silence."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from thalweg.errors import CheckpointError


class UnmatchedError(CheckpointError, AssertionError):
    """Checkpoint and objects do not match in the way that was asserted."""


@dataclass
class Outcome:
    """The lists of a restore, by key; they change while values wait for objects.

    Attributes:
        restored: Keys whose values were taken from the checkpoint.
        missing: Keys of existing objects that the checkpoint does not hold.
        unexpected: Keys in the checkpoint that no object has taken.
        mismatched: Keys of objects made later, of another shape or dtype.
        reasons: Sentences about why something was not taken.
    """

    restored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether objects and checkpoint match in every key."""
        return not (self.missing or self.unexpected or self.mismatched)


@dataclass(eq=False)
class RestoreStatus:
    """The outcome of one restore, kept up to date while values wait for objects.

    Who restores looks at it: with one of the three methods, or by reading what is
    missing or unexpected. Otherwise the next step or save warns of what did not match.

    Attributes:
        path: The folder that was read.
        step: Applied steps of the first optimizer when it was saved, or None.
        hyper_differences: "optimizer/.hyper/name: a in the checkpoint, b in the
            object" for each hyperparameter that differed before the restore.
    """

    path: Path
    step: int | None
    hyper_differences: tuple[str, ...] = ()
    _outcome: Outcome = field(default_factory=Outcome, repr=False)
    _update: Callable[[], None] = field(default=lambda: None, repr=False)
    _was_looked_at: bool = field(default=False, repr=False)

    @property
    def restored(self) -> tuple[str, ...]:
        """Keys whose values were taken from the checkpoint so far."""
        self._update()
        return self._outcome.restored

    @property
    def missing(self) -> tuple[str, ...]:
        """Keys of existing objects that the checkpoint does not hold."""
        return self._look().missing

    @property
    def unexpected(self) -> tuple[str, ...]:
        """Keys in the checkpoint that no object has taken yet."""
        return self._look().unexpected

    @property
    def mismatched(self) -> tuple[str, ...]:
        """Keys of objects made since then, of another shape or dtype.

        A restore that meets such at once raises instead.
        """
        return self._look().mismatched

    def assert_consumed(self) -> Self:
        """Make sure that objects and checkpoint match completely.

        Raises:
            UnmatchedError: If anything is missing or unexpected; it lists all. It is
                a `CheckpointError` and an `AssertionError`.
        """
        found = self._look()
        return self._assert(found.missing, found.unexpected, found.mismatched)

    def assert_existing_objects_matched(self) -> Self:
        """Make sure that every existing object took its value from the checkpoint.

        Raises:
            UnmatchedError: If anything is missing in the checkpoint; it lists all.
        """
        found = self._look()
        return self._assert(found.missing, (), found.mismatched)

    def expect_partial(self) -> Self:
        """Say that a partial match is meant. Returns the status itself."""
        self._was_looked_at = True
        return self

    def warn_if_ignored(self, stacklevel: int = 2) -> None:
        """Warn once of what did not match, if nobody has looked at this status.

        Args:
            stacklevel: As for `warnings.warn`.
        """
        if self._was_looked_at or self._outcome.is_complete:
            return
        found = self._look()
        if found.is_complete:
            return
        listing = list_problems(
            found.missing, found.unexpected, found.mismatched, found.reasons
        )
        warnings.warn(
            f"Checkpoint {self.path} was restored in part, and nobody has looked at "
            f"the status that restore returned.{listing}\n"
            "Call assert_consumed() on it, or expect_partial() if this is meant.",
            stacklevel=stacklevel + 1,
        )

    def _look(self) -> Outcome:
        self._was_looked_at = True
        self._update()
        return self._outcome

    def _assert(
        self,
        missing: tuple[str, ...],
        unexpected: tuple[str, ...],
        mismatched: tuple[str, ...],
    ) -> Self:
        reasons = self._outcome.reasons if unexpected else ()
        listing = list_problems(missing, unexpected, mismatched, reasons)
        if listing:
            raise UnmatchedError(
                f"Checkpoint {self.path}: expected a complete match.{listing}"
            )
        return self


def list_problems(
    missing: tuple[str, ...],
    unexpected: tuple[str, ...],
    mismatched: tuple[str, ...],
    reasons: tuple[str, ...] = (),
) -> str:
    """One line for each key that does not fit, under a heading for each kind."""
    kinds = {
        "missing in the checkpoint": missing,
        "unexpected, no object takes it": unexpected,
        "of another shape or dtype": mismatched,
    }
    return "".join(
        f"\n  {kind} ({len(keys)}):" + "".join(f"\n    {key}" for key in keys)
        for kind, keys in kinds.items()
        if keys
    ) + "".join(f"\n  {reason}" for reason in reasons)
