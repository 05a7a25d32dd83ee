"""From pairs to updates: by a plan that is replayed, or one variable at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from thalweg.compiler import Rule
from thalweg.gradients.loss_scale import NOT_SCALED
from thalweg.optimizers.gradient_hooks import GradientHooks
from thalweg.optimizers.known_numbers import KnownNumbers
from thalweg.optimizers.one_by_one import Known
from thalweg.optimizers.pairs import Pairs, check_pairs
from thalweg.optimizers.slots import Entry
from thalweg.optimizers.sparse_replay import SparseReplay
from thalweg.optimizers.whole_rows import HeldRows, Located, WholeRows
from thalweg.state import (
    IndexedSlices,
    Variable,
    as_variable,
    handle_of,
    has_constraints,
)
from thalweg.step import Plan, RowUpdate, Transforms, launch_row_updates

__all__ = ["Applying"]

NO_TRANSFORMS = Transforms()


class Applying(WholeRows):
    """The part of `Optimizer` that writes.

    A class with a rule, under a strategy with the default ``update``, makes a plan in
    its first step and replays it while the same variables come back. Everything else
    is updated variable by variable.
    """

    _plan_rule: Rule | None
    _replay: SparseReplay | None = None
    _rows_seen: tuple[int, ...] = ()
    _numbers_known: KnownNumbers | None = None

    def _recognized(self, pairs: list[Any]) -> Known | None:
        """Gradients and variables of these pairs, if a step of their kind is known."""
        known = self._replay
        if known is None:
            known = self._recognition if self._plan is None else self._plan.recognition
        if known is None or len(pairs) != len(known.variables):
            return None
        if self._replay is not None:
            self._replay.take_slices(pairs)
        try:
            gradients, variables = zip(*pairs, strict=True)
        except (TypeError, ValueError):
            return None
        is_known = known.recognizes(variables, gradients)
        return (gradients, variables) if is_known else None

    def _distributed_apply(
        self, pairs: Pairs, transforms: Transforms, batch: Known | None
    ) -> Variable:
        """Update the variables of all pairs, and count the step if it was taken."""
        self._refuse_in_scope("a step")
        extended = self._extended()
        # Straight into the table: attributes of an optimizer are looked at when set.
        self.__dict__.update(_values=self.values_in_force(), _is_applied=False)
        if self._applies_by_hand or not extended.has_default_update:
            self._apply_one_by_one(extended, pairs, batch)
        elif not self._apply_planned(extended, pairs, transforms, batch):
            return self.iterations
        self._finish(pairs)
        return self.iterations

    def _finish(self, pairs: Pairs) -> None:
        """What follows the update: averages written back, constraints, the count."""
        overwrites = self._settings.ema_overwrite_frequency is not None
        if overwrites or self._states or has_constraints():
            variables = [variable for _, variable in pairs]
            is_overwritten = self._overwrite_by_averages(variables)
            if self._constrain(variables) or is_overwritten:
                self._refresh_copies(variables)
            self._advance_states()
        self._count_step()

    # -- what the step before has found ---------------------------------------

    @override
    def values_in_force(self) -> dict[str, np.ndarray]:
        numbers, hyper, table = self._numbers_known, self._hyper, self._table
        if numbers is None:
            numbers = self._numbers_known = KnownNumbers()
        if self._clocks or self._states or not numbers.holds_count(self.iterations):
            return super().values_in_force()
        columns = numbers.columns(hyper, table)
        if columns is None:
            columns = super().values_in_force()
            numbers.remember(hyper, table, columns)
        return columns

    @override
    def _count_step(self) -> None:
        numbers = self._numbers_known
        if self._clocks or not (numbers and numbers.holds_count(self.iterations)):
            super()._count_step()
            return
        numbers.count_step()
        self.__dict__["_is_applied"] = True

    # -- by a plan ------------------------------------------------------------

    @override
    def _folded_transforms(self, pairs: Pairs) -> Transforms | None:
        if self._leaves_gradients:
            return NO_TRANSFORMS
        transforms = super()._folded_transforms(pairs)
        if transforms is None or transforms == NO_TRANSFORMS:
            return transforms
        is_planned = self._extended().has_default_update and not self._applies_by_hand
        return transforms if is_planned else None

    @property
    def _leaves_gradients(self) -> bool:
        """Whether it is plain at once that gradients are taken as they are."""
        hook = type(self)._transform_gradients
        return (
            not self._clips
            and self._scaling is NOT_SCALED
            and self._settings.nonfinite == "off"
            and not self.gradient_transformers
            and hook is GradientHooks._transform_gradients
        )

    def _apply_planned(
        self,
        extended: Any,
        pairs: Pairs,
        transforms: Transforms,
        batch: Known | None,
    ) -> bool:
        """Update by the plan; False if the step was left out."""
        rule = self._bound_rule(transforms.columns)
        if batch is None and self._replay is not None:
            batch = self._recognized(pairs)  # torch's sparse gradients are slices now
        if batch:
            applied = self._repeat(rule, batch[0], transforms)
            if applied is not None:
                return applied
        check_pairs(pairs)
        self._check_constraints(pairs)
        located = self._locate(extended, pairs)
        clock = self._clock_of(located)
        located, decayed = self._with_whole_rows(located, clock)
        dense = [x for x in located if not isinstance(x.gradient, IndexedSlices)]
        sparse = [x for x in located if isinstance(x.gradient, IndexedSlices)]
        updates: list[RowUpdate | None] = []
        held: list[HeldRows] = []
        self._replay = None

        def update_rows() -> None:
            held.extend(self._hold(decayed))
            updates.extend(self._row_update(slices, c) for _, c, slices in sparse)
            launch_row_updates([u for u in updates if u is not None], self._values)

        if dense:
            gradients = [one.gradient for one in dense]
            plan = self._plan_of(rule, dense, transforms)
            plan.clock = clock
            factor = self._scaling.factor
            is_taken = transforms.run(
                plan, gradients, self._values, factor, update_rows
            )
        else:
            plan, is_taken = None, True
            self._run_rows(clock, update_rows)
        if decayed:
            self._put_back(decayed, held)
        self._note_rows(pairs)
        if sparse and is_taken:
            self._remember_rows(rule, pairs, updates, plan)
        return is_taken

    def _repeat(
        self, rule: Rule, gradients: Sequence[Any], transforms: Transforms
    ) -> bool | None:
        """Take a step of a known kind: whether it was taken; None if it cannot be."""
        plan, replay = self._plan, self._replay
        if replay is not None:
            if has_constraints() or not replay.is_current(rule, plan):
                return None
            return replay.run(gradients, self._values, transforms)
        if plan and rule is self._plan_rule and plan.is_in_place():
            return transforms.run(plan, gradients, self._values, self._scaling.factor)
        return None

    def _remember_rows(
        self,
        rule: Rule,
        pairs: Pairs,
        updates: Sequence[RowUpdate | None],
        plan: Plan | None,
    ) -> None:
        """Make a replay of a step, once a second one has had the same variables."""
        variables = tuple(id(variable) for _, variable in pairs)
        is_second, self._rows_seen = variables == self._rows_seen, variables
        rows = [update for update in updates if update is not None]
        if is_second and SparseReplay.can_repeat(pairs, updates):
            entries = [self._entries[i] for i in variables]
            self._replay = SparseReplay(rule, pairs, entries, rows, plan)

    def _plan_of(
        self, rule: Rule, dense: Sequence[Located], transforms: Transforms
    ) -> Plan:
        """The plan of these components, made anew if the present one does not fit."""
        components = [component for _, component, _ in dense]
        grads = [grad for _, _, grad in dense]
        plan = self._plan
        if (
            plan is None
            or rule is not self._plan_rule
            or not Plan.are_dense(grads)
            or not plan.fits(components, grads)
        ):
            members = [self._member(rule, entry, c) for entry, c, _ in dense]
            plan = Plan(self._name, members, grads, owns_rows=transforms.owns_rows)
            self._plan, self._plan_rule = plan, rule
        return plan

    def _locate(self, extended: Any, pairs: Pairs) -> list[Located]:
        """Local components of the variables, and their gradients beside them."""
        located: list[Located] = []
        for grad, variable in pairs:
            entry = self._entries[id(variable)]

            def take(component: Any, moved: Any, entry: Entry = entry) -> None:
                handle = handle_of(component)
                if handle is not entry.variable:
                    self._shards[id(handle)] = entry
                located.append(Located(entry, handle, moved))

            with extended.colocate_vars_with(variable):
                extended.update(variable, take, args=(grad,), group=False)
        return located

    def _constrain(self, variables: Sequence[torch.Tensor]) -> bool:
        """Apply the constraints of these variables; say whether there were any."""
        if not has_constraints():
            return False
        has_any = False
        for variable in map(as_variable, variables):
            if variable.constraint is not None:
                old = variable.value().detach()
                variable.assign(self._where_applied(variable.constraint(old), old))
                has_any = True
        return has_any
