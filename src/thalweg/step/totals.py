"""Totals of variables that lie in parts on several ranks, joined between two passes.

A rule that reduces a whole variable runs in passes: all but the last one only read,
and leave totals in the scalar table. Where a member is a shard, its cells hold what
this rank has of them, until every rank has been asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from thalweg.distribute.shards import Join, Whole

__all__ = ["TotalsJoin"]

Totals = Sequence[Sequence[tuple[str, str]]]


class TotalsJoin:
    """Joins the totals of the sharded variables of one kernel, in one message a pass.

    Args:
        totals: For each reading pass the columns it fills, with "sum" or "max".
        columns: Position of each column of the scalar table.
        wholes: For each row of the table what its variable is a part of, or None.
        table: The scalar table that the passes read and write.

    Example:
        >>> from thalweg.distribute.shards import Whole
        >>> table = torch.tensor([[1.0, 5.0], [2.0, 6.0]], dtype=torch.float64)
        >>> doubled = Whole((4,), frozenset({0}), lambda cells, is_maximum: 2 * cells)
        >>> join = TotalsJoin([[("t", "sum")]], {"t": 1}, [None, doubled], table)
        >>> join(0)
        >>> table.tolist()
        [[1.0, 5.0], [2.0, 12.0]]
    """

    def __init__(
        self,
        totals: Totals,
        columns: Mapping[str, int],
        wholes: Sequence[Whole | None],
        table: Tensor,
    ) -> None:
        rows: dict[Join, list[int]] = {}
        for row, whole in enumerate(wholes):
            if whole is not None:
                rows.setdefault(whole.join, []).append(row)
        place = table.device
        self._table = table
        self._parts = [
            (join, torch.tensor(chosen, device=place).reshape(-1, 1))
            for join, chosen in rows.items()
        ]
        self._passes = [
            (
                torch.tensor([columns[name] for name, _ in filled], device=place),
                torch.tensor([kind == "max" for _, kind in filled], device=place),
            )
            for filled in totals
        ]

    def __call__(self, number: int) -> None:
        """Put the totals of all ranks in the place of this one's.

        Args:
            number: The reading pass that has run.
        """
        columns, is_maximum = self._passes[number]
        for join, rows in self._parts:
            cells = self._table[rows, columns]
            self._table[rows, columns] = join(cells, is_maximum)
