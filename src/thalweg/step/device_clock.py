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
from typing_extensions import override

from thalweg.compiler.triton_tables import is_capturing
from thalweg.errors import message
from thalweg.step.captures import WARM_UP
from thalweg.step.compose import STEP
from thalweg.step.device_step import StepClock, clock_in_force

__all__ = [
    "DeviceClock",
    "NumbersOf",
    "StepClock",
    "clock_in_force",
    "refuse_capture",
]

NumbersOf = Callable[[int], Sequence[float]]
"""From the number of applied steps to one number for each setting."""

StatesAfter = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""From the numbers of a step, `DeviceClock.columns`, to the states after it."""

_HORIZON = 100_000
_SOON = 4096
"""Steps for which numbers are kept while no capture is near: they take time to make."""


def refuse_capture(where: str, what: str) -> None:
    """Refuse to record a step as a CUDA graph where the host decides what it does.

    Args:
        where: Name of the optimizer, for the message.
        what: What decides.

    Raises:
        RuntimeError: If the current stream is being captured.
    """
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            message(
                f"capture of a step of {where}",
                "one whose replays need nothing of the host",
                f"{what}, of which the host keeps count",
                "Take its steps outside the graph.",
            )
        )


class DeviceClock(StepClock):
    """A count of applied steps on a device.

    At first the host counts, and the device follows.
    From the first capture on, or from the start where the device decides which steps
    are taken, the device counts: what `begin` returned is written into the scalar
    tables, and the host's count is out of date until it is read back.

    Numbers for many steps take the host a while. They are made where the device counts,
    and as soon as a step runs on a stream of its own, as torch asks for before a
    capture; a loop that is never captured goes without.

    Attributes:
        iterations: Shape (), int64, on the device.
        is_ahead: Whether the device counts, so that the host must `read`.
        states: Numbers that a step computes from those before it, by name; shape (),
            float64, on the device.
        is_captured: Whether a captured step reads what is here.
        is_over: Whether a step has ended since this was last set to False.

    Args:
        device: Where the count is.
        iterations: Steps applied so far; or a count on the device, to go on with.
        num_settings: Rows of hyperparameters.
        varying: For each hyperparameter that changes from step to step its numbers.
        decides: Whether the device decides which steps are taken; it counts then.
        counts_all: Whether steps that are not taken count as well; one that a check
            refuses never does.
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
        iterations: int | Tensor,
        num_settings: int,
        varying: Mapping[str, NumbersOf],
        *,
        decides: bool = False,
        counts_all: bool = False,
        horizon: int = _HORIZON,
    ) -> None:
        super().__init__(device, decides=decides)
        self.states: dict[str, Tensor] = {}
        self._states_after: StatesAfter | None = None
        self._counts_all = counts_all
        self.is_ahead = decides or isinstance(iterations, Tensor)
        self.is_captured = self.is_over = False
        first = int(iterations)
        if not isinstance(iterations, Tensor):
            iterations = torch.full((), first, dtype=torch.int64, device=device)
        self.iterations = iterations
        self._num_settings = num_settings
        self._varying = dict(varying)
        self._horizon = horizon
        self._tables: dict[str, Tensor] = {}
        self._first = torch.zeros_like(self.iterations)
        self._at_most = first
        self._start = self._end = 0
        self._is_near_capture = _may_be_captured(device)
        if self._is_near_capture or self.is_ahead:
            self._fill(first)

    def keep(
        self, states: Mapping[str, float | Tensor], states_after: StatesAfter
    ) -> None:
        """Keep states, which follow from step to step.

        Args:
            states: Their values now; tensors on the device are taken over.
            states_after: Computes those after a step.
        """
        self._states_after = states_after
        for name, value in states.items():
            if not isinstance(value, Tensor):
                value = torch.full((), value, dtype=torch.float64, device=self.device)
            self.states[name] = value

    def follow_states(self, states: Mapping[str, float]) -> None:
        """Take over the host's states; not within a capture."""
        for name, value in states.items():
            self.states[name].fill_(value)

    @property
    def at_most(self) -> int:
        """Applied steps as the host knows them: more than there are if some were not.

        Replays are not among them.
        """
        return self._at_most

    @override
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
                count, which the device has not seen, or comes without a step on a
                stream of its own before it.
        """
        if is_capturing(self.iterations.device):
            self._refuse_unseen(self._at_most if self.is_ahead else iterations)
            self.is_ahead = self.is_captured = True
        elif not self._is_near_capture and _may_be_captured(self.iterations.device):
            self._is_near_capture = True
            self._fill(int(self.iterations) if self.is_ahead else iterations)
        if self.is_ahead:
            self.scalars = self.columns()
        else:
            self._at_most = iterations
        return dict(self.scalars)

    @override
    def finish(self, applies: Tensor | None = None) -> None:
        """End a step: count it.

        Args:
            applies: Shape (), bool, on the device: whether it was taken; by default
                `verdict`, and it was if that is None.
        """
        self._settle(applies)
        self.is_over = True
        if self.is_ahead:
            self._advance_states()
            self.advance(self.was_right if self._counts_all else self.was_applied)
        else:
            self.follow(self._at_most + 1)
        self.cancel()

    def _refuse_unseen(self, iterations: int) -> None:
        if iterations == self._at_most and (self._is_near_capture or not self._varying):
            return
        seen = f"the device at {self._at_most}"
        raise RuntimeError(
            message(
                "capture of a step",
                f"a step before it, after iterations became {iterations}, on a "
                "stream of its own",
                seen if iterations != self._at_most else "none",
                WARM_UP,
            )
        )

    def _fill(self, first: int) -> None:
        """Tables from a step on, at the addresses that captured steps know."""
        length = self._horizon if self._is_near_capture else _SOON
        length = min(length, self._horizon)
        for name, numbers_of in self._varying.items():
            steps = range(first, first + length)
            rows = np.array([numbers_of(step) for step in steps], dtype=np.float64)
            self._table_of(name, length).copy_(torch.as_tensor(rows, device="cpu"))
        self._first.fill_(first)
        self._start, self._end = first, first + length

    def _table_of(self, name: str, length: int) -> Tensor:
        """The table of a hyperparameter; it has its place before a capture is near."""
        table = self._tables.get(name)
        if table is None or len(table) != length:
            shape = (length, self._num_settings)
            table = torch.empty(shape, dtype=torch.float64, device=self.device)
            self._tables[name] = table
        return table

    def follow(self, iterations: int) -> None:
        """Take over the host's count; not within a capture.

        Args:
            iterations: Steps applied so far.
        """
        # A capture may begin at any step, so half of the numbers are always left.
        middle = (self._start + self._end + 1) // 2
        is_needed = self.is_ahead or self._is_near_capture
        if is_needed and not self._start <= iterations < middle:
            self._fill(iterations)
        self.iterations.fill_(iterations)
        self._at_most = iterations

    def columns(self) -> dict[str, Tensor]:
        """The numbers of the next step, computed on the device.

        Returns:
            For `STEP` and each varying hyperparameter shape (settings,), float64.
        """
        last = max(self._end - self._start, 1) - 1
        place = (self.iterations - self._first).clamp(0, last).reshape(1)
        step = (self.iterations + 1).double().expand(self._num_settings)
        found = {n: t.index_select(0, place)[0] for n, t in self._tables.items()}
        states = {n: s.expand(self._num_settings) for n, s in self.states.items()}
        return {STEP: step, **found, **states}

    def _advance_states(self) -> None:
        if self._states_after is None:
            return
        for name, new in self._states_after(self.scalars).items():
            state = self.states[name]
            applies = self.was_applied
            state.copy_(new if applies is None else torch.where(applies, new, state))

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
        if self._varying and self._at_most >= self._end:
            self.read()

    def read(self) -> int:
        """Wait for the device, and see to it that numbers for many steps are left.

        Returns:
            Steps applied so far.
        """
        iterations = int(self.iterations)
        self.follow(iterations)
        return iterations


def _may_be_captured(device: torch.device) -> bool:
    """Whether a capture may follow: torch asks for steps on a side stream before."""
    if device.type != "cuda":
        return True
    return torch.cuda.current_stream(device) != torch.cuda.default_stream(device)
