"""What the ranks agree on before they reduce gradients: a plan of what travels.

Replicas may differ in which variables got a gradient. What travels must not depend on
that, or they would wait for each other for ever. So the replicas agree once, for each
new set of variables, on a *plan*: per variable, whether its gradient is dense or rows,
and of which dtype.
"""

from __future__ import annotations

import enum
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thalweg import errors
from thalweg.distribute import collectives
from thalweg.distribute.wrapped import reduced_elsewhere
from thalweg.state import IndexedSlices

__all__ = [
    "Gradient",
    "Kind",
    "Plan",
    "RefusedElsewhereError",
    "Sighting",
    "make_plan",
    "widest",
]

Gradient = Any


class RefusedElsewhereError(RuntimeError):
    """Another rank has refused its gradients, so that nobody takes the step."""

    def __init__(self, got: str) -> None:
        super().__init__(
            errors.message(
                "aggregate_gradients",
                "gradients that fit their variables on every rank",
                got,
                "See the error of that rank; no rank has taken the step.",
            )
        )


class Kind(enum.Enum):
    """What travels for a variable."""

    UNKNOWN = "no replica has had a gradient yet: its flag"
    DENSE = "a tensor of the variable's shape, and its flag"
    ROWS = "the number of rows, then these"
    ELSEWHERE = "nothing: a wrapper of the model has reduced it"


@dataclass(frozen=True)
class Sighting:
    """What one replica says about one variable when a plan is made."""

    shape: tuple[int, ...]
    kind: Kind
    dtype: torch.dtype
    is_refused: bool = False


class Plan:
    """What every replica sends in a step with a given list of variables.

    Args:
        kinds: for each variable, what travels.
        dtypes: for each variable, the dtype its gradient travels in.
        variables: the handles; their order is the order of the messages.
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        dtypes: Sequence[torch.dtype],
        variables: Sequence[Tensor],
    ) -> None:
        self.dtypes = list(dtypes)
        self.dense = [i for i, kind in enumerate(kinds) if kind is Kind.DENSE]
        self.rows = [i for i, kind in enumerate(kinds) if kind is Kind.ROWS]
        self.unknown = [i for i, kind in enumerate(kinds) if kind is Kind.UNKNOWN]
        # Reading waits for the device, so it is left out there where all is known.
        self.is_always_read = bool(self.unknown) or all(v.is_cpu for v in variables)
        self._references = [weakref.ref(v) for v in variables]

    @property
    def flagged(self) -> list[int]:
        """The variables whose flags travel beside dense gradients."""
        return self.dense + self.unknown

    @property
    def tells(self) -> bool:
        """Whether every replica hears what one says of its gradients."""
        return self.is_always_read or bool(self.rows)

    def turn_to_rows(self, position: int) -> None:
        """Send rows from now on, as no replica has had a dense gradient."""
        self.dense.remove(position)
        self.rows = sorted([*self.rows, position])

    def turn_to_dense(self, position: int, dtype: torch.dtype) -> None:
        """Send dense gradients from now on, as a replica has had one."""
        self.rows.remove(position)
        self.dense = sorted([*self.dense, position])
        self.dtypes[position] = dtype

    def is_too_narrow_for(self, gradients: Sequence[Gradient]) -> bool:
        """Whether a gradient is of a wider dtype than the one it would travel in."""
        return any(
            gradients[i] is not None
            and gradients[i].dtype != self.dtypes[i]
            and widest([gradients[i].dtype, self.dtypes[i]]) != self.dtypes[i]
            for i in self.dense
        )

    def is_for(self, variables: Sequence[Tensor]) -> bool:
        """Whether the plan was made for these very objects."""
        return all(
            reference() is variable
            for reference, variable in zip(self._references, variables, strict=True)
        )

    def is_alive(self) -> bool:
        """Whether all variables of the plan still exist."""
        return all(reference() is not None for reference in self._references)


def make_plan(
    gradients: Sequence[Gradient],
    variables: Sequence[Tensor],
    *,
    is_refused: bool = False,
) -> Plan:
    """Agree with the other ranks on what travels for these variables.

    Args:
        gradients: this rank's gradients, None where it has none.
        variables: handles.
        is_refused: whether this rank takes no step.

    Returns:
        Plan: the same on every rank.

    Raises:
        RuntimeError: the ranks pass other variables, only some have wrapped them, or
            one takes no step.
    """
    elsewhere = reduced_elsewhere(variables)
    own = [
        Sighting(
            tuple(variable.shape),
            Kind.ELSEWHERE if reduced else _kind_of(gradient),
            variable.dtype if gradient is None else gradient.dtype,
            is_refused,
        )
        for gradient, variable, reduced in zip(
            gradients, variables, elsewhere, strict=True
        )
    ]
    ranks: list[list[Sighting]] = collectives.all_gather_objects(own)
    _check_agreement(ranks)
    kinds, dtypes = [], []
    for sightings in zip(*ranks, strict=True):
        known = [s for s in sightings if s.kind is not Kind.UNKNOWN]
        seen = {s.kind for s in known}
        # One dense gradient makes all of them dense: rows can be filled up.
        order = (Kind.ELSEWHERE, Kind.DENSE, Kind.ROWS)
        kinds.append(next((kind for kind in order if kind in seen), Kind.UNKNOWN))
        dtypes.append(widest([s.dtype for s in known or sightings]))
    return Plan(kinds, dtypes, variables)


def _check_agreement(ranks: Sequence[Sequence[Sighting]]) -> None:
    """Refuse, on every rank alike, what cannot be added up."""
    shapes = [[s.shape for s in sightings] for sightings in ranks]
    refused = [i for i, s in enumerate(ranks) if any(one.is_refused for one in s)]
    if refused:
        raise RefusedElsewhereError(f"some that were refused on rank {refused}")
    wrapped = [[s.kind is Kind.ELSEWHERE for s in sightings] for sightings in ranks]
    if any(other != shapes[0] for other in shapes):
        got = "; ".join(f"rank {i}: {len(s)} {s}" for i, s in enumerate(shapes))
        raise RuntimeError(
            errors.message(
                "aggregate_gradients",
                "the same variables in the same order on every rank",
                got[:500],
                "Pass every variable on every rank, with None where it has no "
                "gradient.",
            )
        )
    if any(other != wrapped[0] for other in wrapped):
        raise RuntimeError(
            errors.message(
                "aggregate_gradients",
                "the model to be wrapped in DistributedDataParallel on every rank "
                "or on none",
                f"wrapped variables by rank {[sum(w) for w in wrapped]}",
                "Wrap it on every rank.",
            )
        )


def _kind_of(gradient: Gradient) -> Kind:
    if gradient is None:
        return Kind.UNKNOWN
    return Kind.ROWS if isinstance(gradient, IndexedSlices) else Kind.DENSE


def widest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The dtype that has room for all of these; at least one."""
    widest = dtypes[0]
    for dtype in dtypes[1:]:
        widest = torch.promote_types(widest, dtype)
    return widest
