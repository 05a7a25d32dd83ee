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
    between, kernels take `scalars` and `applies` from here.

    Attributes:
        device: Where the variables are.
        decides: Whether the device decides which steps are taken.
        scalars: What `begin` returned, until the step is over.
        applies: Shape (), bool, on the device: whether the step under way is taken;
            None if it is in any case. A step sets it before anything is written.
        was_applied: The same of the step before.
        has_rows_left: Whether rows were updated since the last step by other means
            than kernels of the device, which know neither `scalars` nor `applies`.

    Args:
        device: Where the variables are.
        decides: Whether the device decides which steps are taken.
    """

    def __init__(self, device: torch.device, *, decides: bool) -> None:
        self.device = device
        self.decides = decides
        self.scalars: Mapping[str, Tensor] = {}
        self.applies: Tensor | None = None
        self.was_applied: Tensor | None = None
        self.has_rows_left = False

    def begin(self, iterations: int) -> dict[str, Tensor]:
        """Start a step, eager or captured.

        Args:
            iterations: The host's count of applied steps.

        Returns:
            Numbers that take the place of the host's, one for each setting.
        """
        raise NotImplementedError

    def finish(self, applies: Tensor | None = None) -> None:
        """End a step: count it.

        Args:
            applies: Shape (), bool, on the device: whether it was taken; by default
                what was set as `applies`, and it was if that is None.
        """
        raise NotImplementedError

    def cancel(self) -> None:
        """Forget the step under way, which was left out or has failed."""
        self.scalars, self.applies = {}, None

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
        return self.applies is None or bool(self.applies)

    @contextmanager
    def in_force(self) -> Generator[None]:
        """In this scope updates of rows take what `begin` and `applies` say."""
        token = _in_force.set(self)
        try:
            yield
        finally:
            _in_force.reset(token)
