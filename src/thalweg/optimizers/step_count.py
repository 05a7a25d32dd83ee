"""Who counts the steps of an optimizer: the host, or the device of its variables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from thalweg.compiler.triton_tables import is_capturing
from thalweg.errors import message
from thalweg.optimizers.hyperparameters import takes_step
from thalweg.optimizers.one_by_one import Known, OneByOne
from thalweg.optimizers.pairs import Pairs
from thalweg.state import IndexedSlices
from thalweg.step import EMA_MOMENTUM, STEP, NonFinite, Plan
from thalweg.step.captures import refuse_unprepared
from thalweg.step.compose import ScalarView
from thalweg.step.device_checks import LateErrors, listening
from thalweg.step.device_clock import DeviceClock, NumbersOf
from thalweg.step.device_kernel import has_device_kernels
from thalweg.step.device_rows import kernels_check_rows
from thalweg.step.transforms import leave_to_device

__all__ = ["StepCount", "has_counted"]


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
    replays run no Python; and where the device finds out which steps are taken, because
    it looks for an inf or NaN, or at indices. Then ``iterations`` lies on the device,
    and reading it waits, which no step does.
    """

    _plan: Plan | None
    _clocks: _Clocks | None = None
    _errors: LateErrors | None = None
    _checks_rows: bool = False

    @property
    def last_step_applied(self) -> bool:
        """Whether the last call of `apply_gradients` changed variables.

        False if ``nonfinite="skip"`` or a loss scale left the step out, and where
        ``gradient_accumulation_steps`` only added a gradient to others. Reading it
        waits for the device where that decides.

        Raises:
            FloatingPointError: If ``nonfinite="error"``, a device looks for an inf or
                NaN, and has found one in a step since the last error.
            RowIndexError: If it has found a wrong index.
        """
        if isinstance(self._is_applied, torch.Tensor):
            self._refuse_late()
        return bool(self._is_applied)

    @last_step_applied.setter
    def last_step_applied(self, value: bool) -> None:
        self._is_applied = value

    @property
    def _clock(self) -> DeviceClock | None:
        return None if self._clocks is None else self._clocks.current

    @property
    def _was_right(self) -> torch.Tensor | None:
        """Whether no check has refused the last step, where a device knows it."""
        return None if self._clock is None else self._clock.was_right

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
            self._show_states(clock)
            return super().values_in_force()
        if self.iterations._version != clocks.version:
            self._note_version(clocks)
            clock.read()  # somebody else has written it
        if is_capturing(device) or not clock.has_rows_left:
            # The device has better numbers.
            values, nothing = self._values_at(clock.at_most), np.zeros(len(self._table))
            return {**values, **dict.fromkeys(clock.states, nothing)}
        return super().values_in_force()

    def _count_step(self) -> None:
        """Count the step that was taken, unless the device has."""
        clocks, clock = self._clocks, self._clock
        self._is_applied = True
        if clocks is None or clock is None or not has_counted(clock):
            self.iterations.add_(1)
            return
        clock.is_over = False
        if self.iterations.data_ptr() != clock.iterations.data_ptr():
            self.iterations.data = clock.iterations
            self._note_version(clocks)
        if clock.was_applied is not None:
            self._is_applied = clock.was_applied

    @override
    def _advance_states(self) -> None:
        clock = self._clock
        if not self._states or clock is None or not has_counted(clock):
            super()._advance_states()
            self._show_states(clock)
            return
        for name, state in clock.states.items():
            if self._states[name].data_ptr() != state.data_ptr():
                self._states[name].data = state

    def _show_states(self, clock: DeviceClock | None) -> None:
        """Let the device know the host's states: it may have to go on with them."""
        if clock is None or clock.is_ahead or is_capturing(clock.device):
            return
        if self._states:
            clock.follow_states({n: float(s) for n, s in self._states.items()})

    def _states_after(self, scalars: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The states after a step, from its numbers on the device."""
        numbers = {name: column[0] for name, column in scalars.items()}
        known = {**self._flags, **self._numbers(0), **numbers}
        view: Any = ScalarView(type(self), known)
        return dict(view.next_states(numbers[STEP]))

    @override
    def _is_due(self, frequency: int) -> bool | torch.Tensor:
        clock = self._clock
        if clock is None or not has_counted(clock):
            return super()._is_due(frequency)
        is_due = clock.iterations % frequency == 0
        return is_due if clock.was_applied is None else is_due & clock.was_applied

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

    @override
    def _is_left_to_device(self, pairs: Pairs, policy: NonFinite) -> bool:
        """Whether the device finds out if gradients that no plan checks are finite.

        Only where it took the step before, of the same kind, by kernels alone.
        """
        clocks, clock = self._clocks, self._clock
        if clocks is None or clock is None:
            return False
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
            finite = torch.stack([torch.isfinite(value).all() for value in values])
            leave_to_device(clock, policy, [v for _, v in pairs], finite)
        return is_known

    def _note_rows(self, pairs: Pairs) -> None:
        """Remember what a step was like, for `_is_left_to_device`."""
        if self._clocks is not None:
            self._clocks.rows = _rows_of(pairs)

    @override
    def _apply_one_by_one(
        self, extended: Any, pairs: Pairs, known: Known | None
    ) -> None:
        if known is None:
            for gradient, variable in _left_to_kernels(pairs):
                gradient.check_bounds(variable.shape[0])  # a hook may use them
        super()._apply_one_by_one(extended, pairs, known)

    # -- what devices find wrong ----------------------------------------------

    def _open_step(self) -> LateErrors | None:
        """Raise what devices have told of earlier steps, and listen to a new one.

        Returns:
            Who has listened before, and shall again after the step.
        """
        errors = self._errors
        if errors is None:
            errors = self.__dict__["_errors"] = LateErrors()
        errors.refuse_known()
        if self._clocks is not None and self._clocks.current is not None:
            self._clocks.current.cancel()
        before, listening.errors = listening.errors, errors
        return before

    def _refuse_late(self) -> None:
        """Wait for the devices, and raise what they found in earlier steps."""
        if self._errors is not None:
            self._errors.refuse()

    @override
    def slot_variables(self) -> Iterator[tuple[torch.Tensor, str, Any]]:
        self._refuse_late()
        return super().slot_variables()

    @override
    def get_weights(self) -> list[np.ndarray]:
        self._refuse_late()
        return super().get_weights()

    # -- clocks ---------------------------------------------------------------

    def _clock_of(
        self, located: Sequence[tuple[Any, torch.Tensor, Any]]
    ) -> DeviceClock | None:
        """The clock of a step over these variables; None without kernels of a device.

        A clock is of one device: where there are several, the host counts.

        Args:
            located: Entries of variables, their components, and gradients.
        """
        devices = {component.device for _, component, _ in located}
        self._checks_rows = self._checks_rows or any(
            isinstance(gradient, IndexedSlices) and kernels_check_rows(entry.variable)
            for entry, _, gradient in located
        )
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
            refuse_unprepared(f"a step of {self._name}", device)
            self._retire(clocks)
            new = self._new_clock(device, clock if is_same else None)
            if clock is not None:
                new.applies, new.is_right = clock.applies, clock.is_right
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
        clock = DeviceClock(
            device,
            count if is_there else int(count),
            len(self._table),
            {name: self._numbers_of(name) for name in self._varying()},
            decides=self._can_decide(),
            counts_all=self._scaling.skips,
        )
        if self._states:
            held = {n: s.data for n, s in self._states.items()}
            kept = before.states if before is not None and before.is_ahead else held
            are_there = all(v.device == device for v in kept.values())
            is_host = device.type == "cpu" and kept is held
            clock.keep(
                kept
                if are_there and not is_host
                else {n: float(v) for n, v in kept.items()},
                self._states_after,
            )
        return clock

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
        skips, sizes = self._scaling.skips, len(self._table)
        return self._can_decide(), skips, sizes, tuple(values)

    def _can_decide(self) -> bool:
        """Whether steps may be left out without the host."""
        is_checked = self._settings.nonfinite != "off" or self._scaling.skips
        return is_checked or self._checks_rows

    def _where_applied(self, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        """What follows a step, or what was there if the device has left it out."""
        clock = self._clock
        if clock is None or not has_counted(clock) or clock.was_applied is None:
            return new
        return torch.where(clock.was_applied, new, old)

    def _check_capture(self, *, is_stale: bool) -> None:
        """Refuse a capture whose replays would go on with wrong numbers."""
        where = f"capture of a step of {type(self).__name__}"
        if is_stale:
            raise RuntimeError(
                message(
                    where,
                    "options and schedules of the step before",
                    "other ones, which the device has not seen",
                    "Take a step outside the capture first.",
                )
            )


def has_counted(clock: DeviceClock) -> bool:
    """Whether the device has counted the step under way.

    Args:
        clock: Of the optimizer.
    """
    return clock.is_ahead and clock.is_over


def _left_to_kernels(pairs: Pairs) -> list[tuple[IndexedSlices, torch.Tensor]]:
    """The pairs whose indices `check_pairs` has not looked at."""
    return [
        (gradient, variable)
        for gradient, variable in pairs
        if isinstance(gradient, IndexedSlices) and kernels_check_rows(variable)
    ]


def _rows_of(pairs: Pairs) -> tuple[int, ...]:
    return tuple(id(v) if isinstance(g, IndexedSlices) else -id(v) for g, v in pairs)
