"""A step with sparse gradients that is repeated while the same variables come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import numpy as np
import torch

from thalweg.compiler import Rule
from thalweg.optimizers.pairs import Pairs
from thalweg.optimizers.slots import Entry
from thalweg.state import IndexedSlices, as_gradient
from thalweg.step import Plan, RowUpdate, Transforms
from thalweg.step.bulk import Holders
from thalweg.step.rows import RowPlan

__all__ = ["SparseReplay"]


class SparseReplay:
    """What a step with sparse gradients, perhaps beside dense ones, has found out.

    Repeating it skips what depends on the variables only. Each time are checked: the
    variables, slots and settings by identity, where they lie, the kind and shape of
    every gradient, and every index.

    Attributes:
        variables: All variables of the step, in the order of the pairs.
        plan: The plan of the dense ones; None without any.
        rule: The rule.
        written: The tables and their slots.

    Args:
        rule: The rule of the step.
        pairs: Its gradients and variables.
        entries: What the optimizer keeps for the variables, in their order.
        updates: The updates of those with a sparse gradient.
        plan: The plan of the others.
    """

    def __init__(
        self,
        rule: Rule,
        pairs: Pairs,
        entries: Sequence[Entry],
        updates: Sequence[RowUpdate],
        plan: Plan | None,
    ) -> None:
        self.variables: list[torch.Tensor] = [variable for _, variable in pairs]
        self.plan = plan
        self.rule = rule
        self.written = [t for update in updates for t in update.member.tensors]
        self._rows = RowPlan(updates)
        is_sparse = [isinstance(gradient, IndexedSlices) for gradient, _ in pairs]
        self._sparse = [i for i, sparse in enumerate(is_sparse) if sparse]
        self._dense = [i for i, sparse in enumerate(is_sparse) if not sparse]
        self._entries = [entries[i] for i in self._sparse]
        self._settings = [update.member.setting for update in updates]
        self._slots = Holders(entry.slots for entry in self._entries)
        self._loaded: Sequence[torch.Tensor] = ()

    @staticmethod
    def can_repeat(pairs: Pairs, updates: Sequence[RowUpdate | None]) -> bool:
        """Whether a step with these updates of rows leaves nothing to find out."""
        num_sparse = sum(isinstance(g, IndexedSlices) for g, _ in pairs)
        if num_sparse != len(updates):  # of some, the plan updates all rows
            return False
        return all(v.is_cpu and type(v.data) is torch.Tensor for _, v in pairs) and all(
            u is not None and u.slices.indices.numel() > 0 and u.has_kernel()
            for u in updates
        )

    def take_slices(self, pairs: list[Any]) -> None:
        """Put torch's sparse gradients into pairs as `IndexedSlices`, once.

        Args:
            pairs: As many as variables; anything but a pair is left.
        """
        for position in self._sparse:
            pair = pairs[position]
            if type(pair) is not tuple or len(pair) != 2:
                continue
            gradient = pair[0]
            if type(gradient) is torch.Tensor and gradient.is_sparse:
                pairs[position] = as_gradient(gradient), pair[1]

    def recognizes(self, variables: Sequence[object], gradients: Sequence[Any]) -> bool:
        """Whether these are the variables, with gradients of the kinds they had.

        Whether the indices are in range, and where the variables lie, are other
        questions.
        """
        known = self.variables
        if len(known) != len(variables) or not all(map(is_, known, variables)):
            return False
        if not self._rows.fits([gradients[i] for i in self._sparse]):
            return False
        if self.plan is None:
            return True
        self._loaded = [gradients[i] for i in self._dense]
        dense = [known[i] for i in self._dense]
        return self.plan.recognition.recognizes(dense, self._loaded)

    def is_current(self, rule: Rule, plan: Plan | None) -> bool:
        """Whether rule, plan, settings and slots are what they were, in place."""
        return (
            rule is self.rule
            and (self.plan is None or (self.plan is plan and self.plan.is_in_place()))
            and [entry.setting for entry in self._entries] == self._settings
            and self._slots.hold_the_same()
            and self._rows.is_in_place()
        )

    def run(
        self,
        gradients: Sequence[Any],
        values: Mapping[str, np.ndarray],
        transforms: Transforms,
    ) -> bool | None:
        """Take the step; all checks come before the first write.

        Args:
            gradients: Gradients that were recognized last.
            values: For each hyperparameter one number per setting.
            transforms: What happens to dense gradients.

        Returns:
            False if the step was left out; None if an index is out of range, and
            nothing has happened.
        """
        dense, self._loaded = self._loaded, ()
        if not self._rows.load([gradients[i] for i in self._sparse], values):
            return None
        if self.plan is None:
            self._rows.run()
            return True
        return transforms.run(self.plan, dense, values, before_run=self._rows.run)
