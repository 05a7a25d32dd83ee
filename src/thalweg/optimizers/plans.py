"""Steps over other variables than the last one's: which are known, and their plans."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch

from thalweg.compiler import Rule
from thalweg.optimizers.sparse_replay import SparseReplay
from thalweg.step import Plan

__all__ = ["Absent", "EarlierSteps"]

_MOST = 4


class EarlierSteps:
    """Plans and replays before the last one, the latest first.

    Which variables have dense gradients may differ from step to step: a part that is
    frozen in turn, a table whose gradient is sparse in some steps, tasks that have
    tables of their own. Then few sets alternate, and what is known of each is worth
    keeping.
    """

    def __init__(self) -> None:
        self._held: deque[tuple[Rule, Plan]] = deque(maxlen=_MOST)
        self._replays: deque[SparseReplay] = deque(maxlen=_MOST)
        self._seen: deque[tuple[int, ...]] = deque(maxlen=_MOST)

    def sees_again(self, variables: tuple[int, ...]) -> bool:
        """Whether a step with sparse gradients had these variables before.

        Args:
            variables: The `id` of each, in order.
        """
        is_known = variables in self._seen
        if not is_known:
            self._seen.appendleft(variables)
        return is_known

    def keep_replay(self, replay: SparseReplay) -> None:
        """Remember a replay that another step takes the place of."""
        self._replays.appendleft(replay)

    def recall_replay(
        self, pairs: list[Any], variables: Sequence[object]
    ) -> SparseReplay | None:
        """The replay of an earlier step like this one, which is forgotten here.

        Args:
            pairs: Its gradients and variables; torch's sparse gradients become slices.
            variables: The variables.
        """
        for replay in self._replays:
            known = replay.variables
            if len(known) != len(variables) or not all(map(is_, known, variables)):
                continue
            replay.take_slices(pairs)
            if replay.recognizes(variables, [gradient for gradient, _ in pairs]):
                self._replays.remove(replay)
                return replay
        return None

    def keep(self, rule: Rule, plan: Plan) -> None:
        """Remember a plan that another one takes the place of.

        Args:
            rule: The rule that it was made for.
            plan: The plan. It keeps its variables and slots alive.
        """
        if all(plan is not known for _, known in self._held):
            self._held.appendleft((rule, plan))

    def recognize(
        self, variables: Sequence[object], gradients: Sequence[object]
    ) -> tuple[Rule, Plan] | None:
        """The rule and the plan of an earlier step like this one.

        Args:
            variables: Its variables.
            gradients: Anything in the place of their gradients.

        Returns:
            What was kept, which is forgotten here; None if no step was like it.
        """
        for one in self._held:
            plan = one[1]
            is_alike = len(plan.variables) == len(variables)
            if (
                is_alike
                and plan.recognition.recognizes(variables, gradients)
                and plan.is_in_place()
            ):
                self._held.remove(one)
                return one
        return None

    def take(
        self,
        rule: Rule,
        components: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        *,
        owns_rows: bool,
    ) -> Plan | None:
        """A plan that can be replayed for a step, which is forgotten here.

        Args:
            rule: The rule of the step.
            components: Its variables, or their local parts.
            gradients: Dense gradients of them.
            owns_rows: Whether each gradient has a factor of its own.

        Returns:
            The plan, or None if none fits.
        """
        for one in self._held:
            made_for, plan = one
            is_alike = made_for is rule and plan.owns_rows == owns_rows
            if is_alike and plan.fits(components, gradients):
                self._held.remove(one)
                return plan
        return None


@dataclass(frozen=True)
class Absent:
    """Variables that had no gradient in a step, which has been told.

    Attributes:
        variables: The variables, as they were in the pairs.
    """

    variables: tuple[Any, ...]

    @classmethod
    def of(cls, pairs: Sequence[Any]) -> Absent:
        """Those of pairs with None for a gradient."""
        return cls(tuple(p[1] for p in pairs if type(p) is tuple and p[0] is None))

    def left_out_of(self, pairs: Sequence[Any]) -> list[Any] | None:
        """The pairs that have a gradient, if exactly these variables have none."""
        others = self.of(pairs).variables
        if len(others) != len(self.variables) or not all(
            map(is_, others, self.variables)
        ):
            return None
        return [p for p in pairs if type(p) is not tuple or p[0] is not None]
