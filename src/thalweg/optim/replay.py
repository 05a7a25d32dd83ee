"""A step over a set of parameters, frozen for replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import is_
from typing import Any

import numpy as np
import torch

from thalweg.distribute import local_tensor
from thalweg.optim.counters import Counters
from thalweg.optim.described import Settings
from thalweg.optim.device_counts import CounterClock
from thalweg.optim.formula import PENALTY
from thalweg.optim.roster import Kinds
from thalweg.state import IndexedSlices
from thalweg.step import (
    STEP,
    WEIGHT_DECAY,
    Member,
    Plan,
    RowUpdate,
    Transforms,
    launch_row_updates,
)
from thalweg.step.bulk import Holders, Places
from thalweg.step.row_updates import check_updates
from thalweg.step.rows import RowPlan

__all__ = ["Replay", "partition"]

Values = Mapping[str, np.ndarray]


def partition(
    positions: np.ndarray, group_of: np.ndarray, counters: Counters
) -> tuple[np.ndarray, np.ndarray]:
    """Put parameters of one group with equal counters into one row of numbers.

    Args:
        positions: The parameters.
        group_of: For every parameter its group.
        counters: Their counters.

    Returns:
        For each row the position of a parameter that has it; for each of the given
        parameters its row.
    """
    keys = np.vstack([group_of[positions], counters.values[:, positions]])
    _, first, row_of = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    return positions[first], row_of.reshape(-1)


class Replay:
    """What stays the same while the same parameters get gradients.

    Attributes:
        clock: Counts their steps, if a device does.

    Args:
        columns: Names of a group's numbers.
        kinds: What the gradients are.
        transforms: What the plan does to dense gradients.
        positions: Positions of the parameters that have a gradient.
        rows: For each row of numbers the position of a parameter, and for each of the
            parameters its row.
        plan: Of those with a dense gradient, if there are any.
        parameters: Those.
        sparse: What a step updates where the gradient is sparse.
    """

    def __init__(
        self,
        *,
        columns: Sequence[str],
        kinds: Kinds,
        transforms: Transforms,
        positions: np.ndarray,
        rows: tuple[np.ndarray, np.ndarray],
        plan: Plan | None,
        parameters: list[torch.Tensor],
        sparse: list[Member],
    ) -> None:
        self.kinds = kinds
        self.transforms = transforms
        self.plan = plan
        self.clock: CounterClock | None = None
        self.parameters = parameters
        self.sparse = sparse
        self._columns = tuple(columns)
        self._positions = positions
        self._cells = slice(None) if kinds is None else positions
        self._representatives, self._row_of = rows
        self._counted: Values = {}
        self._shown: dict[str, np.ndarray] | None = None
        self._version = -1
        self._settings: Settings | None = None
        self._numbers: dict[str, np.ndarray] = {}
        self._row_plan: RowPlan | None = None
        self._is_row_plan_due = False
        self._has_slots = False
        self._holders = Holders([])
        self._places = Places([])

    # -- slots ----------------------------------------------------------------

    def watch(
        self, slots: Sequence[tuple[dict[str, Any], str]], counters: Counters
    ) -> None:
        """Remember which tensors the slots and counters are.

        Args:
            slots: States and keys.
            counters: The table, whose cells are at home there.
        """
        self._has_slots = bool(slots)
        self._holders = Holders({id(state): state for state, _ in slots}.values())
        self._places = Places(
            local_tensor(state[key])
            for state, key in slots
            if key not in counters.names
        )

    def has_slots(self) -> bool:
        """Whether the states still hold the same tensors at the same addresses."""
        return not self._has_slots or (
            self._holders.hold_the_same() and self._places.are_kept()
        )

    # -- rows -----------------------------------------------------------------

    def row_updates(
        self, rows: Sequence[IndexedSlices], values: Values
    ) -> Callable[[], None]:
        """What updates the touched rows of a step; nothing is written before.

        Args:
            rows: Sparse gradients, in the order of `sparse`.
            values: The numbers of the step.
        """
        plan = self._plan_of_rows(rows)
        if plan is not None and plan.load(rows, values):
            return plan.run
        updates = list(map(self._update, self.sparse, rows))
        return partial(launch_row_updates, updates, values)

    def _plan_of_rows(self, rows: Sequence[IndexedSlices]) -> RowPlan | None:
        """That of earlier steps; a new one, if the step before had none."""
        plan = self._row_plan
        if plan is not None and plan.fits(rows) and plan.is_in_place():
            return plan
        self._row_plan, is_due = None, self._is_row_plan_due
        self._is_row_plan_due = not is_due
        updates = list(map(self._update, self.sparse, rows)) if is_due else []
        if is_due and all(u.slices.indices.numel() and u.has_kernel() for u in updates):
            check_updates(updates)
            self._row_plan = RowPlan(updates)
            return self._row_plan if self._row_plan.fits(rows) else None
        return None

    @staticmethod
    def _update(member: Member, slices: IndexedSlices) -> RowUpdate:
        return RowUpdate(member, slices, "sum")

    # -- numbers --------------------------------------------------------------

    def is_partitioned(self, counters: Counters) -> bool:
        """Whether parameters of one row still have the same counters."""
        if self.clock is not None or self._follows_itself(counters):
            return True
        own = counters.values[:, self._positions]
        shown = counters.values[:, self._representatives][:, self._row_of]
        return bool(np.array_equal(own, shown))

    def values(
        self, settings: Settings, group_of: np.ndarray, counters: Counters
    ) -> dict[str, np.ndarray]:
        """The numbers of a step: for each column one for each row.

        Args:
            settings: Numbers of each group.
            group_of: For every parameter its group.
            counters: As they were before the step.

        Returns:
            New arrays for counters; the arrays of the last step for columns that have
            not changed.
        """
        follows = self._follows_itself(counters)
        if settings != self._settings:
            self._settings = settings
            self._shown = None
            table = np.array([numbers for numbers, _ in settings], dtype=np.float64)
            rows = table[group_of[self._representatives]]
            self._numbers = {n: rows[:, i].copy() for i, n in enumerate(self._columns)}
            if WEIGHT_DECAY in self._numbers:
                self._numbers[PENALTY] = self._numbers[WEIGHT_DECAY]
        elif self._shown is not None and follows:
            return self._shown
        values = dict(self._numbers)
        if self.clock is not None:  # the device has better numbers
            nothing = np.zeros(len(self._representatives))
            return {**values, **dict.fromkeys((*counters.names, STEP), nothing)}
        if follows:
            values.update(self._counted)
        else:
            for name in counters.names:
                values[name] = counters[name][self._representatives]
        values[STEP] = values[STEP] + 1.0
        self._shown = values if follows else None
        return values

    def _follows_itself(self, counters: Counters) -> bool:
        """Whether the counters are as the last step with these parameters left them."""
        return counters.last is self and self._version == counters.version

    def advance(self, counters: Counters, new: Values) -> None:
        """Write the counters after a step.

        Args:
            counters: The table.
            new: For each name one number per row.
        """
        if self._follows_itself(counters) and all(
            map(is_, new.values(), self._counted.values())
        ):
            return
        self._shown = None
        for name, rows in new.items():
            whole = rows[0] if len(rows) == 1 else rows[self._row_of]
            counters[name][self._cells] = whole
        self._counted = new
        self._version, counters.last = counters.version, self
