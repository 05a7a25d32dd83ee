"""Opening, closing, pausing and resetting the scope of a tape."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from thalweg.errors import message
from thalweg.gradients.recording import Recording, Watch, sequence_number

_logger = logging.getLogger("thalweg")


class _Open(threading.local):
    """The scopes that are open in a thread, outermost first."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []


_open = _Open()


class Scope:
    """Where a tape stands: its record, and whether it is open or used up."""

    def __init__(self) -> None:
        self.record = Recording()
        self.is_open = False
        self.is_spent = False
        self._was_opened = False
        # Scopes that overlap with this one: their tapes may need the same graph.
        self._overlaps: list[weakref.ref[Scope]] = []

    @property
    def stage(self) -> str:
        """Whether it is recording, in words."""
        closed = "used up" if self.is_spent else "not recording"
        return "recording" if self.is_open else closed

    def open(self) -> None:
        """Record, with a new record if the last one is used up.

        Raises:
            ValueError: If it is open.
        """
        if self.is_open:
            raise ValueError(
                message(
                    "GradientTape",
                    "a closed tape",
                    "one in use",
                    "Tape is still recording, as when an active tape is entered "
                    "again: leave its context first.",
                )
            )
        if self.is_spent:
            self.record, self.is_spent = Recording(), False
        for other in _open.scopes:
            self._overlaps.append(weakref.ref(other))
            other._overlaps.append(weakref.ref(self))
        self.record.open()
        self.is_open = self._was_opened = True
        _open.scopes.append(self)

    def close(self) -> None:
        """Stop recording.

        Raises:
            ValueError: If it is closed.
        """
        if not self.is_open:
            raise ValueError(
                message(
                    "GradientTape",
                    "a tape inside its context",
                    "a closed one",
                    "Tape is not recording. Call this inside `with tape:`.",
                )
            )
        self.is_open = False
        if self in _open.scopes:  # Not so where another thread closes it.
            _open.scopes.remove(self)
        self.record.close()

    def reset(self) -> None:
        """Forget what was recorded and watched, and record on.

        Raises:
            ValueError: If it is closed.
        """
        self.close()
        self.record = Recording(since=sequence_number())
        self.open()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Return a context in which nothing is recorded.

        Raises:
            RuntimeError: If nothing was recorded yet, or all is used up.
            ValueError: If it is closed.
        """
        if not self._was_opened or self.is_spent:
            raise RuntimeError(
                message(
                    "GradientTape.stop_recording",
                    "a tape inside its context",
                    "one without a recording",
                    "Trying to stop recording a tape which is not recording. Call "
                    "this inside `with tape:`.",
                )
            )
        self.close()
        # Where another tape goes on recording, the pause is only noted.
        pause = nullcontext() if _open.scopes else torch.no_grad()
        first = sequence_number()
        try:
            with pause:
                yield
        finally:
            self.record.skip(first, sequence_number())
            self.open()

    def watch(self, tensor: torch.Tensor) -> None:
        """Make a tensor a source; of an integer tensor it is only said that it is none.

        Args:
            tensor: The tensor itself, not a view of it.
        """
        if not (tensor.is_floating_point() or tensor.is_complex()):
            _logger.warning(
                "The dtype of the watched tensor must be floating (e.g. "
                "torch.float32), got %s: its gradient will be None.",
                tensor.dtype,
            )
            return
        if id(tensor) in self.record.watches:
            return
        watch = Watch(tensor)
        if self.is_open:
            watch.arm()
        else:
            watch.note()
        self.record.watches[id(tensor)] = watch

    def check_unspent(self, method: str) -> None:
        """Raise a RuntimeError if the record is used up."""
        if not self.is_spent:
            return
        raise RuntimeError(
            message(
                f"GradientTape.{method}",
                "a tape that was not used before",
                "a second call",
                "A non-persistent GradientTape can only be used to compute one set of "
                "gradients (or jacobians): make it with persistent=True.",
            )
        )

    def records_gradients(self) -> bool:
        """Return whether what is computed now is recorded by some tape."""
        return bool(_open.scopes) and torch.is_grad_enabled()

    def is_needed_again(self) -> bool:
        """Return whether another tape may still ask about the same graph."""
        if not self._overlaps:
            return False
        others = [reference() for reference in self._overlaps]
        return any(other is not None and not other.is_spent for other in others)
