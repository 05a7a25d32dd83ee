"""Errors that a device finds: they travel to the host while both go on.

Whether an index names a row is known on the device, where a wrong one keeps its launch
from changing anything. The host hears of it without waiting, at the start of a later
launch, or waits for it where it reads values anyway.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch

from thalweg.compiler.triton_tables import is_capturing

__all__ = ["LateCheck", "refuse_late_errors"]

_checks: weakref.WeakSet[LateCheck] = weakref.WeakSet()


def refuse_late_errors() -> None:
    """Wait for the devices, and raise what they found.

    To be called where the host reads values or saves them.

    Raises:
        IndexError: If an update of rows was left out because of a wrong index.
    """
    for check in list(_checks):
        check.refuse()


class LateCheck:
    """Whether all was right on a device, and what to raise if not.

    Args:
        device: Where it is found out.
        error: Makes the error.

    Example:
        >>> check = LateCheck(torch.device("cpu"), lambda: IndexError("row 9"))
        >>> check.note(torch.tensor(False))
        >>> check.refuse_known()
        Traceback (most recent call last):
        ...
        IndexError: row 9
        >>> check.refuse_known()
    """

    def __init__(self, device: torch.device, error: Callable[[], Exception]) -> None:
        self._error = error
        self._is_right = torch.ones((), dtype=torch.bool, device=device)
        self._is_cuda = device.type == "cuda"
        # Made ahead, because page-locking memory does not belong into a capture.
        self._copy = torch.ones((), dtype=torch.bool, pin_memory=self._is_cuda)
        self._event: torch.cuda.Event | None = None
        self._is_noted = False
        _checks.add(self)

    def note(self, is_right: torch.Tensor) -> None:
        """Remember what a launch found out, and let the host know in time.

        Args:
            is_right: Shape (), bool, on the device. Replays of a CUDA graph note what
                they find, too.
        """
        self._is_noted = True
        self._is_right.logical_and_(is_right)
        if self._is_unknown():
            return
        self._copy.copy_(self._is_right, non_blocking=True)
        if self._is_cuda:
            self._event = self._event or torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(self._is_right.device))

    def refuse_known(self) -> None:
        """Raise the error if the host has heard of one; nothing waits."""
        if self._is_noted and not self._is_unknown() and not bool(self._copy):
            self._refuse()

    def refuse(self) -> None:
        """Wait for the device, and raise the error if there was one."""
        if self._is_noted and not bool(self._is_right):
            self._refuse()

    def _is_unknown(self) -> bool:
        """Whether a copy is under way, or a capture, in which nobody may ask."""
        if is_capturing(self._is_right.device):
            return True
        return self._event is not None and not self._event.query()

    def _refuse(self) -> None:
        self._is_right.fill_(True)
        self._copy.fill_(True)
        raise self._error()
