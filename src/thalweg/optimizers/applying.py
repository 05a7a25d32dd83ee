"""From pairs to updates: by a plan that is replayed, or one variable at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from thalweg.compiler import Rule
from thalweg.compiler.triton_tables import is_capturing
from thalweg.gradients.loss_scale import NOT_SCALED
from thalweg.optimizers.gradient_hooks import GradientHooks
from thalweg.optimizers.known_numbers import KnownNumbers
from thalweg.optimizers.one_by_one import Known
from thalweg.optimizers.pairs import Pairs, check_pairs
from thalweg.optimizers.recognizing import Recognizing
from thalweg.optimizers.slots import Entry
from thalweg.optimizers.sparse_replay import SparseReplay
from thalweg.optimizers.step_count import has_counted
from thalweg.optimizers.whole_rows import HeldRows, Located
from thalweg.state import (
    IndexedSlices,
    Variable,
    constrained,
    handle_of,
    has_constraints,
)
from thalweg.step import (
    EMA,
    EMA_MOMENTUM,
    Plan,
    RowUpdate,
    Transforms,
    launch_row_updates,
)
from thalweg.step.captures import refuse_unprepared
from thalweg.step.tensors import check_overlap

__all__ = ["Applying"]

NO_TRANSFORMS = Transforms()


class Applying(Recognizing):
    """The part of `Optimizer` that writes.

    A class with a rule, under a strategy with the default ``update``, makes a plan in
    its first step and replays it while the same variables come back. Everything else
    is updated variable by variable.
    """

    _numbers_known: KnownNumbers | None = None

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
        """What follows the update: averages, constraints, states, the count."""
        if self._applies_by_hand and (self.use_ema or self._has_copies):
            self._follow([self._entries[id(variable)] for _, variable in pairs])
        if len(pairs) < len(self._entries) and self.use_ema:
            self._average_others({id(variable) for _, variable in pairs})
        overwrites = self._settings.ema_overwrite_frequency is not None
        if overwrites or self._states or has_constraints():
            variables, averaged = [v for _, v in pairs], self._averaged()
            is_overwritten = self._overwrite_by_averages(averaged)
            if self._constrain(variables) or is_overwritten:
                self._refresh_copies(averaged if is_overwritten else variables)
            self._advance_states()
        self._count_step()

    def _averaged(self) -> list[torch.Tensor]:
        """The variables that have an average, updated in this step or not."""
        return [e.variable for e in self._entries.values() if EMA in e.slots]

    def _average_others(self, taken: Collection[int]) -> None:
        """Let the averages of variables without a gradient follow them, as in Keras 3.

        Args:
            taken: The `id` of each variable that the step has updated.
        """
        entries = self._entries.values()
        others = [e for e in entries if EMA in e.slots and id(e.variable) not in taken]
        clock = self._clock
        if clock is None or not has_counted(clock):
            self._move_averages(others)
            return
        known, applies = clock.last_scalars.get(EMA_MOMENTUM), clock.was_applied
        self._move_averages(others, momentum=known, applies=applies)

    # -- what the step before has found ---------------------------------------

    @override
    def values_in_force(self) -> dict[str, np.ndarray]:
        numbers, hyper, table = self._numbers_known, self._hyper, self._table
        if numbers is None:
            numbers = self._numbers_known = KnownNumbers()
        if self._clocks or self._states or not numbers.holds_count(self.iterations):
            numbers.are_repeated = False
            return super().values_in_force()
        columns = numbers.columns(hyper, table)
        if columns is None:
            columns = super().values_in_force()
            numbers.remember(hyper, table, columns)
        return columns

    @override
    def _count_step(self) -> None:
        numbers = self._numbers_known
        if self._clocks or numbers is None or not numbers.count_step(self._iterations):
            super()._count_step()
        else:
            self.__dict__["_is_applied"] = True

    def _rule_in_force(self, columns: tuple[str, ...]) -> Rule:
        """The rule of this step, whose numbers `values_in_force` has just found."""
        numbers, flags = self._numbers_known, self._flags
        rule = None if numbers is None else numbers.rule(columns, flags)
        if rule is None:
            rule = self._bound_rule(columns)
            if numbers is not None and self._rule_follows_numbers:
                numbers.remember_rule(columns, flags, rule)
        return rule

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
        rule = self._rule_in_force(transforms.columns)
        if batch is None and self._replay is not None:
            batch = self._recognized(pairs)  # torch's sparse gradients are slices now
        if batch:
            applied = self._repeat(rule, batch[0], transforms)
            if applied is not None:
                return applied
        self._look_closely(pairs, is_known=batch is not None)
        return self._apply_anew(rule, pairs, self._locate(extended, pairs), transforms)

    @override
    def _create_all_weights(self, var_list: Sequence[torch.Tensor]) -> None:
        for device in {variable.device for variable in var_list}:
            if is_capturing(device):
                self._refuse_new_slots(device, var_list)
        super()._create_all_weights(var_list)

    def _refuse_new_slots(
        self, device: torch.device, var_list: Sequence[torch.Tensor]
    ) -> None:
        """Refuse to make slots in a capture, whose replays would clear them."""
        slots, known = tuple(self.active_slots()), self._entries
        entries = (known.get(id(handle_of(variable))) for variable in var_list)
        if any(entry is None or entry.built_for != slots for entry in entries):
            refuse_unprepared(f"a step of {self._name}", device)

    def _look_closely(self, pairs: Pairs, *, is_known: bool) -> None:
        """Check a step that cannot be repeated; what is known of the last one rests."""
        check_pairs(pairs)
        self._check_constraints(pairs)
        if is_known:  # flags may ask for other slots than in the step before
            self._create_all_weights([variable for _, variable in pairs])
        else:
            self._set_aside(self._earlier_steps())
        self._replay = None

    def _apply_anew(
        self,
        rule: Rule,
        pairs: Pairs,
        located: list[Located],
        transforms: Transforms,
    ) -> bool:
        """Plan a step and take it; False if it was left out."""
        clock = self._clock_of(located)
        located, decayed = self._with_whole_rows(located, clock)
        dense = [x for x in located if not isinstance(x.gradient, IndexedSlices)]
        sparse = [x for x in located if isinstance(x.gradient, IndexedSlices)]
        if dense and sparse:
            check_overlap(self._name, [one.component for one in located])
        updates: list[RowUpdate | None] = []
        held: list[HeldRows] = []

        def update_rows() -> None:
            held.extend(self._hold(decayed))
            updates.extend(self._row_update(slices, c) for _, c, slices in sparse)
            launch_row_updates([u for u in updates if u is not None], self._values)

        if dense:
            gradients = [one.gradient for one in dense]
            plan = self._plan_of(rule, dense, transforms)
            plan.clock = clock
            plan.write_beside(self._tensors_of(rule, sparse))
            numbers = self._values, self._scaling.factor
            is_taken = transforms.run(plan, gradients, *numbers, update_rows)
        else:
            plan, is_taken = None, True
            self._run_rows(clock, update_rows)
        if decayed:
            self._put_back(decayed, held)
        self._note_rows(pairs)
        if sparse and is_taken:
            self._remember_rows(rule, pairs, updates, plan)
        return is_taken

    def _tensors_of(self, rule: Rule, located: Sequence[Located]) -> list[torch.Tensor]:
        """The components and their slots: what an update of them writes."""
        return [
            tensor
            for entry, component, _ in located
            for tensor in self._member(rule, entry, component).tensors
        ]

    def _repeat(
        self, rule: Rule, gradients: Sequence[Any], transforms: Transforms
    ) -> bool | None:
        """Take a step of a known kind: whether it was taken; None if it cannot be."""
        plan, replay = self._plan, self._replay
        if replay is not None:
            if constrained(replay.variables) or not replay.is_current(rule, plan):
                return None
            return replay.run(gradients, self._values, transforms)
        if plan and self._serves(rule, transforms) and plan.is_in_place():
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
        is_second = self._earlier_steps().sees_again(variables)
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
        earlier, owns_rows = self._earlier_steps(), transforms.owns_rows
        plan, is_dense = None, Plan.are_dense(grads)
        if is_dense and self._plan and self._serves(rule, transforms):
            if self._plan.fits(components, grads):
                return self._plan
            if self._plan.is_in_place():
                earlier.keep(rule, self._plan)
        if is_dense:
            plan = earlier.take(rule, components, grads, owns_rows=owns_rows)
        if plan is None:
            members = [self._member(rule, entry, c) for entry, c, _ in dense]
            later = self._kernels_of_averages() if self.use_ema else ()
            plan = Plan(self._name, members, grads, owns_rows=owns_rows, later=later)
        self._plan, self._plan_rule = plan, rule
        return plan

    def _serves(self, rule: Rule, transforms: Transforms) -> bool:
        """Whether the plan is of this rule, with factors as these transforms need."""
        plan = self._plan
        return (
            plan is not None
            and rule is self._plan_rule
            and plan.owns_rows == transforms.owns_rows
        )

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
        found = constrained(variables)
        for variable in found:
            old, constraint = variable.value().detach(), variable.constraint
            if constraint is not None:
                variable.assign(self._where_applied(constraint(old), old))
        return bool(found)
