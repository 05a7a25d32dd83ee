"""How a step runs: checked in bulk and replayed, or prepared parameter by parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch

from thalweg.distribute import local_tensor
from thalweg.optim.described import Described
from thalweg.optim.device_counts import (
    CounterClock,
    DeviceCounters,
    asks_device,
    counting_device,
    settings_of,
)
from thalweg.optim.drafts import Draft
from thalweg.optim.gradients import Resolved, resolve
from thalweg.optim.options import NO_TRANSFORMS
from thalweg.optim.replay import Replay, partition
from thalweg.optim.roster import (
    Roster,
    gradients_of,
    kinds_of,
    parameters_of_groups,
)
from thalweg.optim.rounding import labels_of_groups
from thalweg.step import Member, Plan
from thalweg.step.captures import refuse_unprepared
from thalweg.step.device_clock import refuse_capture

__all__ = ["Stepper"]

_MAX_REPLAYS = 8
"""Sets of parameters with gradients that are remembered at the same time."""


class Stepper:
    """Runs the steps of one optimizer; made anew when it is copied or unpickled."""

    def __init__(self) -> None:
        self._roster: Roster | None = None
        self._replays: dict[Any, Replay] = {}
        self._last: Replay | None = None
        self._asked = False
        self._device: torch.device | None = None

    def run(self, optimizer: Described) -> bool | torch.Tensor:
        """Take a step.

        Args:
            optimizer: Whose groups and state are read.

        Returns:
            False if it was left out because of an inf or NaN; where the device
            decides, a bool of shape () there.

        Raises:
            RuntimeError: While the current stream is captured as a CUDA graph, if the
                host counts steps, or if no such step has been taken before.
        """
        groups = optimizer.param_groups
        parameters = parameters_of_groups(groups)
        gradients = gradients_of(parameters)
        roster, step = self._roster, self._recognized(parameters, gradients)
        # A step that is recognized has the parameters of the roster.
        is_same = roster is not None and (
            roster.has_sizes(groups) if step else roster.fits(groups, parameters)
        )
        asked = asks_device(optimizer)
        if roster is None or not is_same or asked != self._asked:
            roster = self._new_roster(optimizer, parameters)
            self._asked, step = asked, None
        if self._device is None:
            refuse_capture(type(optimizer).__name__, "a step")
        if step is None:
            step = resolve(
                *(gradients, kinds_of(gradients), parameters, optimizer._options),
                needs_all_rows=optimizer.needs_all_rows,
                is_left=self._device is not None,
            )
        return step is not None and self._take(optimizer, roster, step)

    def _new_roster(
        self, optimizer: Described, parameters: list[torch.Tensor]
    ) -> Roster:
        """List the parameters, and find out who counts their steps."""
        self._device = counting_device(optimizer, parameters)
        refuse_unprepared(f"a step of {type(optimizer).__name__}", self._device)
        names = tuple(optimizer.counters)
        self._roster = Roster(optimizer.param_groups, parameters, names)
        if self._device is not None:
            counters = DeviceCounters(names, len(parameters), self._device)
            self._roster.counters = counters
        self._forget()
        return self._roster

    def _recognized(
        self, parameters: list[torch.Tensor], gradients: list[Any]
    ) -> Resolved | None:
        """The step, if all gradients are dense and like those of the last one."""
        last = self._last
        if last is None or last.kinds is not None or last.plan is None:
            return None
        if not last.plan.recognition.recognizes(parameters, gradients):
            return None
        return Resolved(None, gradients, (), last.transforms, is_recognized=True)

    def _take(
        self, optimizer: Described, roster: Roster, step: Resolved
    ) -> bool | torch.Tensor:
        """Replay or prepare the step; say whether it was taken."""
        settings = settings_of(optimizer, self._device)
        choices = tuple([chosen for _, chosen in settings])
        if not roster.knows(optimizer.state):
            self._forget()
        key = (step.kinds, step.transforms is NO_TRANSFORMS, choices)
        replay = self._replays.get(key)
        if replay is None or not _is_current(roster, replay, step):
            refuse_unprepared(f"a step of {type(optimizer).__name__}", self._device)
            drafts = _drafts(optimizer, roster, step, choices)
            if not drafts or _is_probe(optimizer, drafts, step):
                return True
            replay = _prepare(optimizer, roster, drafts, step)
            self._keep(key, replay)
        self._last = replay
        values = replay.values(settings, roster.group_of, roster.counters)
        if not _launch(replay, step, values):
            return False
        if replay.clock is not None:
            verdict = replay.clock.was_applied
            return True if verdict is None else verdict
        replay.advance(roster.counters, optimizer.next_counters(values))
        return True

    def _forget(self) -> None:
        self._replays, self._last = {}, None

    def _keep(self, key: Any, replay: Replay) -> None:
        self._replays.pop(key, None)
        while len(self._replays) >= _MAX_REPLAYS:
            del self._replays[next(iter(self._replays))]
        self._replays[key] = replay


def _is_current(roster: Roster, replay: Replay, step: Resolved) -> bool:
    """Whether all is as it was when the replay was made, but for the numbers."""
    if not (replay.has_slots() and replay.is_partitioned(roster.counters)):
        return False
    plan = replay.plan
    if plan is None:
        return True
    if step.is_recognized:
        return plan.is_in_place()
    variables = replay.parameters
    if roster.has_shards:
        variables = list(map(local_tensor, variables))
    if plan.recognition.recognizes(variables, step.dense):
        return plan.is_in_place()
    return Plan.are_dense(step.dense) and plan.fits(variables, step.dense)


def _launch(replay: Replay, step: Resolved, values: Mapping[str, np.ndarray]) -> bool:
    if replay.clock is not None:
        replay.clock.load(values)
        step.tell(replay.clock)
    update_rows = replay.row_updates(step.rows, values) if step.rows else None
    if replay.plan is not None:
        if update_rows:
            written = [t for member in replay.sparse for t in member.tensors]
            replay.plan.write_beside(written)
        return step.transforms.run(
            replay.plan, step.dense, values, before_run=update_rows
        )
    if update_rows:
        update_rows() if replay.clock is None else replay.clock.run(update_rows, 0)
    return True


# -- preparing a replay -------------------------------------------------------


@torch.no_grad()
def _drafts(
    optimizer: Described,
    roster: Roster,
    step: Resolved,
    choices: Sequence[tuple[Any, ...]],
) -> list[Draft]:
    """What each parameter with a gradient needs."""
    folds = step.transforms is not NO_TRANSFORMS
    formulas = [optimizer.full_formula(chosen, folds=folds) for chosen in choices]
    keys = {slot.key for formula in formulas for slot in formula.all_slots}
    optimizer._options.check_slot_names(type(optimizer).__name__, keys)
    groups = optimizer.param_groups
    drafts = []
    for position, parameter in enumerate(roster.parameters):
        if step.kinds is None or step.kinds[position]:
            group = int(roster.group_of[position])
            own = dict(optimizer.state.get(parameter, {}))
            draft = Draft(position, parameter, groups[group], formulas[group], own)
            draft.complete(optimizer, roster.counters)
            drafts.append(draft)
    return drafts


def _is_probe(optimizer: Described, drafts: Sequence[Draft], step: Resolved) -> bool:
    """Make slots and take no step, if that is what the caller is after."""
    is_probe = not step.rows and all(
        draft.is_probe(gradient)
        for draft, gradient in zip(drafts, step.dense, strict=True)
    )
    if is_probe:
        for draft in drafts:
            if optimizer.is_built_ahead(draft.group):
                draft.commit(optimizer)
    return is_probe


@torch.no_grad()
def _prepare(
    optimizer: Described, roster: Roster, drafts: Sequence[Draft], step: Resolved
) -> Replay:
    """Check everything, make a plan, and put new state in force."""
    positions = np.array([draft.position for draft in drafts])
    clock = _clock(optimizer, roster, positions)
    if clock is None:
        rows = partition(positions, roster.group_of, roster.counters)
    else:
        rows = positions, np.arange(len(positions))
    members = _members(optimizer, drafts, rows[1])
    kinds = step.kinds or (1,) * len(roster.parameters)
    is_dense = [kind == 1 for kind in kinds if kind]
    dense = list(compress(members, is_dense))
    where, owns_rows = type(optimizer).__name__, step.transforms.owns_rows
    plan: Any = Plan(where, dense, step.dense, owns_rows=owns_rows) if dense else None
    if plan is not None:
        plan.clock = clock
    replay = Replay(
        columns=optimizer.all_columns(),
        kinds=step.kinds,
        transforms=step.transforms,
        positions=positions,
        rows=rows,
        plan=plan,
        parameters=[draft.parameter for draft in compress(drafts, is_dense)],
        sparse=[m for m, own in zip(members, is_dense, strict=True) if not own],
    )
    replay.clock = clock
    for draft in drafts:
        draft.commit(optimizer)
    replay.watch(_watched(optimizer, drafts), roster.counters)
    roster.remember(optimizer.state)
    return replay


def _members(
    optimizer: Described, drafts: Sequence[Draft], rows: np.ndarray
) -> list[Member]:
    """The variables of a step, each with its row of numbers."""
    labels = labels_of_groups(optimizer)
    return [
        draft.member(optimizer, int(row), labels[draft.position] if labels else None)
        for draft, row in zip(drafts, rows, strict=True)
    ]


def _watched(
    optimizer: Described, drafts: Sequence[Draft]
) -> list[tuple[dict[str, Any], str]]:
    """Entries of the state that a replay writes; another tensor there ends it."""
    counted = optimizer.counters if optimizer.counts_in_state else ()
    return [
        (optimizer.state[draft.parameter], key)
        for draft in drafts
        for key in (*(slot.key for slot in draft.formula.all_slots), *counted)
    ]


def _clock(
    optimizer: Described, roster: Roster, positions: np.ndarray
) -> CounterClock | None:
    """What counts the steps of these parameters on a device, if that does."""
    counters = roster.counters
    if not isinstance(counters, DeviceCounters):
        return None
    decides = optimizer._options.nonfinite != "off"
    groups = roster.group_of[positions]
    return CounterClock(optimizer, counters, positions, groups, decides=decides)
