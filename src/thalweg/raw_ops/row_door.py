"""Doors on rules for some rows: those that indices name, in the order they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from thalweg.errors import describe, message
from thalweg.raw_ops.checks import apart_from, gradient_of, resources_of
from thalweg.raw_ops.door import Door
from thalweg.raw_ops.indices import checked_rows, indices_of
from thalweg.state import IndexedSlices
from thalweg.step.single_rows import row_launcher_of

__all__ = ["RowDoor"]


class RowDoor(Door):
    """A raw op that updates rows; duplicates of an index act one after the other.

    Its op takes ``indices`` and ``check_indices`` besides the rule's arguments. Calls
    in a batch act at once, after those that wait.
    """

    behind_gradient = ("indices", "check_indices")
    can_wait = False

    def _again(
        self, flags: Mapping[str, bool]
    ) -> Callable[[Sequence[Any], Sequence[float]], bool]:
        again = row_launcher_of(self.rule, flags).again
        # What is recognized is on the CPU, where indices are always checked.
        return lambda given, numbers: again(given[:-1], numbers)

    def _now(
        self, flags: Mapping[str, bool], given: Sequence[Any], numbers: Sequence[float]
    ) -> None:
        """Look at everything that was given, then run the rule."""
        self._refuse_missing(self.given_names, given)
        tensors, values, indices = self._operands(given)
        if values.is_meta:  # no index to check, and no row to write
            return
        values, indices = (apart_from(read, tensors) for read in (values, indices))
        with checked_rows(self._op, indices, tensors, given[-1]) as safe:
            self._launch(flags, tensors, IndexedSlices(values, safe), numbers)

    def _operands(self, given: Sequence[Any]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Variable and slots, the gradient, and as many indices as it has rows."""
        op, rule = self._op, self.rule
        tensors = resources_of(op, dict(zip(rule.outputs, given, strict=False)))
        grad = gradient_of(op, self._gradient, given[-3], tensors[0])
        indices = indices_of(op, given[-2], tensors[0])
        if indices.ndim != 1:
            expected, advice = "indices of one dimension", "Flatten them."
            raise ValueError(message(op, expected, describe(indices), advice))
        shape = tuple(indices.shape + tensors[0].shape[1:])
        if grad.shape != shape:
            expected = f"{self._gradient} of shape {shape}"
            advice = "Pass one row for each index."
            raise ValueError(message(op, expected, describe(grad), advice))
        return tensors, grad, indices

    def _launch(
        self,
        flags: Mapping[str, bool],
        tensors: Sequence[Tensor],
        slices: IndexedSlices,
        numbers: Sequence[float],
    ) -> None:
        """Run the rule on rows that are there."""
        row_launcher_of(self.rule, flags).launch(tensors, slices, numbers)
