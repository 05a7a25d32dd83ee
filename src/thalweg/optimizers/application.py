"""How an optimizer updates one variable: its rule, its numbers, its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from typing_extensions import override

from thalweg.compiler import Rule
from thalweg.distribute import is_distributed, local_tensor
from thalweg.distribute.shards import whole_of
from thalweg.errors import message
from thalweg.optimizers.absent_slots import without_slots
from thalweg.optimizers.averages import FOLLOWING
from thalweg.optimizers.declared import checked_states
from thalweg.optimizers.rounding import StochasticRounding
from thalweg.optimizers.slots import Entry
from thalweg.rules import decoupled_weight_decay, scatter_update
from thalweg.state import IndexedSlices, Variable, handle_of
from thalweg.step import (
    EMA,
    EMA_MOMENTUM,
    STEP,
    WEIGHT_DECAY,
    Member,
    Plan,
    RowMode,
    RowUpdate,
    bind_rule,
    launch_dense,
    launch_row_updates,
    launch_rows,
)
from thalweg.step.compose import ScalarView
from thalweg.step.device_step import clock_in_force, numbers_of_rest
from thalweg.step.row_updates import as_added

__all__ = ["RuleApplication"]

KerasSparse = Literal["rows", "sequence", "exact", "decay"]
"""Only touched rows, duplicates summed or one by one; the dense update with zero rows;
or that for the slots, while only touched rows of the variable move."""


_DECAY = Rule.of(decoupled_weight_decay)
_DECAY_NUMBERS = {"lr": "learning_rate", "weight_decay": WEIGHT_DECAY}


class RuleApplication(StochasticRounding):
    """The part of `Optimizer` that binds a rule to hyperparameters and slots.

    Attributes:
        update: The rule: a static method, or a function of `thalweg.rules`.
        keras_sparse: What ``sparse_update="keras"`` means for this class.
    """

    update: Callable[..., Any] | None = None
    keras_sparse: ClassVar[KerasSparse] = "rows"
    _states: dict[str, Variable]
    _states_are_checked: bool = False
    _values: Mapping[str, np.ndarray]
    _bound: dict[Any, Rule]

    def rule(self) -> Callable[..., Any]:
        """The function that updates a variable; override it to choose one by flag."""
        if self.update is None:
            raise NotImplementedError(
                f"{type(self).__name__} declares no `update`, and does not override "
                "`_resource_apply_dense` and `_resource_apply_sparse`. Write one."
            )
        return self.update

    def scalars(self, step: Any) -> Mapping[str, Any]:
        """The rule's scalars by name; traced once, and part of the kernel.

        ``self`` has the hyperparameters as traced numbers and the flags as bools. By
        default a scalar is the hyperparameter of its name.

        Args:
            step: Number of this step, counted from 1.

        Returns:
            At least one number for each scalar of the rule.
        """
        names = (*self._hypers_declared, *self._states_declared)
        return {**{n: getattr(self, n) for n in names}, STEP: step}

    def rule_flags(self) -> dict[str, bool]:
        """The rule's flags by name; by default the flags declared of that name."""
        return {name: bool(getattr(self, name)) for name in self._rule().flags}

    def shape_flags(self, shape: torch.Size) -> dict[str, bool]:
        """Flags of the rule that follow from a variable's shape; by default none.

        Args:
            shape: Shape of the variable.

        Returns:
            Flags by name; each combination is another kernel.
        """
        del shape
        return {}

    # -- states ---------------------------------------------------------------

    def next_states(self, step: Any) -> Mapping[str, Any]:
        """The declared states after a step; those that are not named stay.

        ``self`` has the hyperparameters and the states as numbers. Before the first
        step it is called once to see whether names and values are right.

        Args:
            step: Number of the step that was taken, counted from 1.

        Returns:
            New values by name.
        """
        del step
        return {}

    def state_variables(self) -> dict[str, Variable]:
        """The variables of the declared states by name; they are made when missing."""
        for name, state in self._states_declared.items():
            if name not in self._states:
                _ = self.iterations  # comes first among the weights
                first = {"initializer": state.initial, "dtype": torch.float64}
                with torch.device("cpu"):
                    state = self.add_weight(name, **first, trainable=False)
                self._states[name] = state
                self._weights.append(self._states[name])
        return self._states

    @override
    def _trackable_children(self) -> Iterable[tuple[str, object]]:
        # By its own name, so that a checkpoint finds it in a new optimizer, too.
        yield from self.state_variables().items()
        yield from super()._trackable_children()

    @override
    def _create_all_weights(self, var_list: Sequence[torch.Tensor]) -> None:
        self.state_variables()
        super()._create_all_weights(var_list)

    @override
    def values_in_force(self) -> dict[str, np.ndarray]:
        values = super().values_in_force()
        if not self._states:
            return values
        states = {
            n: np.full(len(self._table), float(s)) for n, s in self._states.items()
        }
        return {**values, **states}

    def _advance_states(self) -> None:
        """Give the states the values that follow the step just taken."""
        for name, value in self._states_to_come().items():
            self._states[name].fill_(value)

    def _check_states(self) -> None:
        """Refuse what `next_states` gives, once, before anything is written."""
        if self._states and self._values and not self._states_are_checked:
            self._states_to_come()
            self._states_are_checked = True

    def _states_to_come(self) -> dict[str, Any]:
        if not self._states:
            return {}
        numbers = self._numbers(0)
        view: Any = ScalarView(type(self), {**self._flags, **numbers})
        return checked_states(type(self), view.next_states(numbers[STEP]))

    # -- binding --------------------------------------------------------------

    def _rule(self) -> Rule:
        return Rule.of(self.rule(), self._flags_declared)

    @property
    def _has_decay(self) -> bool:
        return WEIGHT_DECAY in self._hyper or WEIGHT_DECAY in self._table.names

    def _bound_rule(self, columns: tuple[str, ...] = ()) -> Rule:
        """The rule with hyperparameters as its scalars, and all that goes with it.

        Args:
            columns: Scalars of gradient transforms that go in front of it.
        """
        extras = (
            *columns,
            *((WEIGHT_DECAY,) if self._has_decay else ()),
            *((EMA_MOMENTUM,) if self.use_ema else ()),
        )
        rule_flags = tuple(self.rule_flags().items())
        asked = map(bool, map(getattr, repeat(self), self._slot_conditions))
        key = (self.rule(), *self._flags.values(), *asked, rule_flags, extras)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = self._bind(rule_flags, extras)
        self._check_states()
        return bound

    def _bind(
        self, rule_flags: tuple[tuple[str, bool], ...], extras: tuple[str, ...]
    ) -> Rule:
        names = (*self._hypers_declared, *self._states_declared, *extras)
        rule, slots = self._rule(), self.active_slots()
        absent = tuple(name not in slots for name in self._slots_declared)
        if any(absent) and len(absent) == len(rule.slots):
            rule = without_slots(rule, absent)
        flags = tuple(self._flags.items())
        bound = bind_rule(
            *(rule, type(self), tuple(dict.fromkeys(names)), flags, rule_flags),
            has_copy=self._has_copies,
        )
        if len(slots) != len(bound.slots):
            raise TypeError(
                message(
                    f"{type(self).__name__}: rule {rule.name}",
                    f"{len(bound.slots)} slots {list(bound.slots)}",
                    f"{len(slots)} {list(slots)}",
                    "Declare a tw.Slot for each.",
                )
            )
        return bound

    def _member(self, rule: Rule, entry: Entry, var: torch.Tensor) -> Member:
        """A variable, or a shard of it, with its slots, as a step takes it."""
        slots = self.active_slots()
        tensors = (var, *(local_tensor(entry.slots[name]) for name in slots))
        layouts = tuple(slot.shape for slot in slots.values())
        if var.ndim < 2:
            # A row of a vector is an element.
            layouts = tuple("like" if x == "row" else x for x in layouts)
        if all(layout == "like" for layout in layouts):
            layouts = ()
        whole = whole_of(entry.variable)
        shape_flags = self.shape_flags(var.shape)
        if shape_flags:
            flags = {**self.rule_flags(), **shape_flags}
            rule = self._bind(tuple(flags.items()), rule.scalars[:-1])
        return Member(
            *(rule, tensors, layouts, entry.setting),
            whole=whole,
            rounding=self._rounding_of(entry),
        )

    def _check_cuts(self, parts: Iterable[tuple[Entry, torch.Tensor]]) -> None:
        """Refuse shards that hold parts of rows the rule reads, before a write.

        Args:
            parts: What is kept for a variable, and the part of it that lies here.
        """
        for entry, component in parts:
            if is_distributed(entry.variable):
                self._member(self._bound_rule(), entry, component).check_cut()

    def _numbers(self, setting: int) -> dict[str, float]:
        values = numbers_of_rest(self._values)
        return {name: float(column[setting]) for name, column in values.items()}

    # -- the Keras 2 hooks, which a rule serves -------------------------------

    def _resource_apply_dense(
        self, grad: torch.Tensor, var: Any, apply_state: Any = None
    ) -> Any:
        """Update a variable with a dense gradient; override it to do so by hand.

        Args:
            grad: Gradient, of the variable's shape.
            var: The variable, with `handle`, `assign` and the like.
            apply_state: What `_prepare_local` made of the hyperparameters.
        """
        del apply_state
        entry = self._built_entry(var)
        entry.rows = None
        member = self._member(self._bound_rule(), entry, handle_of(var))
        self._apply_member(member, grad)

    def _apply_member(self, member: Member, gradient: torch.Tensor) -> None:
        """Update one variable, or a shard of it, with a dense gradient."""
        clock = clock_in_force()
        if clock is not None and not clock.allows_rest():
            return
        joins_totals = member.whole is not None and member.reduces_whole
        if joins_totals or member.rounded:
            plan = Plan(self._name, [member], [gradient])
            plan.load([gradient], numbers_of_rest(self._values))
            plan.run()
            return
        member.check_cut()
        numbers, tensors = self._numbers(member.setting), (*member.tensors, gradient)
        launch_dense(member.rule, {}, tensors, numbers, member.layouts)

    def _apply_slices(self, slices: IndexedSlices, var: Any) -> None:
        """Update the rows of a variable by its rule."""
        update = self._row_update(slices, handle_of(var))
        if update is not None:
            launch_row_updates([update], self._values)

    def _row_update(self, slices: IndexedSlices, var: torch.Tensor) -> RowUpdate | None:
        """The update of touched rows; one that reads all rows is made at once."""
        entry = self._built_entry(var)
        member = self._member(self._bound_rule(), entry, var)
        mode = self._row_mode(member)
        if mode == "decay":
            return self._apply_and_decay(slices, member)
        if mode == "exact":
            return self._apply_whole(slices, member)
        entry.rows = mode, slices.values.dtype
        return RowUpdate(member, slices, mode)

    def _row_mode(self, member: Member) -> RowMode | Literal["exact", "decay"]:
        """How a sparse gradient of this variable acts."""
        policy = self._settings.sparse_update
        mode = self.keras_sparse if policy == "keras" else policy
        if mode == "decay":
            return "decay"
        if mode == "exact" or member.reduces_whole:
            return "exact"
        # Decay and average go with the rule, and are due once for a row.
        adds = mode != "sequence" or self._has_decay or self.use_ema
        return "sum" if adds else "sequence"

    def _apply_whole(self, slices: IndexedSlices, member: Member) -> None:
        """The dense update with zero rows where there is no gradient."""
        wide, shape = as_added(slices, member.var), tuple(member.var.shape)
        whole = IndexedSlices(wide.values, wide.indices, shape).to_dense()
        self._apply_member(member, whole)

    def _apply_and_decay(self, slices: IndexedSlices, member: Member) -> None:
        """The dense update of all slots, of which the touched rows move."""
        moved = member.var.detach().clone()
        tensors = (moved, *member.tensors[1:])
        entry = self._built_entry(member.var)
        kept = entry.slots[EMA].detach().clone() if self.use_ema else None
        self._apply_whole(slices, replace(member, tensors=tensors))
        touched = torch.unique(slices.indices)
        rows = IndexedSlices(moved[touched.long()], touched)
        update = Rule.of(scatter_update)
        launch_rows(update, {}, [member.var], rows, {}, "sequence")
        if kept is not None:
            entry.slots[EMA].detach().copy_(kept)
        if self.use_ema:
            numbers = {"momentum": self._numbers(member.setting)[EMA_MOMENTUM]}
            average = local_tensor(entry.slots[EMA])
            launch_dense(FOLLOWING, {}, [average, member.var.detach()], numbers)
        self._refresh_copies([entry.variable])

    def _decay_weights(self, var: Any, grad: Any) -> None:
        """Decoupled weight decay for a class that applies gradients by hand."""
        numbers = self._numbers(self._built_entry(var).setting)
        if not numbers.get(WEIGHT_DECAY):
            return
        own = {n: numbers.get(of, 1.0) for n, of in _DECAY_NUMBERS.items()}
        handle = handle_of(var)
        if isinstance(grad, IndexedSlices):
            launch_rows(_DECAY, {}, [handle], grad, own, "sum")
        else:
            launch_dense(_DECAY, {}, [handle, grad], own)

    def _decay_entries(
        self, entries: Sequence[Entry], gradients: Sequence[torch.Tensor]
    ) -> None:
        """The same for many variables with dense gradients, in one launch."""
        rates, ones = self._values[WEIGHT_DECAY], np.ones(len(self._table))
        pairs = zip(entries, gradients, strict=True)
        chosen = [(e, grad) for e, grad in pairs if rates[e.setting]]
        written = [e.variable for e, _ in chosen]
        given = written, [grad for _, grad in chosen], [e.setting for e, _ in chosen]
        own = {n: self._values.get(of, ones) for n, of in _DECAY_NUMBERS.items()}
        self._pass_of(_DECAY)(*given, own)
