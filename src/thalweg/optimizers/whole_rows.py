"""Sparse gradients that become dense ones, because their update reads all rows.

So do ``sparse_update="exact"``, what Keras 2.6 did for Adam and Nadam, and rules that
reduce a whole variable. The rows of a gradient are added into zeros by a kernel, in
order of appearance, and the plan of the step does the rest. On a device, where nobody
may wait, that kernel also looks at the indices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thalweg.compiler import Rule
from thalweg.compiler.program import compute_dtype
from thalweg.distribute import is_distributed
from thalweg.optimizers.slots import Entry
from thalweg.optimizers.step_count import StepCount
from thalweg.rules import scatter_add
from thalweg.rules.moving_average import moving_average
from thalweg.state import IndexedSlices
from thalweg.step import EMA, EMA_MOMENTUM, Member, RowUpdate, launch_row_updates
from thalweg.step.device_clock import DeviceClock
from thalweg.step.device_kernel import has_device_kernels
from thalweg.step.row_updates import check_updates

__all__ = ["HeldRows", "Located", "WholeRows", "dense_gradients"]

_ADD = Rule.of(scatter_add)


class Located(NamedTuple):
    """A local component of a variable, and its gradient beside it.

    Attributes:
        entry: What the optimizer keeps for the variable.
        component: The component.
        gradient: A tensor or `IndexedSlices`.
    """

    entry: Entry
    component: Tensor
    gradient: Any


class WholeRows(StepCount):
    """The part of `Optimizer` for sparse gradients that an update of all rows takes."""

    def _with_whole_rows(
        self, located: Sequence[Located], clock: DeviceClock | None
    ) -> tuple[list[Located], list[Located]]:
        """Make dense what the update needs dense, so that the plan can take it.

        Args:
            located: Components and gradients of a step.
            clock: Of the device that they are on; it is told of wrong indices. Without
                one the host looks at them.

        Returns:
            The components with the gradients that are left to do, and those of them,
            with their sparse gradients, of which only touched rows shall move.

        Raises:
            ValueError: If an index names no row, where the host looks, or a shard holds
                parts of rows that the rule reads.
        """
        self._check_cuts(
            (entry, component)
            for entry, component, gradient in located
            if isinstance(gradient, IndexedSlices)
        )
        chosen = self._all_rows(located)
        if clock is None:
            if "decay" in chosen.values():  # they act one by one, later
                self._check_rows(located)
            chosen = _left_to_host(located, chosen)
        given = [located[place] for place in chosen]
        if not given:
            return list(located), []
        with nullcontext() if clock is None else clock.in_force():
            dense = dense_gradients(given)
        found = list(located)
        for place, gradient in zip(chosen, dense, strict=True):
            found[place] = found[place]._replace(gradient=gradient)
        held = [located[place] for place, mode in chosen.items() if mode == "decay"]
        return found, held

    def _all_rows(self, located: Sequence[Located]) -> dict[int, str]:
        """Where a sparse gradient meets an update of all rows, and how it acts."""
        return {
            place: mode
            for place, one in enumerate(located)
            if isinstance(one.gradient, IndexedSlices)
            and (one.component.is_cpu or has_device_kernels(one.component.device))
            and not is_distributed(one.entry.variable)
            and (mode := self._mode_of_all_rows(one))
        }

    def _check_rows(self, located: Sequence[Located]) -> None:
        """Refuse sparse gradients that cannot be applied, before the first one is."""
        rule = self._bound_rule()
        check_updates(
            [
                RowUpdate(self._member(rule, entry, component), gradient, "sum")
                for entry, component, gradient in located
                if isinstance(gradient, IndexedSlices)
            ]
        )

    def _mode_of_all_rows(self, one: Located) -> str:
        """How a sparse gradient acts if its update reads all rows; else ""."""
        member = self._member(self._bound_rule(), one.entry, one.component)
        mode = self._row_mode(member)
        return mode if mode in ("exact", "decay") else ""

    def _hold(self, decayed: Sequence[Located]) -> list[HeldRows]:
        """Keep the rows that a dense update must not move; before it, in its step."""
        held: list[HeldRows] = []
        for entry, component, gradient in decayed:
            average = entry.slots[EMA] if self.use_ema else None
            momentum: Any = None
            if average is not None and self._clock is not None:
                momentum = self._clock.scalars[EMA_MOMENTUM][entry.setting]
            held.append(HeldRows(component, gradient.indices, average, momentum))
        return held

    def _put_back(self, decayed: Sequence[Located], held: Sequence[HeldRows]) -> None:
        """Undo the moves of rows that were held; after the step."""
        clock = self._clock
        for rows in held:
            rows.put_back(None if clock is None else clock.was_applied)
        self._refresh_copies([one.entry.variable for one in decayed])


def _left_to_host(
    located: Sequence[Located], chosen: Mapping[int, str]
) -> dict[int, str]:
    """Those of the chosen that are made dense where no device counts steps.

    A copy of touched rows alone is moved where others shall stay, one variable at a
    time; and so is what lies on several devices, once the host knows its indices.
    """
    for place in chosen:
        _, component, gradient = located[place]
        if not component.is_cpu:
            gradient.check_bounds(component.shape[0])
    is_cpu = {place: located[place].component.is_cpu for place in chosen}
    return {p: mode for p, mode in chosen.items() if is_cpu[p] and mode == "exact"}


@torch.no_grad()
def dense_gradients(located: Sequence[Located]) -> list[Tensor]:
    """The dense forms of sparse gradients, by one launch for each kernel.

    On a device the clock in force is told whether all indices name rows; where one does
    not, what is returned is of no use.

    Args:
        located: Variables with sparse gradients; on the CPU their indices name rows.

    Returns:
        New tensors of the variables' shapes, of the type in which updates of touched
        rows add up.
    """
    found: list[Tensor] = []
    updates: list[RowUpdate] = []
    for _, variable, given in located:
        if not variable.shape[0]:
            given.check_bounds(0)  # no index can be right
        values, shape = given.values.detach(), tuple(variable.shape)
        dtype = compute_dtype((values.dtype, variable.dtype))
        dense = torch.zeros(shape, dtype=dtype, device=values.device)
        found.append(dense)
        rows = IndexedSlices(values, given.indices, shape)
        updates.append(RowUpdate(Member(_ADD, (dense,), (), 0), rows, "sum"))
    launch_row_updates(updates, {})
    return found


class HeldRows:
    """Rows of a variable that stay what they were in a dense update of its slots.

    Args:
        variable: The variable.
        indices: The rows that move; a wrong index is any row.
        average: The variable's moving average, which follows it; None without one.
        momentum: Of the average, shape (), on the device.
    """

    @torch.no_grad()
    def __init__(
        self,
        variable: Tensor,
        indices: Tensor,
        average: Tensor | None = None,
        momentum: Tensor | None = None,
    ) -> None:
        count = variable.shape[0]
        moves = torch.zeros(count, dtype=torch.bool, device=variable.device)
        if count:
            moves.index_fill_(0, indices.long().clamp(0, count - 1), True)
        self._moves = moves.reshape(-1, *(1 for _ in variable.shape[1:]))
        before = variable.detach().clone()
        self._held = [(variable, before)]
        if average is not None and momentum is not None:
            wide = torch.promote_types(average.dtype, torch.float32)
            parts = average.detach().to(wide), before.to(wide)
            number: Any = momentum.to(wide)
            still = moving_average(*parts, momentum=number)
            self._held.append((average, still.to(average.dtype)))

    @torch.no_grad()
    def put_back(self, applies: Tensor | None) -> None:
        """Let the other rows be as if they had not moved.

        Args:
            applies: Shape (), bool, on the device: whether the update was made; it was
                if None.
        """
        keeps = self._moves if applies is None else self._moves | ~applies
        for tensor, still in self._held:
            tensor.copy_(torch.where(keeps, tensor.detach(), still))
        self._held = []
