"""Which steps are known: the last one, and a few before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import override

from thalweg.compiler import Rule
from thalweg.optimizers.one_by_one import Known
from thalweg.optimizers.plans import Absent, EarlierSteps
from thalweg.optimizers.sparse_replay import SparseReplay
from thalweg.optimizers.whole_rows import WholeRows

__all__ = ["Recognizing"]


class Recognizing(WholeRows):
    """The part of `Optimizer` that recognizes pairs like those of an earlier step."""

    _plan_rule: Rule | None
    _replay: SparseReplay | None = None
    _earlier: EarlierSteps | None = None
    _absent: Absent | None = None

    def _recognized(self, pairs: list[Any]) -> Known | None:
        """Gradients and variables of these pairs, if a step of their kind is known."""
        replay = known = self._replay
        if replay is None:
            known = self._recognition if self._plan is None else self._plan.recognition
        is_as_long = known is not None and len(pairs) == len(known.variables)
        if not is_as_long and self._earlier is None:
            return None
        if is_as_long and replay is not None:
            replay.take_slices(pairs)
        try:
            gradients, variables = zip(*pairs, strict=True)
        except (TypeError, ValueError):
            return None
        if is_as_long and known is not None and known.recognizes(variables, gradients):
            return gradients, variables
        return self._recalled(pairs, gradients, variables)

    def _recognized_present(self, pairs: list[Any]) -> tuple[list[Any], Known | None]:
        """The pairs, and what `_recognized` knows of them.

        Where the same variables as in a step before have no gradient, which has been
        told, pairs without them.
        """
        known = self._recognized(pairs)
        if known is None and self._absent is not None:
            present = self._absent.left_out_of(pairs)
            known = None if present is None else self._recognized(present)
            if known is not None and present is not None:
                return present, known
        return pairs, known

    def _note_absent(self, pairs: Sequence[Any]) -> None:
        """Remember which variables of checked pairs have no gradient."""
        absent = Absent.of(pairs)
        shows_all = self._extended().num_replicas > 1  # replicas are shown them
        self._absent = absent if absent.variables and not shows_all else None

    def _recalled(
        self, pairs: list[Any], gradients: tuple[Any, ...], variables: tuple[Any, ...]
    ) -> Known | None:
        """The same, if an earlier step was like this; it is the last one's then."""
        earlier = self._earlier
        if earlier is None:
            return None
        replay = earlier.recall_replay(pairs, variables)
        found = None if replay else earlier.recognize(variables, gradients)
        if replay is None and found is None:
            return None
        self._set_aside(earlier)
        if replay is None:
            self._plan_rule, self._plan = found or (None, None)
            return gradients, variables
        self._replay = replay
        if replay.plan is not None:
            self._plan_rule, self._plan = replay.rule, replay.plan
            replay.plan.write_beside(replay.written)
        return tuple([gradient for gradient, _ in pairs]), variables

    @override
    def _match_patterns(self, var_list: Sequence[torch.Tensor]) -> None:
        entries = list(map(self._entry, var_list))
        settings = [entry.setting for entry in entries]
        super()._match_patterns(var_list)
        if [entry.setting for entry in entries] != settings:  # a name became known
            self.__dict__.update(_plan=None, _plan_rule=None, _replay=None)
            self.__dict__.update(_earlier=None, _passes={})

    def _earlier_steps(self) -> EarlierSteps:
        if self._earlier is None:
            self.__dict__["_earlier"] = EarlierSteps()
        return self.__dict__["_earlier"]

    def _set_aside(self, earlier: EarlierSteps) -> None:
        """Remember what is known of the last step, for another one like it."""
        if self._replay is not None:
            earlier.keep_replay(self._replay)
        elif self._plan is not None and self._plan_rule is not None:
            earlier.keep(self._plan_rule, self._plan)
        self._replay = None
