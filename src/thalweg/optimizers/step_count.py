"""Who counts the steps of an optimizer: the host, or the device of its variables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from thalweg.compiler.triton_tables import is_capturing
from thalweg.errors import message
from thalweg.optimizers.hyperparameters import takes_step
from thalweg.optimizers.one_by_one import OneByOne
from thalweg.optimizers.pairs import Pairs
from thalweg.state import IndexedSlices, has_constraints
from thalweg.step import EMA_MOMENTUM, STEP, Plan
from thalweg.step.device_clock import DeviceClock, NumbersOf
from thalweg.step.device_kernel import has_device_kernels

__all__ = ["StepCount"]


class _Clocks:
    """The device clocks of one optimizer; a copy of the optimizer begins with none.

    Attributes:
        current: That of the device all variables are on, if it has kernels.
        sources: What its numbers were made from.
        version: Of ``iterations`` when only the device had written it.
        captured: Earlier ones, which a captured step still reads.
        rows: The variables that had a sparse gradient in the last planned step.
    """

    def __init__(self) -> None:
        self.current: DeviceClock | None = None
        self.sources: object = None
        self.version = -1
        self.captured: list[DeviceClock] = []
        self.rows: tuple[int, ...] | None = None

    def __reduce__(self) -> tuple[type[_Clocks], tuple[()]]:
        return _Clocks, ()


class StepCount(OneByOne):
    """The part of `Optimizer` that counts steps.

    On a GPU the device counts in two cases: from the first captured step on, since
    replays run no Python; and where ``nonfinite="skip"`` leaves it to the device
    which steps are taken. Then ``iterations`` lies on the device, and reading it
    waits, which no step does.
    """

    _plan: Plan | None
    _clocks: _Clocks | None = None
    _is_applied: bool | torch.Tensor = True

    @property
    def last_step_applied(self) -> bool:
        """Whether the last call of `apply_gradients` changed variables.

        False if ``nonfinite="skip"`` or a loss scale left the step out, and where
        ``gradient_accumulation_steps`` only added a gradient to others. Reading it
        waits for the device where that decides.
        """
        return bool(self._is_applied)

    @last_step_applied.setter
    def last_step_applied(self, value: bool) -> None:
        self._is_applied = value

    @property
    def _clock(self) -> DeviceClock | None:
        return None if self._clocks is None else self._clocks.current

    # -- a step ---------------------------------------------------------------

    @override
    def values_in_force(self) -> dict[str, np.ndarray]:
        clocks, clock = self._clocks, self._clock
        if clocks is None or clock is None:
            return super().values_in_force()
        device = clock.iterations.device
        is_stale = clocks.sources != self._clock_sources()
        if is_capturing(device):
            self._check_capture(is_stale=is_stale)
        elif is_stale:
            clock = self._clock_on(device)
        if clock is None or not clock.is_ahead:
            return super().values_in_force()
        if self.iterations._version != clocks.version:
            self._note_version(clocks)
            clock.read()  # somebody else has written it
        if clock.decides or is_capturing(device):
            return self._values_at(clock.at_most)  # the device has better numbers
        return super().values_in_force()

    def _count_step(self) -> None:
        """Count the step that was taken, unless the device has."""
        clocks, clock = self._clocks, self._clock
        self._is_applied = True
        if clocks is None or clock is None or not clock.is_ahead or not clock.is_over:
            self.iterations.add_(1)
            return
        clock.is_over = False
        if self.iterations.data_ptr() != clock.iterations.data_ptr():
            self.iterations.data = clock.iterations
            self._note_version(clocks)
        if clock.was_applied is not None:
            self._is_applied = clock.was_applied

    def _run_rows(
        self, clock: DeviceClock | None, update_rows: Callable[[], None]
    ) -> None:
        """Take a step that updates rows only."""
        if clock is None:
            update_rows()
        else:
            clock.run(update_rows, int(self._values[STEP][0]) - 1)

    def _note_version(self, clocks: _Clocks) -> None:
        clocks.version = self.iterations._version

    def _is_left_to_device(self, pairs: Pairs) -> bool:
        """Whether the device finds out if gradients that no plan checks are finite.

        Only where it took the step before, of the same kind, by kernels alone.
        """
        clocks, clock = self._clocks, self._clock
        if clocks is None or clock is None:
            return False
        clock.cancel()
        if not clock.decides or clock.has_rows_left:
            return False
        values = [g.values if isinstance(g, IndexedSlices) else g for g, _ in pairs]
        is_known = (
            clocks.rows == _rows_of(pairs)
            and all(type(value) is torch.Tensor for value in values)
            and {v.device for v in values} == {clock.iterations.device}
            and {v.device for _, v in pairs} == {clock.iterations.device}
            and not self._applies_by_hand
            and self._extended().has_default_update
        )
        if is_known:
            finite = [torch.isfinite(value).all() for value in values]
            clock.applies = torch.stack(finite).all()
        return is_known

    def _note_rows(self, pairs: Pairs) -> None:
        """Remember what a step was like, for `_is_left_to_device`."""
        if self._clocks is not None:
            self._clocks.rows = _rows_of(pairs)

    # -- clocks ---------------------------------------------------------------

    def _clock_of(self, tensors: Iterable[torch.Tensor]) -> DeviceClock | None:
        """The clock of a step over these variables; None without kernels of a device.

        A clock is of one device: where there are several, the host counts.
        """
        devices = {tensor.device for tensor in tensors}
        return self._clock_on(devices.pop() if len(devices) == 1 else None)

    def _clock_on(self, device: torch.device | None) -> DeviceClock | None:
        clocks = self._clocks
        if device is None or not has_device_kernels(device):
            if clocks is not None:
                self._retire(clocks)
            return None
        if clocks is None:
            clocks = self._clocks = _Clocks()
        sources, clock = self._clock_sources(), clocks.current
        is_same = clock is not None and clock.iterations.device == device
        if not is_same or sources != clocks.sources:
            self._retire(clocks)
            new = self._new_clock(device, clock if is_same else None)
            new.applies = None if clock is None else clock.applies
            clocks.current, clocks.sources = new, sources
            self._note_version(clocks)
            if self._plan is not None and self._plan.clock is not None:
                self._plan.clock = clocks.current
        return clocks.current

    def _retire(self, clocks: _Clocks) -> None:
        clock, clocks.current = clocks.current, None
        if clock is not None and clock.is_captured:
            clocks.captured.append(clock)

    def _new_clock(
        self, device: torch.device, before: DeviceClock | None
    ) -> DeviceClock:
        count = self.iterations.data
        is_there = count.device == device and device.type != "cpu"
        if before is not None and before.is_ahead:
            count, is_there = before.iterations, True
        return DeviceClock(
            device,
            count if is_there else int(count),
            len(self._table),
            {name: self._numbers_of(name) for name in self._varying()},
            decides=self._can_decide(),
        )

    def _numbers_of(self, name: str) -> NumbersOf:
        if name in self._table.names or name not in self._hyper:
            return lambda step: self._values_at(step)[name].tolist()
        # Asked for a hundred thousand steps: one number will do for all rows.
        value, size = self._hyper[name], len(self._table)
        decay = self.hyper_in_force("decay") if name == "learning_rate" else 0.0

        def numbers(step: int) -> list[float]:
            if name == EMA_MOMENTUM and step == 0:
                return [0.0] * size
            return [self._number(name, value, step) / (1.0 + decay * step)] * size

        return numbers

    def _varying(self) -> list[str]:
        """Hyperparameters that follow from the step count alone."""
        names = [n for n, v in self._hyper.items() if callable(v) and takes_step(v)]
        names += self._table.varying
        if self._hyper["decay"] != 0.0:
            names.append("learning_rate")
        if EMA_MOMENTUM in self._hyper:
            names.append(EMA_MOMENTUM)  # the first step has another one
        return sorted({name for name in names if name != "decay"})

    def _clock_sources(self) -> tuple[Any, ...]:
        names = self._varying()
        values = [(n, self._hyper.get(n)) for n in ("decay", *names)]
        return self._can_decide(), len(self._table), tuple(values)

    def _can_decide(self) -> bool:
        """Whether what follows a step on the host may follow one that is not taken."""
        return (
            self._settings.nonfinite == "skip"
            and not self._scaling.skips
            and not self._has_host_state
            and not has_constraints()
        )

    @property
    def _has_host_state(self) -> bool:
        """Whether a step ends with what the host computes from the count."""
        has_overwrite = self._settings.ema_overwrite_frequency is not None
        return bool(self._states_declared) or has_overwrite

    def _check_capture(self, *, is_stale: bool) -> None:
        """Refuse a capture whose replays would go on with wrong numbers."""
        where = f"capture of a step of {type(self).__name__}"
        if self._has_host_state:
            raise RuntimeError(
                message(
                    where,
                    "an optimizer whose numbers follow from the step count",
                    "one with states or ema_overwrite_frequency, which the host keeps",
                    "Take its steps outside the graph.",
                )
            )
        if is_stale:
            raise RuntimeError(
                message(
                    where,
                    "options and schedules of the step before",
                    "other ones, which the device has not seen",
                    "Take a step outside the capture first.",
                )
            )


def _rows_of(pairs: Pairs) -> tuple[int, ...]:
    return tuple(id(v) if isinstance(g, IndexedSlices) else -id(v) for g, v in pairs)
