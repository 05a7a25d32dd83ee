"""Which parameters an optimizer has, and what it knows about each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, compress, repeat
from operator import is_, is_not, itemgetter
from typing import Any

import numpy as np
import torch

from thalweg.distribute import is_distributed
from thalweg.optim.counters import Counters
from thalweg.step import Plan

__all__ = ["Kinds", "Roster", "gradients_of", "kinds_of", "parameters_of_groups"]

# Attributes read in C, so that a step runs no Python frame for each parameter.
_Tensor: Any = torch.Tensor
_grad_of: Callable[[object], Any] = _Tensor.grad.__get__
_params_of: Callable[[Any], list[torch.Tensor]] = itemgetter("params")

Kinds = tuple[int, ...] | None
"""For each parameter 0: no gradient, 1: a dense one, 2: a sparse one. None: all 1."""


def parameters_of_groups(groups: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
    """The parameters of all groups, in order."""
    return list(chain.from_iterable(map(_params_of, groups)))


def gradients_of(parameters: Sequence[torch.Tensor]) -> list[Any]:
    """What is in ``.grad``."""
    return list(map(_grad_of, parameters))


def kinds_of(gradients: Sequence[Any]) -> Kinds:
    """Sort gradients, in bulk where none is sparse."""
    if Plan.are_dense(gradients):
        return None
    present = tuple(map(is_not, gradients, repeat(None)))
    if Plan.are_dense(list(compress(gradients, present))):
        return None if all(present) else present
    return tuple(map(_kind_of, gradients))


def _kind_of(gradient: Any) -> int:
    if gradient is None:
        return 0
    return 2 if gradient.layout != torch.strided else 1


class Roster:
    """The parameters of the groups as they were, with a counter table for them.

    Args:
        groups: Parameter groups.
        parameters: All parameters of the groups.
        counter_names: What is counted for each parameter.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        parameters: list[torch.Tensor],
        counter_names: Sequence[str],
    ) -> None:
        self.parameters = parameters
        self._sizes = list(map(len, map(_params_of, groups)))
        self.group_of = np.repeat(np.arange(len(groups)), self._sizes)
        self.counters = Counters(counter_names, len(parameters))
        self.has_shards = any(map(is_distributed, parameters))
        self._state: Any = None
        self._known: list[Any] = []

    def fits(
        self, groups: Sequence[Mapping[str, Any]], parameters: list[torch.Tensor]
    ) -> bool:
        """Whether the groups still hold the same parameters in the same order."""
        return (
            len(parameters) == len(self.parameters)
            and all(map(is_, parameters, self.parameters))
            and self.has_sizes(groups)
        )

    def has_sizes(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the groups have as many parameters as they had."""
        return list(map(len, map(_params_of, groups))) == self._sizes

    def remember(self, state: Mapping[Any, Any]) -> None:
        """Note which state there is; what is put in its place later is noticed."""
        self._state, self._known = state, list(state.values())

    def knows(self, state: Mapping[Any, Any]) -> bool:
        """Whether the state is the one remembered, object by object."""
        return (
            state is self._state
            and len(state) == len(self._known)
            and all(map(is_, state.values(), self._known))
        )
