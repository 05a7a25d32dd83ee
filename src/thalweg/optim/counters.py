"""Numbers kept for each parameter: its step, and what else a formula remembers.

They live in one float64 table, so that a step advances all of them at once. The state
of a parameter holds a view of its cells under torch's keys: reading or writing
``state["step"]`` reads or writes the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["Counters"]


class Counters:
    """One row for each name, one column for each parameter.

    Args:
        names: Names of the numbers; the state has them as keys.
        size: Number of parameters.
    """

    @torch.inference_mode(False)  # a tensor of that mode has no version
    def __init__(self, names: Sequence[str], size: int) -> None:
        self.names = tuple(names)
        shape = len(self.names), size
        self._table = torch.zeros(shape, dtype=torch.float64, device="cpu")
        self.values = self._table.numpy()
        self._rows = dict(zip(self.names, self.values, strict=True))
        self.last: object = None
        """What advanced them last."""

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        """The numbers of a name, shared with the states."""
        return self._rows[name]

    @property
    def version(self) -> int:
        """Changes when somebody writes into a state's number, not in a step."""
        return self._table._version

    def adopt(
        self, position: int, state: dict[str, Any], initial: Mapping[str, float]
    ) -> None:
        """Take over the numbers of a state, and put views of the table in their place.

        Args:
            position: The parameter's column.
            state: Its state; a missing key gets the initial number.
            initial: First values by name.
        """
        for row, name in enumerate(self.names):
            cell = self._table[row, position]
            value = state.get(name)
            known = isinstance(value, torch.Tensor) and _same_cell(value, cell)
            if not known:
                cell.fill_(initial[name] if value is None else float(value))
                state[name] = cell


def _same_cell(value: torch.Tensor, cell: torch.Tensor) -> bool:
    return value.dtype == cell.dtype and value.data_ptr() == cell.data_ptr()
