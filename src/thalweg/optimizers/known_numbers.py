"""Numbers of a step that are known from the one before.

Most often all hyperparameters are plain numbers and only the step count changes. Then
neither is each of them looked at again, nor does torch count: after a kernel has driven
everything else out of the caches, a call of torch takes as long as fifty of them do in
a loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import c_int64
from operator import is_
from typing import Any

import numpy as np
import torch

from thalweg.compiler import Rule
from thalweg.optimizers.scalar_table import ScalarTable
from thalweg.state import Variable
from thalweg.step import STEP
from thalweg.step.bulk import Writes

__all__ = ["KnownNumbers"]

_PLAIN = {int, float}


class KnownNumbers:
    """The hyperparameters of the last step, and the count where it lies in memory.

    A copy of an optimizer begins with none.

    Attributes:
        are_repeated: Whether those of this step are those of the one before.
    """

    def __init__(self) -> None:
        self.are_repeated = False
        self._rule: tuple[tuple[str, ...], tuple[bool, ...], Rule] | None = None
        self._hyper: dict[str, Any] | None = None
        self._columns: dict[str, np.ndarray] = {}
        self._ones = np.ones(0)
        self._counted: Variable | None = None
        self._address = 0

    def __reduce__(self) -> tuple[type[KnownNumbers], tuple[()]]:
        return KnownNumbers, ()

    # -- the count ------------------------------------------------------------

    def holds_count(self, iterations: Variable) -> bool:
        """Whether this is the count, where it was; a new one is taken in."""
        if iterations is not self._counted:
            self._counted = iterations
            is_plain = type(iterations) is Variable and iterations.is_cpu
            is_plain = is_plain and iterations.dtype is torch.int64
            self._address = iterations.data_ptr() if is_plain else 0
            if is_plain:
                self._count = c_int64.from_address(self._address)
                self._writes = Writes([iterations])
        elif self._address and self._address != iterations.data_ptr():
            self._counted = None
            return False
        return self._address != 0

    def count_step(self, iterations: Variable | None) -> bool:
        """Add one to the count that is held; False if this is not it."""
        if iterations is None or not self.holds_count(iterations):
            return False
        self._count.value += 1
        self._writes.count()
        return True

    # -- hyperparameters ------------------------------------------------------

    def columns(
        self, hyper: Mapping[str, Any], table: ScalarTable
    ) -> dict[str, np.ndarray] | None:
        """All columns of the step after the count that is held, if they are known.

        Args:
            hyper: The hyperparameters, looked at by identity.
            table: The settings.
        """
        known, applied = self._hyper, self._count.value
        if (
            known is None
            or len(known) != len(hyper)
            or not all(map(is_, known.values(), hyper.values()))
            or known.keys() != hyper.keys()
            or len(table) != len(self._ones)
            or applied == 0
        ):
            self.are_repeated = False
            return None
        self.are_repeated = True
        return {**self._columns, STEP: self._ones * (applied + 1.0)}

    def remember(
        self,
        hyper: Mapping[str, Any],
        table: ScalarTable,
        columns: Mapping[str, np.ndarray],
    ) -> None:
        """Keep what a step has found, unless it depends on the count."""
        self._hyper, self._rule = None, None
        is_plain = set(map(type, hyper.values())) <= _PLAIN and not table.varying
        # The first step has another momentum of the averages.
        if is_plain and hyper["decay"] == 0.0 and self._count.value > 0:
            self._hyper, self._columns = dict(hyper), dict(columns)
            self._ones = np.ones(len(table))

    # -- the rule -------------------------------------------------------------

    def rule(self, columns: tuple[str, ...], flags: Mapping[str, bool]) -> Rule | None:
        """The rule of the step before, if it must be that of this one.

        Args:
            columns: Scalars of gradient transforms.
            flags: The optimizer's flags, looked at by identity.
        """
        if not self.are_repeated or self._rule is None:
            return None
        known_columns, known_flags, rule = self._rule
        is_same = columns == known_columns and all(
            map(is_, known_flags, flags.values())
        )
        return rule if is_same else None

    def remember_rule(
        self, columns: tuple[str, ...], flags: Mapping[str, bool], rule: Rule
    ) -> None:
        """Keep the rule of a step, which follows from its numbers and these.

        Args:
            columns: Scalars of gradient transforms.
            flags: The optimizer's flags.
            rule: The rule with hyperparameters as its scalars.
        """
        self._rule = columns, tuple(flags.values()), rule
