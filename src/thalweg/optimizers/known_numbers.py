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

from thalweg.optimizers.scalar_table import ScalarTable
from thalweg.state import Variable
from thalweg.step import STEP
from thalweg.step.bulk import Writes

__all__ = ["KnownNumbers"]

_PLAIN = {int, float}


class KnownNumbers:
    """The hyperparameters of the last step, and the count where it lies in memory.

    A copy of an optimizer begins with none.
    """

    def __init__(self) -> None:
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

    def count_step(self) -> None:
        """Add one to the count that is held."""
        self._count.value += 1
        self._writes.count()

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
            return None
        return {**self._columns, STEP: self._ones * (applied + 1.0)}

    def remember(
        self,
        hyper: Mapping[str, Any],
        table: ScalarTable,
        columns: Mapping[str, np.ndarray],
    ) -> None:
        """Keep what a step has found, unless it depends on the count."""
        self._hyper = None
        is_plain = set(map(type, hyper.values())) <= _PLAIN and not table.varying
        # The first step has another momentum of the averages.
        if is_plain and hyper["decay"] == 0.0 and self._count.value > 0:
            self._hyper, self._columns = dict(hyper), dict(columns)
            self._ones = np.ones(len(table))
