"""Updating variables one at a time, for overrides and strategies that ask for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import repeat
from typing import Any

import torch

from thalweg.distribute import is_distributed, local_tensor
from thalweg.errors import message
from thalweg.optimizers.gradient_hooks import GradientHooks
from thalweg.optimizers.keras2 import Keras2Protocol
from thalweg.optimizers.pairs import Pairs, check_pairs
from thalweg.optimizers.slots import Entry
from thalweg.state import (
    IndexedSlices,
    Variable,
    as_variable,
    constrained,
    handle_of,
)
from thalweg.step import Batch, Plan, Recognition, inside_step
from thalweg.step.bulk import Addresses, Apart, Places
from thalweg.step.overlaps import extent

__all__ = ["Known", "OneByOne"]

Known = tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]
"""Gradients and variables that are like those of the step before."""


class _HandRecognition(Recognition):
    """Recognizes a step of a class that updates by hand, and keeps what it shows.

    Attributes:
        examples: A variable for each device and dtype.
        slots: The slots of each variable, by what an override sees of it.
    """

    def __init__(self, pairs: Pairs, entries: Mapping[int, Entry]) -> None:
        variables = [variable for _, variable in pairs]
        super().__init__(variables, [gradient for gradient, _ in pairs])
        kinds = {(v.device, v.dtype): v for v in variables}
        self.examples = list(kinds.values())
        self._slots = [entries[id(variable)].slots for variable in variables]
        self._look()

    def _look(self) -> None:
        self._views = list(map(as_variable, self.variables))
        pairs = zip(self.variables, self._views, strict=True)
        self._viewed = Places(v for v, view in pairs if view is not v)
        self.slots = dict(zip(self._views, self._slots, strict=True))

    def views(self) -> Sequence[Variable]:
        """The variables as an override sees them.

        All but the addresses of a recognized step is known to be as it was.
        """
        if not self._viewed.are_kept():
            self._look()
        return self._views


@cache
def _takes_state_third(hook: Callable[..., Any]) -> bool:
    """Whether an override takes ``apply_state`` behind gradient and variable."""
    parameters = list(inspect.signature(hook).parameters.values())
    third = parameters[3] if len(parameters) > 3 else None
    return (
        third is not None
        and third.name == "apply_state"
        and third.kind is third.POSITIONAL_OR_KEYWORD
    )


def _lie_apart(
    variables: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
) -> bool:
    """Whether no gradient lies in a variable, which is written before it is read."""
    addresses = Addresses(len(gradients))
    addresses.read(list(gradients))
    sizes = [stop - start for start, stop in map(extent, gradients)]
    return bool(Apart(addresses, sizes, map(extent, variables)))


class OneByOne(GradientHooks, Keras2Protocol):
    """The part of `Optimizer` that calls hooks for every variable in every step."""

    elementwise: bool = False
    """Whether an override of the Keras 2 kind may run on the shards of a variable."""
    batch_raw_ops: bool = False
    """Whether the raw ops that an override calls may be launched together.

    Only for a class that never reads what it has written in the same step.
    """

    _raw_batch: Batch
    _recognition: _HandRecognition | None

    def _apply_one_by_one(
        self, extended: Any, pairs: Pairs, known: Known | None
    ) -> None:
        if known is not None:
            self._apply_known(known)
            return
        check_pairs(pairs)
        self._check_constraints(pairs)
        self._check_shards(pairs)
        self._check_states()
        if not self._applies_by_hand:
            entries = (self._entries[id(variable)] for _, variable in pairs)
            self._check_cuts((e, local_tensor(e.variable)) for e in entries)
        self._recognition = self._recognition_of(extended, pairs)
        apply_state = self._prepare([variable for _, variable in pairs])
        with inside_step(self._raw_batch if self.batch_raw_ops else None):
            for grad, variable in pairs:
                with extended.colocate_vars_with(variable):
                    updater = self._updater_of(variable, apply_state)
                    extended.update(variable, updater, args=(grad,), group=False)

    def _recognition_of(self, extended: Any, pairs: Pairs) -> _HandRecognition | None:
        """What lets the next step call the override straight; None if it must not."""
        gradients = [gradient for gradient, _ in pairs]
        variables = [variable for _, variable in pairs]
        is_simple = (
            self._applies_by_hand
            and extended.has_default_update
            and Plan.can_fold(gradients)
            and all(v.is_cpu and not is_distributed(v) for v in variables)
        )
        return _HandRecognition(pairs, self._entries) if is_simple else None

    def _apply_known(self, known: Known) -> None:
        """Call the override for each variable of a step like the one before."""
        apply_state = self._prepare(self._examples_of(known))
        is_to_decay = self._has_decay and not self._decay_at_once(known)
        with inside_step(self._raw_batch if self.batch_raw_ops else None):
            if self._recognition is None or is_to_decay:
                for gradient, variable in zip(*known, strict=True):
                    entry = self._entries[id(variable)]
                    component = as_variable(variable)
                    self._apply_to_component(entry, component, gradient, apply_state)
            else:
                views = self._recognition.views()
                with self._slots_at_hand(self._recognition):
                    self._call_override(known[0], views, apply_state)
        if self._recognition is not None:
            self._recognition.gradients = None  # Their memory may be needed.

    def _decay_at_once(self, known: Known) -> bool:
        """Decay all variables before the first is updated; False if that shows."""
        gradients, variables = known
        if self._recognition is None or not _lie_apart(variables, gradients):
            return False
        entries = [self._entries[id(variable)] for variable in variables]
        self._decay_entries(entries, gradients)
        return True

    def _call_override(
        self, gradients: Sequence[Any], views: Sequence[Variable], apply_state: Any
    ) -> None:
        update = self._resource_apply_dense
        if not self._state_for("dense", apply_state):
            calls = map(update, gradients, views)
        elif _takes_state_third(type(self)._resource_apply_dense):
            calls = map(update, gradients, views, repeat(apply_state))
        else:
            pairs = zip(gradients, views, strict=True)
            calls = (update(g, v, apply_state=apply_state) for g, v in pairs)
        for _ in calls:
            pass

    @contextmanager
    def _slots_at_hand(self, known: _HandRecognition) -> Generator[None]:
        """Open a scope in which `get_slot` finds the slots of this step at once.

        An override asks for them of every variable; an attribute of the optimizer is
        found before the method of its class.
        """
        attributes, slots, look_up = vars(self), known.slots, self.get_slot

        def get_slot(var: torch.Tensor, slot_name: str) -> Any:
            try:
                return slots[var][slot_name]  # pyright: ignore[reportArgumentType]
            except (KeyError, TypeError):
                return look_up(var, slot_name)

        if type(self).get_slot is not OneByOne.get_slot or "get_slot" in attributes:
            yield
            return
        attributes.update(get_slot=get_slot, _slots_are_at_hand=True)
        try:
            yield
        finally:
            del attributes["get_slot"], attributes["_slots_are_at_hand"]

    def _examples_of(self, known: Known) -> Sequence[torch.Tensor]:
        """Variables of all devices and dtypes of a step like the one before."""
        is_overridden = type(self)._prepare is not Keras2Protocol._prepare
        if self._recognition is None or is_overridden:
            return known[1]
        return self._recognition.examples

    def _updater_of(
        self, variable: torch.Tensor, apply_state: Any
    ) -> Callable[..., Any]:
        """The function that updates the local components of one variable."""
        entry = self._entries[id(variable)]

        def update_var(component: Any, grad: Any) -> Any:
            return self._apply_to_component(entry, component, grad, apply_state)

        return update_var

    def _apply_to_component(
        self, entry: Entry, component: Any, grad: Any, apply_state: Any
    ) -> Any:
        handle = handle_of(component)
        if handle is not entry.variable:
            self._shards[id(handle)] = entry
        if self._applies_by_hand:
            self._decay_weights(component, grad)
        if isinstance(grad, IndexedSlices):
            return self._resource_apply_sparse_duplicate_indices(
                grad.values,
                component,
                grad.indices,
                **self._state_for("sparse", apply_state),
            )
        return self._resource_apply_dense(
            grad, component, **self._state_for("dense", apply_state)
        )

    # -- checks ---------------------------------------------------------------

    def _check_constraints(self, pairs: Pairs) -> None:
        if constrained(v for grad, v in pairs if isinstance(grad, IndexedSlices)):
            raise RuntimeError("Cannot use a constraint function on a sparse variable.")

    def _check_shards(self, pairs: Pairs) -> None:
        sharded = any(hasattr(variable, "placements") for _, variable in pairs)
        if sharded and self._applies_by_hand and not self.elementwise:
            raise TypeError(
                message(
                    type(self).__name__,
                    "`elementwise = True` on a class that updates sharded variables",
                    "a class that overrides `_resource_apply_dense` without it",
                    "Set it if the update of an element reads no other element.",
                )
            )
