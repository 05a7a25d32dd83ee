"""The step count on a GPU, and hyperparameters that follow from it there.

A CUDA graph replays kernels, not Python: a learning rate schedule could not be called.
So its values for many steps are kept on the device, and the captured step looks up the
one of its own count, which it then increments. Any callable works, with its own bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from thalweg.compiler.triton_tables import is_capturing
from thalweg.errors import message
from thalweg.step.compose import STEP

__all__ = ["DeviceClock", "NumbersOf"]

NumbersOf = Callable[[int], Sequence[float]]
"""From the number of applied steps to one number for each setting."""

_HORIZON = 100_000


class DeviceClock:
    """A count of applied steps on a device.

    A step calls `begin` and `finish`. At first the host counts, and the device follows.
    From the first capture on, or from the start where the device decides which steps
    are taken, the device counts: what `begin` returned is written into the scalar
    tables, and the host's count is out of date until it is read back.

    Attributes:
        iterations: Shape (), int64, on the device.
        is_ahead: Whether the device counts, so that the host must `read`.

    Args:
        device: Where the count is.
        iterations: Steps applied so far.
        num_settings: Rows of hyperparameters.
        varying: For each hyperparameter that changes from step to step its numbers.
        decides: Whether the device decides which steps are taken.
        horizon: Steps for which numbers are kept. Replays that go further without a
            call of `follow` or `read` in between find those of the last one.

    Example:
        >>> clock = DeviceClock(torch.device("cpu"), 2, 1, {"rate": lambda n: [n / 2]})
        >>> clock.columns()["rate"].item(), clock.columns()["step"].item()
        (1.0, 3.0)
        >>> clock.begin(2)
        {}
        >>> clock.finish()
        >>> clock.columns()["rate"].item()
        1.5
    """

    def __init__(
        self,
        device: torch.device,
        iterations: int,
        num_settings: int,
        varying: Mapping[str, NumbersOf],
        *,
        decides: bool = False,
        horizon: int = _HORIZON,
    ) -> None:
        self.is_ahead = decides
        self.iterations = torch.full((), iterations, dtype=torch.int64, device=device)
        self._num_settings = num_settings
        self._varying = dict(varying)
        self._horizon = horizon
        shape = (horizon, num_settings)
        self._tables = {
            name: torch.empty(shape, dtype=torch.float64, device=device)
            for name in varying
        }
        self._first = torch.zeros_like(self.iterations)
        self._at_most = iterations
        self._end = 0
        self._fill(iterations)

    def begin(self, iterations: int) -> dict[str, Tensor]:
        """Start a step, eager or captured.

        Args:
            iterations: The host's count of applied steps; ignored if it is out of
                date.

        Returns:
            Numbers that take the place of the host's, see `columns`; none while the
            host counts.

        Raises:
            RuntimeError: If the first captured step follows a change of the host's
                count, which the device has not seen.
        """
        if is_capturing(self.iterations.device) and not self.is_ahead:
            self._refuse_unseen(iterations)
            self.is_ahead = True
        if self.is_ahead:
            return self.columns()
        self._at_most = iterations
        return {}

    def finish(self, applies: Tensor | None = None) -> None:
        """End a step: count it.

        Args:
            applies: Shape (), bool, on the device: whether it was taken; it was if
                None.
        """
        if self.is_ahead:
            self.advance(applies)
        else:
            self.follow(self._at_most + 1)

    def _refuse_unseen(self, iterations: int) -> None:
        if iterations != self._at_most:
            raise RuntimeError(
                message(
                    "capture of a step",
                    f"a step before it, after iterations became {iterations}",
                    f"the device at {self._at_most}",
                    "Take a step outside the capture first, as for any CUDA graph.",
                )
            )

    def _fill(self, first: int) -> None:
        """Tables from a step on, at the addresses that captured steps know."""
        steps = range(first, first + self._horizon)
        for name, numbers_of in self._varying.items():
            rows = np.array([numbers_of(step) for step in steps], dtype=np.float64)
            self._tables[name].copy_(torch.as_tensor(rows))
        self._first.fill_(first)
        self._end = first + self._horizon

    def follow(self, iterations: int) -> None:
        """Take over the host's count; not within a capture.

        Args:
            iterations: Steps applied so far.
        """
        # A capture may begin at any step, so half of the numbers are always left.
        if not self._end - self._horizon <= iterations < self._end - self._horizon // 2:
            self._fill(iterations)
        self.iterations.fill_(iterations)
        self._at_most = iterations

    def columns(self) -> dict[str, Tensor]:
        """The numbers of the next step, computed on the device.

        Returns:
            For `STEP` and each varying hyperparameter shape (settings,), float64.
        """
        place = (self.iterations - self._first).clamp(0, self._horizon - 1).reshape(1)
        step = (self.iterations + 1).double().expand(self._num_settings)
        found = {n: t.index_select(0, place)[0] for n, t in self._tables.items()}
        return {STEP: step, **found}

    def advance(self, applies: Tensor | None = None) -> None:
        """Count a step, on the device.

        Args:
            applies: Shape (), bool, on the device: whether it was taken; it was if
                None.
        """
        self.iterations.add_(1 if applies is None else applies)
        if is_capturing(self.iterations.device):
            return
        self._at_most += 1
        if self._at_most >= self._end:
            self.read()

    def read(self) -> int:
        """Wait for the device, and see to it that numbers for many steps are left.

        Returns:
            Steps applied so far.
        """
        iterations = int(self.iterations)
        self.follow(iterations)
        return iterations
