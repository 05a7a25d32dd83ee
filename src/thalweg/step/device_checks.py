"""Errors that a device finds: they travel to the host while both go on.

Whether an index names a row, or a gradient is finite, is known on the device, where
what is wrong keeps a step from changing anything. The host hears of it without waiting,
at the start of a later step of the same optimizer, or waits for it where it reads
values anyway.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from thalweg.compiler.triton_tables import is_capturing
from thalweg.errors import message
from thalweg.state import name_of

__all__ = [
    "LateCheck",
    "LateErrors",
    "errors_in_force",
    "listening",
    "nonfinite_error",
    "note_nonfinite",
]

ErrorOf = Callable[[list[int]], Exception]
"""From the positions at which something was wrong to the error."""

_MOST_NAMES = 5
_MOST_CHECKS = 32


class LateCheck:
    """Whether all was right on a device, and what to raise if not.

    Args:
        device: Where it is found out.
        error: Makes the error.
        size: How many things are looked at together.

    Example:
        >>> check = LateCheck(torch.device("cpu"), lambda places: IndexError("row 9"))
        >>> check.note(torch.tensor(False))
        >>> check.refuse_known()
        Traceback (most recent call last):
        ...
        IndexError: row 9
        >>> check.refuse_known()
    """

    def __init__(self, device: torch.device, error: ErrorOf, size: int = 1) -> None:
        self._error = error
        self._is_right = torch.ones(size, dtype=torch.bool, device=device)
        self._is_cuda = device.type == "cuda"
        # Made ahead, because page-locking memory does not belong into a capture.
        self._copy = torch.ones(
            size, dtype=torch.bool, device="cpu", pin_memory=self._is_cuda
        )
        self._event: torch.cuda.Event | None = None
        self._is_noted = self._is_captured = self._is_behind = False

    def note(self, is_right: Tensor) -> None:
        """Remember what a launch found out, and let the host know in time.

        Args:
            is_right: Shape () or (size,), bool, on the device. Replays of a CUDA graph
                note what they find, too.
        """
        self._is_noted = self._is_behind = True
        self._is_right.logical_and_(is_right)
        if is_capturing(self._is_right.device):
            self._is_captured = True
        self._send()

    @property
    def is_settled(self) -> bool:
        """Whether the host knows that all was right so far."""
        return not (self._is_behind or self._is_captured or self._is_unknown()) and (
            bool(self._copy.all())
        )

    def refuse_known(self) -> None:
        """Raise the error if the host has heard of one; nothing waits."""
        if not self._is_noted or self._is_unknown():
            return
        if not bool(self._copy.all()):
            self._refuse()
        self._send()

    def refuse(self) -> None:
        """Wait for the device, and raise the error if there was one."""
        if not self._is_noted:
            return
        self._copy.copy_(self._is_right)
        if not bool(self._copy.all()):
            self._refuse()

    def _send(self) -> None:
        """Let a copy begin, unless one is under way or there is nothing new."""
        if not (self._is_behind or self._is_captured) or self._is_unknown():
            return
        self._copy.copy_(self._is_right, non_blocking=True)
        self._is_behind = False
        if self._is_cuda:
            self._event = self._event or torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(self._is_right.device))

    def _is_unknown(self) -> bool:
        """Whether a copy is under way, or a capture, in which nobody may ask."""
        if is_capturing(self._is_right.device):
            return True
        return self._event is not None and not self._event.query()

    def _refuse(self) -> None:
        verdicts = self._copy.numpy()
        wrong: list[int] = np.flatnonzero(~verdicts).tolist()
        self._is_right.fill_(True)
        self._copy.fill_(True)
        self._is_behind = False
        raise self._error(wrong)


class LateErrors:
    """What devices find wrong in the steps of one optimizer, which raises it.

    It lives as long as the optimizer, and so do the tables of its captured steps, which
    it keeps. A copy begins with nothing.

    Example:
        >>> errors = LateErrors()
        >>> errors.note("rows", torch.tensor(False), lambda places: IndexError("row 9"))
        >>> errors.refuse()
        Traceback (most recent call last):
        ...
        IndexError: row 9
    """

    def __init__(self) -> None:
        self._checks: dict[Hashable, LateCheck] = {}
        self._kept: dict[int, object] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[LateErrors], tuple[()]]:
        return LateErrors, ()

    def note(self, kind: Hashable, is_right: Tensor, error: ErrorOf) -> None:
        """Remember what a step found out.

        Args:
            kind: What was looked at; the same of the same device and size.
            is_right: Shape () or (size,), bool, on the device.
            error: Makes the error; taken once for each kind.
        """
        with self._lock:
            check = self._checks.get(kind)
            if check is None:
                self._forget_settled()
                check = LateCheck(is_right.device, error, is_right.numel())
                self._checks[kind] = check
        check.note(is_right)

    def refuse_known(self) -> None:
        """Raise what the host has heard of; nothing waits."""
        if self._checks:
            for check in self._known():
                check.refuse_known()

    def refuse(self) -> None:
        """Wait for the devices, and raise what they found.

        To be called where the host reads values or saves them.
        """
        for check in self._known():
            check.refuse()

    def keep(self, thing: object) -> None:
        """Keep something alive, as `keep_captured` asks for."""
        self._kept[id(thing)] = thing

    def _known(self) -> list[LateCheck]:
        """The checks: another thread may add one meanwhile."""
        with self._lock:
            return list(self._checks.values())

    def _forget_settled(self) -> None:
        """Drop checks of variables that are long gone."""
        if len(self._checks) >= _MOST_CHECKS:
            kept = {k: c for k, c in self._checks.items() if not c.is_settled}
            self._checks = kept


class _Listening(threading.local):
    """Who listens to what devices find wrong; each thread has its own.

    Attributes:
        errors: Those of the optimizer whose step is under way; None outside of steps.
            An optimizer sets them, and puts back what was there. This takes a tenth of
            a microsecond, less than a context variable does.
        unowned: Those of launches outside of any step.
    """

    def __init__(self) -> None:
        self.errors: LateErrors | None = None
        self.unowned = LateErrors()


listening = _Listening()


def errors_in_force() -> LateErrors:
    """Where kernels note what they find wrong.

    Returns:
        That of the optimizer whose step is under way; outside of any step one of this
        thread, which has raised what the host had heard of.

    Raises:
        IndexError: If an earlier launch outside of any step had a wrong index.
    """
    errors = listening.errors
    if errors is None:
        errors = listening.unowned
        errors.refuse_known()
    return errors


# -- gradients that are not finite --------------------------------------------


def note_nonfinite(variables: Sequence[Tensor], is_finite: Tensor) -> None:
    """Let the optimizer whose step is under way raise, later, if one is not.

    Args:
        variables: The variables.
        is_finite: Shape (variables,), bool, on the device: whether the gradient is.
    """
    kind = "nonfinite", is_finite.device, tuple(map(id, variables))
    found = list(map(weakref.ref, variables))
    errors_in_force().note(kind, is_finite, partial(_nonfinite_of, found))


def _nonfinite_of(found: Sequence[weakref.ref[Tensor]], wrong: list[int]) -> Exception:
    return nonfinite_error([found[place]() for place in wrong])


def nonfinite_error(variables: Sequence[Tensor | None]) -> FloatingPointError:
    """An error that names the variables whose gradients are not finite.

    Args:
        variables: The variables; None for one that is no more.
    """
    names = [
        "one that is no more"
        if v is None
        else name_of(v) or f"an unnamed one of shape {tuple(v.shape)}"
        for v in variables
    ]
    shown = ", ".join(names[:_MOST_NAMES])
    if len(names) > _MOST_NAMES:
        shown += f" and {len(names) - _MOST_NAMES} more"
    return FloatingPointError(
        message(
            "nonfinite='error'",
            "finite gradients",
            f"an inf or NaN in {'that' if len(names) == 1 else 'those'} of {shown}",
            "Nothing was changed. Lower the learning rate or clip; "
            "nonfinite='skip' leaves such steps out.",
        )
    )
