"""Sums of gradients over the micro-steps of a cycle, until their mean is applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import numpy as np
import torch

from thalweg.compiler import Rule
from thalweg.distribute import local_tensor
from thalweg.distribute.components import place_arguments
from thalweg.errors import describe, message
from thalweg.gradients.loss_scale import times
from thalweg.optimizers.declarations import ACCUMULATOR
from thalweg.optimizers.pairs import Pairs
from thalweg.optimizers.slots import Entry
from thalweg.rules.accumulate import accumulate, begin_sum
from thalweg.state import IndexedSlices, Variable, name_of
from thalweg.step import Member, Plan, launch_dense

__all__ = ["INDICES", "PENDING", "VALUES", "Sums"]

VALUES = "gradient_accumulator_values"
"""Slot of the rows that sparse gradients of a cycle gave, in order of appearance."""
INDICES = "gradient_accumulator_indices"
"""Slot of the numbers of these rows."""
PENDING = frozenset({ACCUMULATOR, VALUES, INDICES})

Scale = float | torch.Tensor
"""What gradients are multiplied by; float64 of shape () where a device knows it."""

_RULES = {True: Rule.of(begin_sum), False: Rule.of(accumulate)}  # by: is it first?


@dataclass
class _Rows:
    """The sparse gradients of a variable that wait, in order of appearance."""

    entry: Entry
    values: list[torch.Tensor] = field(default_factory=list)
    indices: list[torch.Tensor] = field(default_factory=list)

    def add(self, slices: IndexedSlices, scale: Scale) -> None:
        """Copy slices: their tensors are the caller's."""
        dtype = self.entry.slots[ACCUMULATOR].dtype
        values = slices.values.detach().to(dtype, copy=True)
        if isinstance(scale, torch.Tensor):
            values = times(values, scale)
        elif scale != 1.0:
            values.mul_(scale)
        self.values.append(values)
        self.indices.append(slices.indices.clone())

    def joined(self, name: str) -> torch.Tensor:
        """All values, or all indices, as one tensor that stays the same object."""
        parts = self.values if name == VALUES else self.indices
        if len(parts) > 1:
            parts[:] = [torch.cat(parts)]
        return parts[0]

    def mean(self, count: int) -> IndexedSlices:
        values, indices = self.joined(VALUES) / count, self.joined(INDICES)
        return IndexedSlices(values, indices, tuple(self.entry.variable.shape))


class _Plans:
    """The kernels that add dense gradients to the sums of some variables.

    Attributes:
        entries: What the optimizer keeps for these variables, by `id`.

    Args:
        where: Name of the optimizer, for messages.
        entries: What it keeps for the variables.
    """

    def __init__(self, where: str, entries: Sequence[Entry]) -> None:
        self._where = where
        self._variables = [entry.variable for entry in entries]
        self.entries = {id(entry.variable): entry for entry in entries}
        self._slots = [entry.slots[ACCUMULATOR] for entry in entries]
        self._locals = list(map(local_tensor, self._slots))
        # Of torch's own class, as gradients are.
        means = [slot.detach() for slot in self._slots]
        self.means: Pairs = list(zip(means, self._variables, strict=True))
        self._plans: dict[bool, Plan] = {}

    def are_of(self, entries: Sequence[Entry]) -> bool:
        """Whether these are the variables, and their sums lie where they did."""
        return (
            len(entries) == len(self._slots)
            and all(e.slots[ACCUMULATOR] is s for e, s in zip(entries, self._slots))  # noqa: B905
            and all(map(is_, map(local_tensor, self._slots), self._locals))
        )

    def recognize(self, pairs: Sequence[Any], *, is_first: bool) -> Any:
        """The gradients of pairs like those of an earlier micro-step, or None."""
        plan = self._plans.get(is_first)
        if plan is None or len(pairs) != len(self._variables):
            return None
        try:
            gradients, variables = zip(*pairs, strict=True)
        except (TypeError, ValueError):
            return None
        is_known = (
            all(map(is_, variables, self._variables))
            and plan.recognition.recognizes(plan.variables, gradients)
            and plan.is_in_place()
        )
        return gradients if is_known else None

    def prepare(self, gradients: Sequence[torch.Tensor], *, is_first: bool) -> None:
        """Check gradients and make kernels for them; nothing is written."""
        for own, gradient in zip(self._locals, gradients, strict=True):
            _check_sum(self._where, own, gradient)
        plan = self._plans.get(is_first)
        if (
            plan is None
            or not Plan.are_dense(gradients)
            or not plan.fits(self._locals, gradients)
        ):
            rule = _RULES[is_first]
            members = [Member(rule, (own,), (), 0) for own in self._locals]
            self._plans[is_first] = Plan(self._where, members, gradients)

    def add(
        self,
        gradients: Sequence[torch.Tensor],
        numbers: Mapping[str, Scale],
        *,
        is_first: bool,
    ) -> None:
        """Add gradients that were recognized or prepared."""
        plan = self._plans[is_first]
        there: dict[str, torch.Tensor] = {}
        if plan.is_on_device:  # where a number may stay
            tensors = {n: x for n, x in numbers.items() if isinstance(x, torch.Tensor)}
            there = {name: number.reshape(1) for name, number in tensors.items()}
        here = {n: 0.0 if n in there else float(x) for n, x in numbers.items()}
        plan.load(gradients, {name: np.array([x]) for name, x in here.items()})
        plan.write_device_scalars(there)
        plan.run()


def _check_sum(where: str, own: torch.Tensor, gradient: torch.Tensor) -> None:
    """Refuse a gradient that its sum has no room for."""
    if own.shape != gradient.shape:
        raise ValueError(
            message(
                f"{where}: sum of the gradients of a variable",
                f"a gradient of its shape {tuple(own.shape)}",
                describe(gradient),
                "A variable that was resized needs new slots: make a new optimizer.",
            )
        )


class Sums:
    """The gradients of a cycle that is not over, of all variables.

    What an accumulator holds counts only once a gradient of this cycle has come; so a
    cycle begins without a pass that writes zeros. A variable without any gradient in
    a cycle is left out of its step.

    Attributes:
        steps: Gradients in a cycle.
        position: How many of them have come, an int64 variable.
        reduction: What the means of all ranks become, if each rank has its own sums;
            "" if they are alike.
        is_as_restored: Whether this is the cycle that was last restored.

    Args:
        where: Name of the optimizer, for messages.
        steps: Gradients in a cycle.
        position: The variable.
    """

    def __init__(self, where: str, steps: int, position: Variable) -> None:
        self._where, self.steps, self.position = where, steps, position
        self.reduction, self.is_as_restored = "", False
        self._dense: dict[int, Entry] = {}
        self._rows: dict[int, _Rows] = {}
        # Those of all micro-steps, where another rank may have had a gradient.
        self._listed: dict[int, torch.Tensor] = {}
        # By: id of the variable; dense, rows, or listed alone (None).
        self._restored: set[tuple[int, bool | None]] = set()
        self._version = position._version
        self._plans: _Plans | None = None

    # -- a micro-step ---------------------------------------------------------

    def count(self) -> int:
        """How many gradients wait; sums that a restore did not bring are forgotten."""
        if self.position._version != self._version:
            # Somebody else has set the position: what waited belongs to another run.
            known = self._restored
            self._dense = {k: e for k, e in self._dense.items() if (k, True) in known}
            self._rows = {k: r for k, r in self._rows.items() if (k, False) in known}
            listed = self._listed.items()
            self._listed = {k: v for k, v in listed if (k, None) in known}
            self._version, self._restored = self.position._version, set()
        return int(self.position)

    def add_known(self, pairs: Sequence[Any], scale: Scale) -> bool:
        """Add dense gradients like those of an earlier micro-step.

        Args:
            pairs: What `apply_gradients` was given.
            scale: What gradients are multiplied by.

        Returns:
            False, with nothing changed, if a closer look is needed.
        """
        plans, count = self._plans, self.count()
        if plans is None:
            return False
        if count and self._dense is not plans.entries:
            return False
        gradients = plans.recognize(pairs, is_first=count == 0)
        if gradients is None:
            return False
        if count == 0:
            self._rows = {}
        self._dense = plans.entries
        plans.add(gradients, self._numbers(count, scale), is_first=count == 0)
        self._set(count + 1)
        return True

    def add(self, pairs: Sequence[tuple[Entry, Any]], scale: Scale) -> None:
        """Add gradients that were checked.

        Args:
            pairs: What the optimizer keeps for a variable, and its gradient.
            scale: What gradients are multiplied by.
        """
        count = self.count()
        dense = [p for p in pairs if not isinstance(p[1], IndexedSlices)]
        begun = {} if count == 0 else self._dense
        parts = {
            is_first: [p for p in dense if (id(p[0].variable) not in begun) == is_first]
            for is_first in (True, False)
        }
        added = [self._prepared(p, is_first) for is_first, p in parts.items() if p]
        numbers = self._numbers(count, scale)
        for add in added:
            add(numbers)
        self._dense = {**begun, **{id(e.variable): e for e, _ in dense}}
        if self._plans is not None and self._dense.keys() == self._plans.entries.keys():
            self._dense = self._plans.entries
        if count == 0:
            self._rows = {}
        for entry, gradient in pairs:
            if isinstance(gradient, IndexedSlices):
                rows = self._rows.setdefault(id(entry.variable), _Rows(entry))
                rows.add(gradient, scale)
        if count + 1 >= self.steps:
            self._divide_others(dense, count + 1)
        self._set(count + 1)

    def note(
        self, listed: Sequence[torch.Tensor], *, is_restored: bool = False
    ) -> None:
        """Remember variables whose gradients may be on other ranks alone.

        Args:
            listed: The variables.
            is_restored: Whether a checkpoint brings them; else a micro-step.
        """
        self._listed.update((id(variable), variable) for variable in listed)
        if is_restored:
            self._restored.update((id(variable), None) for variable in listed)

    def _prepared(
        self, dense: Sequence[tuple[Entry, torch.Tensor]], is_first: bool
    ) -> Callable[[Mapping[str, Scale]], None]:
        """Check gradients, and give what adds them."""
        entries = [entry for entry, _ in dense]
        gradients = [place_arguments(g, e.variable) for e, g in dense]
        plans = self._plans
        if plans is None or not plans.are_of(entries):
            plans = self._plans = _Plans(self._where, entries)
        plans.prepare(gradients, is_first=is_first)
        return lambda numbers: plans.add(gradients, numbers, is_first=is_first)

    def _numbers(self, count: int, scale: Scale) -> dict[str, Scale]:
        is_last = count + 1 >= self.steps
        return {"scale": scale, "divisor": count + 1.0 if is_last else 1.0}

    def _divide_others(
        self, dense: Sequence[tuple[Entry, torch.Tensor]], count: int
    ) -> None:
        """Make means of the sums that the last gradients did not touch."""
        touched = {id(entry.variable) for entry, _ in dense}
        for key, entry in self._dense.items():
            if key not in touched:
                own = local_tensor(entry.slots[ACCUMULATOR])
                _add_to(own, torch.zeros_like(own), float(count))

    def _set(self, count: int) -> None:
        self.position.fill_(count)
        self._version, self._restored = self.position._version, set()

    # -- the end of a cycle ---------------------------------------------------

    def means(
        self, listed: Sequence[torch.Tensor] | None, order: Iterable[int]
    ) -> Pairs:
        """The mean gradients, with their variables, in an order that names decide.

        Args:
            listed: The variables of the last micro-step, in its order; None if they
                were recognized.
            order: The `id` of each variable, in the order of those without a name.

        Returns:
            Pairs; a listed variable without any gradient in the cycle has None.
        """
        if listed is None and self._plans is not None:
            if not self._rows and self._listed.keys() <= self._dense.keys():
                return list(self._plans.means)
            listed = [variable for _, variable in self._plans.means]
        first = {id(variable): variable for variable in listed or ()}
        entries = (*self._dense.values(), *(rows.entry for rows in self._rows.values()))
        others = {**self._listed, **{id(e.variable): e.variable for e in entries}}
        others = {**{k: others[k] for k in order if k in others}, **others}
        others = {k: v for k, v in others.items() if k not in first}
        last = sorted(others.values(), key=lambda v: name_of(v) or "")
        return [(self._mean(id(v)), v) for v in (*first.values(), *last)]

    def _mean(self, key: int) -> Any:
        entry, rows = self._dense.get(key), self._rows.get(key)
        slices = None if rows is None else rows.mean(int(self.position))
        if entry is None:
            return slices
        slot = entry.slots[ACCUMULATOR]
        if slices is not None:  # both kinds in one cycle: a dense gradient
            whole = place_arguments(slices.to_dense(), entry.variable)
            _add_to(local_tensor(slot), whole, 1.0)
        return slot.detach()

    def end(self) -> None:
        """Begin the next cycle."""
        self._dense, self._rows, self.is_as_restored = {}, {}, False
        self._listed = {}
        self._set(0)

    # -- checkpoints ----------------------------------------------------------

    def slots(self) -> Iterator[tuple[torch.Tensor, str, torch.Tensor]]:
        """What waits, as (variable, slot name, slot)."""
        if self.count() == 0:
            return
        for entry in self._dense.values():
            yield entry.variable, ACCUMULATOR, entry.slots[ACCUMULATOR]
        for rows in self._rows.values():
            for name in (VALUES, INDICES):
                yield rows.entry.variable, name, rows.joined(name)

    def restore_dense(self, entry: Entry) -> None:
        """Take what was put into an accumulator for the sum of this cycle."""
        self._dense = {**self._dense, id(entry.variable): entry}
        self._restored.add((id(entry.variable), True))

    def restore_rows(self, entry: Entry, name: str, saved: torch.Tensor) -> None:
        """Take the rows of sparse gradients that wait, or their numbers."""
        key = id(entry.variable)
        if (key, False) not in self._restored:
            self._rows[key] = _Rows(entry)
        rows = self._rows[key]
        (rows.values if name == VALUES else rows.indices)[:] = [saved.detach().clone()]
        self._restored.add((key, False))

    # -- copies ---------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        self.count()  # notices what was written into the position, and what waits
        entries, rows = list(self._dense.values()), list(self._rows.values())
        own = {"_dense": entries, "_rows": rows, "_plans": None, "_restored": set()}
        return {**self.__dict__, **own, "_listed": list(self._listed.values())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._dense = {id(e.variable): e for e in state["_dense"]}
        self._listed = {id(variable): variable for variable in state["_listed"]}
        self._rows = {id(r.entry.variable): r for r in state["_rows"]}
        self._version = self.position._version


def _add_to(accumulator: torch.Tensor, gradient: torch.Tensor, divisor: float) -> None:
    """Add to one accumulator, where that is the exception."""
    numbers = {"scale": 1.0, "divisor": divisor}
    launch_dense(_RULES[False], {}, (accumulator, gradient), numbers)
