"""Summing the gradients of all replicas so that every replica decides alike.

In a step each replica sends what the plan of `agreement` says, zeros or no rows where
it has nothing, and flags that say what it really had. The flags of dense gradients
travel as one more tensor in the buckets, and are read only where the result depends on
them; those of rows travel with their numbers. So a plan follows the gradients: what
is dense on one replica is dense, and rows alone are rows, whatever came before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg import errors
from thalweg.distribute import collectives
from thalweg.distribute.agreement import (
    Gradient,
    Plan,
    RefusedElsewhereError,
    make_plan,
    widest,
)
from thalweg.distribute.collectives import ReduceOp
from thalweg.state import IndexedSlices, convert_to_tensor, name_of

# What is said of a gradient in place of the number of its rows.
ABSENT, WHOLE, REFUSED = -1, -2, -3

_DTYPES = sorted({d for d in vars(torch).values() if type(d) is torch.dtype}, key=str)


class Aggregator:
    """Reduces gradients over the ranks; keeps a plan for each list of variables.

    Args:
        op: what several gradients become.
    """

    def __init__(self, op: ReduceOp) -> None:
        self.op = op
        self._plans: dict[tuple[int, ...], Plan] = {}

    def reduce(
        self, gradients: Sequence[Gradient], variables: Sequence[Tensor]
    ) -> list[Gradient]:
        """Reduce the gradients of one step.

        Args:
            gradients: a tensor, `IndexedSlices` or None for each variable.
            variables: handles, the same in the same order on every rank.

        Returns:
            list: new gradients, alike on every rank; None only where no rank had one.

        Raises:
            ValueError: a gradient has another shape than its variable.
            RuntimeError: the ranks do not pass the same variables, or another rank
                has refused its gradients.
        """
        problem = _misfit(gradients, variables)
        if problem is not None:
            self.refuse(variables)
            raise problem
        return self._reduced(gradients, variables)

    def refuse(self, variables: Sequence[Tensor]) -> None:
        """Let the other ranks know, in place of `reduce`, that this one takes no step.

        Where they would not read it, on a GPU with dense gradients alone, nothing is
        sent: they wait for this rank.

        Args:
            variables: as for `reduce`.
        """
        plan = self._plans.get(tuple(map(id, variables)))
        if plan is not None and plan.is_for(variables) and not plan.tells:
            return
        with contextlib.suppress(RefusedElsewhereError):
            self._reduced([None] * len(variables), variables, is_refused=True)

    def _reduced(
        self,
        gradients: Sequence[Gradient],
        variables: Sequence[Tensor],
        *,
        is_refused: bool = False,
    ) -> list[Gradient]:
        plan = self._plan_for(gradients, variables, is_refused=is_refused)
        step = _Step(self.op, plan, gradients, variables, is_refused)
        if step.reduce_dense():
            # Every rank has read the same flags, so every rank comes back here.
            del self._plans[tuple(map(id, variables))]
            return self._reduced(gradients, variables)
        step.reduce_rows()
        return step.results

    def _plan_for(
        self,
        gradients: Sequence[Gradient],
        variables: Sequence[Tensor],
        *,
        is_refused: bool,
    ) -> Plan:
        key = tuple(map(id, variables))
        plan = self._plans.get(key)
        if plan is None or not plan.is_for(variables):
            self._plans = {k: p for k, p in self._plans.items() if p.is_alive()}
            plan = make_plan(gradients, variables, is_refused=is_refused)
            self._plans[key] = plan
        return plan


class _Step:
    """One reduction by a plan, which follows what the ranks turn out to have.

    Attributes:
        results: For each variable its new gradient, once both methods were called.
    """

    def __init__(
        self,
        op: ReduceOp,
        plan: Plan,
        gradients: Sequence[Gradient],
        variables: Sequence[Tensor],
        is_refused: bool,
    ) -> None:
        self.results = list(gradients)
        self._op, self._plan, self._is_refused = op, plan, is_refused
        self._gradients, self._variables = gradients, variables

    def reduce_dense(self) -> bool:
        """Fill in the dense results; true if a rank has what the plan lacks."""
        plan, gradients = self._plan, self._gradients
        if not plan.flagged:
            return False
        had = [gradients[i] is not None for i in plan.flagged]
        dense = [isinstance(gradients[i], Tensor) for i in plan.dense]
        own = [*had, *dense, plan.is_too_narrow_for(gradients), self._is_refused]
        places, flags = plan.dense, torch.tensor(own, dtype=torch.float32, device="cpu")
        flags = flags.to(self._variables[plan.flagged[0]].device)
        *reduced, seen = collectives.all_reduce_bucketed(
            [*self._dense_parts(places), flags], self._op
        )
        for i, tensor in zip(places, reduced, strict=True):
            self.results[i] = tensor
        is_wider = plan.is_always_read and self._heed_verdicts(seen[-2:])
        if is_wider or (all(dense) and not plan.unknown):
            return is_wider
        return self._heed_kinds((seen[:-2] > 0).tolist())

    def _heed_verdicts(self, said: Tensor) -> bool:
        """Whether a gradient is wider than the plan; refuse what a rank refuses."""
        is_wider, is_refused = said.tolist()
        if is_refused:
            raise RefusedElsewhereError("some that another rank has refused")
        return is_wider > 0

    def _heed_kinds(self, said: list[bool]) -> bool:
        """Follow what the ranks have; true if it is more than the plan knows."""
        plan = self._plan
        had, dense = said[: len(plan.flagged)], said[len(plan.flagged) :]
        if any(had[len(dense) :]):
            return True
        # A rank with a dense gradient need not read this: nothing changes for it.
        for i, present, is_dense in zip(list(plan.dense), had, dense, strict=False):
            if not present:
                self.results[i] = None
            elif not is_dense:
                plan.turn_to_rows(i)
        return False

    def reduce_rows(self) -> None:
        """Fill in the sparse results: the rows of all ranks in their order."""
        places, plan = list(self._plan.rows), self._plan
        if not places:
            return
        own = [*map(self._length, places), *map(self._dtype, places)]
        device = self._variables[places[0]].device
        said = collectives.all_gather_counts(own, device)
        refused = [rank for rank, one in enumerate(said) if REFUSED in one]
        if refused:
            raise RefusedElsewhereError(f"some that were refused on rank {refused}")
        for k, i in enumerate(places):
            lengths = [one[k] for one in said]
            dtypes = [_DTYPES[one[k + len(places)]] for one in said if one[k] != ABSENT]
            if WHOLE in lengths:
                plan.turn_to_dense(i, widest(dtypes))
            elif dtypes:
                self.results[i] = self._joined(i, lengths, widest(dtypes))
        self._reduce_whole([i for i in places if i in plan.dense])

    def _length(self, i: int) -> int:
        gradient = self._gradients[i]
        if self._is_refused:
            return REFUSED
        if gradient is None:
            return ABSENT
        is_rows = isinstance(gradient, IndexedSlices)
        return int(gradient.indices.shape[0]) if is_rows else WHOLE

    def _dtype(self, i: int) -> int:
        gradient = self._gradients[i]
        return 0 if gradient is None else _DTYPES.index(gradient.dtype)

    def _joined(
        self, i: int, lengths: Sequence[int], dtype: torch.dtype
    ) -> IndexedSlices:
        part = _row_part(self._gradients[i], self._variables[i], dtype)
        joined = collectives.join_rows(part, [max(n, 0) for n in lengths])
        if self._op is ReduceOp.MEAN:
            joined = joined.with_values(joined.values / len(lengths))
        return joined

    def _reduce_whole(self, places: Sequence[int]) -> None:
        """Reduce what was rows before, and is dense on a rank now."""
        if places:
            parts = self._dense_parts(places)
            reduced = collectives.all_reduce_bucketed(parts, self._op)
            for i, tensor in zip(places, reduced, strict=True):
                self.results[i] = tensor

    def _dense_parts(self, places: Sequence[int]) -> list[Tensor]:
        gradients, variables, plan = self._gradients, self._variables, self._plan
        return [_dense_part(gradients[i], variables[i], plan.dtypes[i]) for i in places]


def _misfit(
    gradients: Sequence[Gradient], variables: Sequence[Tensor]
) -> ValueError | None:
    """What is wrong with these gradients, as far as their shapes tell."""
    for gradient, variable in zip(gradients, variables, strict=True):
        if gradient is None or gradient.shape is None:
            continue
        if tuple(gradient.shape) != tuple(variable.shape):
            return ValueError(
                errors.message(
                    f"aggregate_gradients of {name_of(variable, 'a variable')}",
                    f"a gradient of shape {tuple(variable.shape)}",
                    errors.describe(gradient),
                    "Pass each variable with its own gradient.",
                )
            )
    return None


def _dense_part(gradient: Gradient, variable: Tensor, dtype: torch.dtype) -> Tensor:
    """What this rank sends for a variable with a dense plan."""
    if gradient is None:
        return torch.zeros(variable.shape, dtype=dtype, device=variable.device)
    if isinstance(gradient, IndexedSlices):
        rows = IndexedSlices(gradient.values, gradient.indices, tuple(variable.shape))
        gradient = convert_to_tensor(rows)
    if gradient.dtype == dtype and gradient.device == variable.device:
        return gradient
    return gradient.to(device=variable.device, dtype=dtype)


def _row_part(
    gradient: Gradient, variable: Tensor, dtype: torch.dtype
) -> IndexedSlices:
    """What this rank sends for a variable whose rows travel."""
    shape, device = tuple(variable.shape), variable.device
    if gradient is None:
        values = torch.zeros((0, *shape[1:]), dtype=dtype, device=device)
        indices = torch.zeros(0, dtype=torch.int64, device=device)
        return IndexedSlices(values, indices, shape)
    values = gradient.values.detach().to(device=device, dtype=dtype)
    return IndexedSlices(values, gradient.indices.to(device).long(), shape)
