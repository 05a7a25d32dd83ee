"""Stochastic rounding: which variables and slots take part, and by which numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from typing_extensions import override

from thalweg.optimizers.averages import Averages
from thalweg.optimizers.slots import Entry
from thalweg.state import handle_of, name_of
from thalweg.step import LOW_PRECISION_COPY, Rounding
from thalweg.step.rounding import check_roundable, labels_of, rounding_of

__all__ = ["StochasticRounding"]


class StochasticRounding(Averages):
    """The part of `Optimizer` that says how bfloat16 is rounded."""

    _labels: dict[int, str]

    @override
    def _create_all_weights(self, var_list: Sequence[torch.Tensor]) -> None:
        if self._settings.stochastic_rounding:
            for variable in var_list:
                self._check_rounding(handle_of(variable))
        super()._create_all_weights(var_list)

    def _check_rounding(self, variable: torch.Tensor) -> None:
        """Refuse what cannot be rounded so, before anything is made for it."""
        policy = self._settings
        dtypes = {
            name: policy.slot_dtype(name, slot.dtype, variable.dtype)
            for name, slot in self.active_slots().items()
            if name != LOW_PRECISION_COPY
        }
        check_roundable(type(self).__name__, variable, dtypes)

    def _rounding_of(self, entry: Entry) -> Rounding | None:
        """What a variable is rounded by, if that is left to chance."""
        policy = self._settings
        if not policy.stochastic_rounding:
            return None
        names = [name for name in self.active_slots() if name != LOW_PRECISION_COPY]
        slots = [entry.slots[name] for name in names]
        label = self._label_of(entry)
        return rounding_of(policy.rounding_seed, label, entry.variable, slots)

    def _label_of(self, entry: Entry) -> str:
        """The variable's name, told apart from earlier ones of the same name."""
        known, place = self._labels, id(entry.variable)
        if place not in known:
            variables = [other.variable for other in self._entries.values()]
            labels = labels_of(name_of(variable, "") for variable in variables)
            for variable, label in zip(variables, labels, strict=True):
                known.setdefault(id(variable), label)
        return known.get(place, "")
