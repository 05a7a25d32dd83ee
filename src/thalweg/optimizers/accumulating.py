"""The part of `Optimizer` that gathers the gradients of several micro-steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, dataclass_transform

import torch
from typing_extensions import override

from thalweg.distribute import local_tensor
from thalweg.distribute.wrapped import reduced_elsewhere
from thalweg.errors import describe, message
from thalweg.optimizers.accumulation import ACCUMULATOR, PENDING, Sums
from thalweg.optimizers.applying import Applying
from thalweg.optimizers.declarations import Flag, Hyper
from thalweg.optimizers.initial import new_slot
from thalweg.optimizers.pairs import Pairs, check_pairs, filter_none, take_pairs
from thalweg.state import handle_of, name_of
from thalweg.step.device_clock import refuse_capture

__all__ = ["Accumulating"]

_POSITION = "gradient_accumulation_position"


# Fields begin below this class: annotations above it are no constructor arguments.
@dataclass_transform(field_specifiers=(Hyper, Flag))
class Accumulating(Applying):
    """The part of `Optimizer` that serves ``gradient_accumulation_steps``.

    Of the N calls of `apply_gradients` that make a cycle, N - 1 only add to sums, and
    move averages on. The last one hands the mean on, which then is summed over
    replicas, clipped and applied like the gradient of a step.
    """

    pending_slots = PENDING
    """Slots that exist in the midst of a cycle only; a restore replaces all of them."""

    _sums: Sums | None = None
    _warned: set[tuple[str, ...]]

    def _construct_accumulation(self) -> None:
        steps = self._settings.gradient_accumulation_steps
        if steps is None:
            return
        position = self.add_weight(_POSITION, dtype=torch.int64, trainable=False)
        self._sums = Sums(self._name, steps, position)

    @property
    def gradient_accumulation_steps(self) -> int | None:
        """How many gradients are applied together; None: each by itself."""
        return self._settings.gradient_accumulation_steps

    @property
    def is_in_cycle(self) -> bool:
        """Whether gradients wait for others."""
        return self._sums is not None and self._sums.count() > 0

    # -- a micro-step ---------------------------------------------------------

    def _accumulate(self, pairs: list[Any], *, joins: bool) -> Pairs | None:
        """Add gradients to those that wait.

        Args:
            pairs: What `apply_gradients` was given.
            joins: Whether it sums over replicas.

        Returns:
            The mean gradients if a cycle is complete, else None.
        """
        sums: Any = self._sums
        self._refuse_in_scope("a step")
        refuse_capture(self._name, "gradient accumulation")
        listed = None
        if not sums.add_known(pairs, self._scaling.factor):
            checked = self._checked_to_wait(pairs, joins=joins)
            if not checked:
                return None
            given = [pair for pair in checked if pair[0] is not None]
            entries = [(self._entry(v), g) for g, v in given]
            sums.add(entries, self._scaling.factor)
            listed = [variable for _, variable in checked]
        self.last_step_applied = False
        if sums.count() < sums.steps:
            self._average_meanwhile()
            return None
        # What was added is unscaled already.
        self._scaling = replace(self._scaling, factor=1.0, unscales=False)
        return self._as_overrides_take_them(sums.means(listed))

    def _average_meanwhile(self) -> None:
        """Move averages on, as Keras 3 does in every call of a cycle."""
        if not self.use_ema:
            return
        self._values = self.values_in_force()
        entries = list(self._entries.values())
        for entry in entries:
            var = local_tensor(entry.variable).detach()
            self._average(entry, var, self._numbers(entry.setting))
        variables = [entry.variable for entry in entries]
        if self._overwrite_by_averages(variables):
            self._refresh_copies(variables)

    def _checked_to_wait(self, pairs: list[Any], *, joins: bool) -> Pairs:
        """Check pairs as far as a step on their mean would, and make slots."""
        checked = take_pairs(pairs)
        given = [pair for pair in checked if pair[0] is not None]
        others_may = joins and self._extended().num_replicas > 1
        if not given and not others_may:
            return filter_none(checked, self._warned)  # says that there is none
        check_pairs(given)
        self._check_constraints(given)
        self._check_shards(given)
        self._create_all_weights([variable for _, variable in checked])
        return checked

    def _as_overrides_take_them(self, means: Pairs) -> Pairs:
        """Means of the variables' dtype for classes that update by hand."""
        if not self._applies_by_hand:
            return means
        return [
            (g.to(v.dtype) if isinstance(g, torch.Tensor) else g, v) for g, v in means
        ]

    # -- slots ----------------------------------------------------------------

    @override
    def _create_all_weights(self, var_list: Sequence[torch.Tensor]) -> None:
        super()._create_all_weights(var_list)
        if self._sums is not None:
            for variable in var_list:
                self._add_accumulator(variable)

    def _add_accumulator(self, variable: torch.Tensor) -> None:
        """Make the sum of a variable, beside the weights of applied steps."""
        entry = self._entry(variable)
        if ACCUMULATOR in entry.slots:
            return
        if ACCUMULATOR not in self._slot_names:
            self._slot_names.append(ACCUMULATOR)
        handle = entry.variable
        dtype = self._settings.slot_dtype(ACCUMULATOR, None, handle.dtype)
        name = f"{name_of(handle, 'Variable')}/{ACCUMULATOR}"
        shape = tuple(handle.shape)
        entry.slots[ACCUMULATOR] = new_slot(handle, name, shape, dtype, "zeros")

    @override
    def _trackable_children(self) -> Iterable[tuple[str, object]]:
        if self._sums is not None:
            yield _POSITION, self._sums.position
        yield from super()._trackable_children()

    @override
    def slot_variables(self) -> Iterator[tuple[torch.Tensor, str, Any]]:
        for variable, name, slot in super().slot_variables():
            if name != ACCUMULATOR:
                yield variable, name, slot
        if self._sums is not None:
            waiting = list(self._sums.slots())
            self._refuse_own_sums([variable for variable, _, _ in waiting])
            yield from waiting

    def _refuse_own_sums(self, variables: Sequence[torch.Tensor]) -> None:
        """Refuse sums that differ from rank to rank: a checkpoint has room for one."""
        if not variables or self._extended().num_replicas == 1:
            return
        if not all(reduced_elsewhere(variables)):
            raise RuntimeError(
                message(
                    f"{self._name}: saving or restoring with several replicas",
                    "the end of a cycle of gradient accumulation",
                    f"{self._sums and self._sums.count()} gradients that wait, which "
                    "each replica has for itself",
                    "Save when `iterations` has just been increased.",
                )
            )

    @override
    def restore_slot_variable(
        self, slot_name: str, variable: torch.Tensor, value: torch.Tensor
    ) -> None:
        if slot_name not in PENDING or self._sums is None:
            super().restore_slot_variable(slot_name, variable, value)
            return
        handle = handle_of(variable)
        self._add_accumulator(handle)
        entry = self._entry(handle)
        if slot_name != ACCUMULATOR:
            self._sums.restore_rows(entry, slot_name, value)
            return
        slot = entry.slots[ACCUMULATOR]
        if (slot.shape, slot.dtype) != (value.shape, value.dtype):
            raise ValueError(
                message(
                    f"{self._name}: {slot_name!r} of {name_of(variable, 'a variable')}",
                    describe(slot),
                    describe(value),
                    "Restore into an optimizer of the same variables and slot_dtypes.",
                )
            )
        with torch.no_grad():
            slot.copy_(value)
        self._sums.restore_dense(entry)
