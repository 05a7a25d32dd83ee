"""What the kernels of one step on a device take from whatever counts its steps."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["StepClock", "clock_in_force", "numbers_of_rest"]

_in_force: ContextVar[StepClock | None] = ContextVar("device_clock", default=None)


def clock_in_force() -> StepClock | None:
    """The clock of the step under way, for updates of rows beside its plan."""
    return _in_force.get()


def numbers_of_rest(values: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The numbers of the step under way for what no kernel of the device does.

    Args:
        values: For each scalar one number per setting, as the host knows them.

    Returns:
        The same, with those that the device knows better; waits for these.
    """
    clock = clock_in_force()
    if clock is None or not clock.scalars:
        return values
    known = {name: new.numpy(force=True) for name, new in clock.scalars.items()}
    return {**values, **known}


class StepClock:
    """What counts steps on a device, as a step asks for it.

    A step calls `begin` and `finish`; `cancel` where it is left out or fails. In
    between, kernels take `scalars` and `verdict` from here. This class itself is for
    steps that the host counts: it only knows whether they are refused.

    Attributes:
        device: Where the variables are.
        decides: Whether the device decides which steps are taken.
        scalars: What `begin` returned, until the step is over.
        applies: Shape (), bool, on the device: whether the step under way is taken;
            None if it is in any case. A step sets it before anything is written.
        is_right: Shape (), bool, there: whether no check refuses it; None without any.
        was_applied: Whether the step before changed anything.
        was_right: Its `is_right`.
        last_scalars: Its `scalars`.
        has_rows_left: Whether rows were updated since the last step by other means
            than kernels of the device, which know neither `scalars` nor `applies`.

    Args:
        device: Where the variables are.
        decides: Whether the device decides which steps are taken.
    """

    def __init__(self, device: torch.device, *, decides: bool = False) -> None:
        self.device = device
        self.decides = decides
        self.scalars: Mapping[str, Tensor] = {}
        self.applies: Tensor | None = None
        self.is_right: Tensor | None = None
        self.was_applied: Tensor | None = None
        self.was_right: Tensor | None = None
        self.last_scalars: Mapping[str, Tensor] = {}
        self.has_rows_left = False

    def begin(self, iterations: int) -> dict[str, Tensor]:
        """Start a step, eager or captured.

        Args:
            iterations: The host's count of applied steps.

        Returns:
            Numbers that take the place of the host's, one for each setting.
        """
        del iterations
        return {}

    def require(self, is_right: Tensor) -> None:
        """Let the step under way change nothing unless a check is passed.

        To be called before the first of its kernels is started.

        Args:
            is_right: Shape (), bool, on a device.
        """
        mine = is_right.to(self.device, non_blocking=True)
        self.is_right = mine if self.is_right is None else self.is_right & mine

    @property
    def verdict(self) -> Tensor | None:
        """Shape (), bool, there: whether the step under way may change anything."""
        if self.applies is None or self.is_right is None:
            return self.is_right if self.applies is None else self.applies
        return self.applies & self.is_right

    def finish(self, applies: Tensor | None = None) -> None:
        """End a step: count it.

        Args:
            applies: Shape (), bool, on the device: whether it was taken; by default
                `verdict`, and it was if that is None.
        """
        self._settle(applies)
        self.cancel()

    def _settle(self, applies: Tensor | None) -> None:
        """Remember what was decided about the step that ends."""
        self.was_applied = self.verdict if applies is None else applies
        self.was_right = self.is_right
        self.last_scalars = self.scalars

    def cancel(self) -> None:
        """Forget the step under way, which was left out or has failed."""
        self.scalars, self.applies, self.is_right = {}, None, None

    def run(self, update_rows: Callable[[], None], iterations: int) -> None:
        """Take a step that updates rows only.

        Args:
            update_rows: Updates them.
            iterations: The host's count of applied steps.
        """
        self.begin(iterations)
        try:
            with self.in_force():
                update_rows()
            self.finish()
        finally:
            self.cancel()

    def allows_rest(self) -> bool:
        """Whether what no kernel of the device does may be done in this step.

        Waits for the device where that decides.
        """
        self.has_rows_left = True
        verdict = self.verdict
        return verdict is None or bool(verdict)

    @contextmanager
    def in_force(self) -> Generator[None]:
        """In this scope updates of rows take what `begin` and `verdict` say."""
        token = _in_force.set(self)
        try:
            yield
        finally:
            _in_force.reset(token)
