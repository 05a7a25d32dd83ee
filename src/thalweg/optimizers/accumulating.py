"""The part of `Optimizer` that gathers the gradients of several micro-steps."""

from __future__ import annotations

import copy
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import replace
from typing import Any, Self, dataclass_transform

import torch
from typing_extensions import override

from thalweg.distribute import world_size
from thalweg.distribute.wrapped import reduced_elsewhere
from thalweg.errors import message
from thalweg.optimizers.accumulation import (
    INDICES,
    PENDING,
    VALUES,
    Sums,
)
from thalweg.optimizers.applying import Applying
from thalweg.optimizers.declarations import ACCUMULATOR, Flag, Hyper
from thalweg.optimizers.initial import new_slot
from thalweg.optimizers.pairs import Pairs, check_pairs, filter_none, take_pairs
from thalweg.optimizers.rank_sums import (
    AlikeSum,
    Replicas,
    SavedSum,
    replicas_of,
)
from thalweg.state import handle_of, name_of
from thalweg.step import EMA, LOW_PRECISION_COPY
from thalweg.step.device_clock import refuse_capture

__all__ = ["Accumulating"]

_POSITION = "gradient_accumulation_position"
# What a shallow copy has for itself, though it shares what is in there.
_OWN = (
    *("_hyper", "_flags", "_clips", "_table", "_numbers_known", "_states"),
    *("_slot_names", "_weights", "_warned", "gradient_transformers"),
)


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
        with torch.device("cpu"):
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
        replicas = self._replicas()
        reduction = replicas.reduction if joins and replicas.number > 1 else ""
        if reduction and sums.is_as_restored and not sums.reduction:
            self._leave_to_first_rank()
        listed = None
        if not sums.add_known(pairs, self._scaling.factor):
            checked = self._checked_to_wait(pairs, joins=joins)
            if not checked:
                return None
            given = [pair for pair in checked if pair[0] is not None]
            entries = [(self._entry(v), g) for g, v in given]
            sums.add(entries, self._scaling.factor)
            listed = [variable for _, variable in checked]
            if reduction:
                sums.note(listed)
        sums.reduction = reduction
        self.last_step_applied = False
        if sums.count() < sums.steps:
            self._average_meanwhile()
            return None
        # What was added is unscaled already.
        self._scaling = replace(self._scaling, factor=1.0, unscales=False)
        return self._as_overrides_take_them(sums.means(listed, self._entries))

    def _replicas(self) -> Replicas:
        return replicas_of(self._extended(), self.gradient_aggregator)

    def _leave_to_first_rank(self) -> None:
        """Mend sums that were restored before it was known that each rank has some."""
        sums: Any = self._sums
        waiting = [AlikeSum.of(*one) for one in list(sums.slots())]
        self._take(waiting, self._alike(saved.variable for saved in waiting))

    def _average_meanwhile(self) -> None:
        """Move averages on, as Keras 3 does in every call of a cycle."""
        if not self.use_ema:
            return
        self._values = self.values_in_force()
        entries = list(self._entries.values())
        self._move_averages(entries)
        if self._settings.ema_overwrite_frequency != 1:
            return  # a cycle's calls count as one step, which its last one takes
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
            yield from self._sums.slots()

    @override
    def restore_slot_variable(
        self, slot_name: str, variable: torch.Tensor, value: torch.Tensor
    ) -> None:
        if slot_name not in PENDING or self._sums is None:
            super().restore_slot_variable(slot_name, variable, value)
            return
        handle = handle_of(variable)
        self._check_sum(handle, slot_name, value)
        self._restore_waiting(slot_name, handle, value)

    # -- copies ---------------------------------------------------------------

    def __copy__(self) -> Self:
        """A copy that shares variables, slots and the count of steps, and no more.

        Hyperparameters, options and the gradients that wait are its own; of
        `torch.optim` such a copy shares the learning rate, too.
        """
        copied: Any = type(self).__new__(type(self))
        state: Any = self.__getstate__()
        own = {name: copy.copy(state[name]) for name in _OWN if name in state}
        copied.__setstate__({**state, **own})
        entries = self._entries.values()
        shared = [entry.variable for entry in entries]
        for entry in entries:
            shared += [s for n, s in entry.slots.items() if n != ACCUMULATOR]
        memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
        tables = copy.deepcopy((copied._entries, self._sums), memo)
        copied.__dict__["_entries"], copied.__dict__["_sums"] = tables
        return copied

    # -- checkpoints ----------------------------------------------------------

    def pending_slots_of_rank(self) -> tuple[Collection[int], Mapping[str, Any]]:
        """Whose pending slots are not those of the other ranks.

        Returns:
            The `id` of each such variable, and what a reader has to know of the parts
            that all ranks save: ``ranks``, their number, and ``reduction``, what their
            means become: ``"sum"``, ``"mean"``, or ``"other"``.
        """
        sums = self._sums
        if sums is None or not sums.reduction or world_size() == 1:
            return (), {}
        waiting = {id(variable): variable for variable, _, _ in sums.slots()}
        own = waiting.keys() - self._alike(waiting.values())
        return own, {"ranks": world_size(), "reduction": sums.reduction}

    def _alike(self, variables: Iterable[torch.Tensor]) -> set[int]:
        """Those whose gradients a wrapper of the model reduces, by `id`."""
        handles = list(map(handle_of, variables))
        if world_size() == 1 or not handles:
            return set()
        found = zip(handles, reduced_elsewhere(handles), strict=True)
        return {id(handle) for handle, is_alike in found if is_alike}

    def lacking_option(self, slot_name: str, saved: Mapping[str, Any]) -> str:
        """The option without which there is no such slot; "" if there may be one.

        Args:
            slot_name: Name of a saved slot.
            saved: Hyperparameters that are going to be restored.
        """
        if slot_name in PENDING:
            return "" if self._sums is not None else "gradient_accumulation_steps"
        declared = self._slots_declared.get(slot_name)
        if declared is not None and declared.when in self._flags:
            is_there = saved.get(declared.when, self._flags[declared.when])
            return "" if is_there else str(declared.when)
        followers = {EMA: self.use_ema, LOW_PRECISION_COPY: self._has_copies}
        if slot_name not in followers or slot_name in self._slot_names:
            return ""
        if followers[slot_name] or self._applies_by_hand:
            return ""
        return "use_ema" if slot_name == EMA else slot_name

    def check_pending(
        self,
        waiting: Sequence[SavedSum],
        saved_value: Callable[[torch.Tensor], torch.Tensor | None],
    ) -> None:
        """Refuse what was saved in the midst of a cycle and does not fit here.

        Args:
            waiting: Saved slots of `pending_slots`.
            saved_value: Gives what a variable is going to be; None if it stays.

        Raises:
            ValueError: If a count is negative, the cycle that was saved is over here
                already, a slot is of another shape or dtype, or nobody knows what to
                make of it.
        """
        self._check_count("iterations", saved_value(self.iterations))
        sums = self._sums
        if sums is None:
            return
        position = saved_value(sums.position)
        self._check_count(_POSITION, position)
        if position is not None and int(position) >= sums.steps:
            raise ValueError(
                message(
                    f"{self._name}: gradient_accumulation_steps",
                    f"more than the {int(position)} gradients that were saved in the "
                    "midst of a cycle",
                    str(sums.steps),
                    "Resume with the number of steps that it had, or a larger one.",
                )
            )
        for saved in waiting:
            for part in saved.parts.values():
                self._check_sum(handle_of(saved.variable), saved.slot, part)
        replicas = self._replicas()
        strange = [saved for saved in waiting if replicas.may_refuse(saved)]
        alike = self._alike(saved.variable for saved in strange)
        for saved in strange:
            is_alike = id(handle_of(saved.variable)) in alike
            replicas.refuse(self._name, saved, is_alike=is_alike)

    def _check_count(self, name: str, saved: torch.Tensor | None) -> None:
        if saved is not None and int(saved) < 0:
            where, expected = f"{self._name}: {name}", "a count from 0 on"
            action = "Restore another checkpoint."
            raise ValueError(message(where, expected, str(int(saved)), action))

    def _check_sum(self, handle: torch.Tensor, slot_name: str, part: Any) -> None:
        """Refuse a saved slot, or a rank's part of one, of another shape or dtype."""
        slot = self._entry(handle).slots.get(ACCUMULATOR)
        dtype = self._settings.slot_dtype(ACCUMULATOR, None, handle.dtype)
        dtype = dtype if slot is None else slot.dtype
        shape, rows = tuple(handle.shape), tuple(part.shape[:1]) or (1,)
        if slot_name != ACCUMULATOR:
            shape = (*rows, *shape[1:]) if slot_name == VALUES else rows
        if slot_name == INDICES:
            dtype = torch.int32 if part.dtype == torch.int32 else torch.int64
        if (shape, dtype) != (tuple(part.shape), part.dtype):
            raise ValueError(
                message(
                    f"{self._name}: {slot_name!r} of {name_of(handle, 'a variable')}",
                    f"{dtype} of shape {shape}",
                    f"{part.dtype} of shape {tuple(part.shape)}",
                    "Restore into an optimizer of the same variables and slot_dtypes.",
                )
            )

    def restore_pending(
        self,
        waiting: Sequence[SavedSum],
        saved_value: Callable[[torch.Tensor], torch.Tensor | None],
    ) -> None:
        """Take what was saved in the midst of a cycle, as far as it is this rank's.

        Args:
            waiting: As for `check_pending`, which has let it pass.
            saved_value: The same.
        """
        sums = self._sums
        if sums is None:
            return
        if saved_value(sums.position) is not None:
            sums.is_as_restored, sums.reduction = True, ""
        if not sums.is_as_restored:
            return  # for a variable that was made when their cycle was over
        self._take(waiting, self._alike(saved.variable for saved in waiting))

    def _take(self, waiting: Sequence[SavedSum], alike: Collection[int]) -> None:
        """Take this rank's share of sums; `alike`: who has none of its own."""
        sums: Any = self._sums
        replicas = self._replicas()
        for saved in waiting:
            handle = handle_of(saved.variable)
            is_alike = id(handle) in alike
            replicas.refuse(self._name, saved, is_alike=is_alike)
            reduction = replicas.reduction_after(saved, is_alike=is_alike)
            sums.reduction = reduction or sums.reduction
            if saved.ranks > 1:
                sums.note([handle], is_restored=True)
            value = replicas.share_of(saved, is_alike=is_alike)
            if value is not None:
                self._restore_waiting(saved.slot, handle, value)

    def _restore_waiting(
        self, slot_name: str, handle: torch.Tensor, value: torch.Tensor
    ) -> None:
        sums: Any = self._sums
        self._add_accumulator(handle)
        entry = self._entry(handle)
        if slot_name != ACCUMULATOR:
            sums.restore_rows(entry, slot_name, value)
            return
        with torch.no_grad():
            entry.slots[ACCUMULATOR].copy_(value)
        sums.restore_dense(entry)
