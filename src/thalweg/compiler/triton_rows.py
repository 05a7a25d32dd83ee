"""Work items for touched rows on a GPU: nothing waits for the device.

How many rows are touched is known there only. So each index has an item, and one that
is not the first of its row has length 0 and does nothing. The sources of a row are in
order of appearance, as on a CPU, so the bits of a sum are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.compiler.rows import check_indices
from thalweg.compiler.triton_tables import is_capturing
from thalweg.errors import RowIndexError, message

__all__ = ["DeviceRowTables"]

_ITEM_COLUMNS = 5


class DeviceRowTables:
    """The items, starts and sources of a row kernel on a device.

    The tables grow when they must and are reused otherwise: a later step that needs
    no more room finds them at the same addresses. Those that a CUDA graph was recorded
    with stay alive when they are outgrown: its replays write into them.

    Args:
        device: Where the tables are.

    Example:
        >>> rows = DeviceRowTables("cpu")
        >>> rows.append(torch.tensor([7, 2, 7]), num_rows=10, width=4, variable=0)
        >>> rows.items[:, [1, 3]].tolist()
        [[8, 4], [28, 4], [28, 0]]
        >>> rows.starts.tolist(), rows.sources.tolist()
        ([0, 1, 3, 3], [1, 0, 2])
    """

    def __init__(self, device: torch.device | str) -> None:
        self.num_items = 0
        self.width = 0
        self._device = torch.device(device)
        self._items = self._empty((0, _ITEM_COLUMNS))
        self._starts = self._empty((1,)).zero_()
        self._sources = self._empty((0,))
        self._is_valid = torch.ones((), dtype=torch.bool, device=self._device)
        self._is_captured = self._has_recorded_start = False
        self._outgrown: list[tuple[Tensor, ...]] = []

    @property
    def items(self) -> Tensor:
        """Shape (n, 5): variable, offset, gradient offset, width or 0, scalar row."""
        return self._items[: self.num_items]

    @property
    def starts(self) -> Tensor:
        """Shape (n + 1,): where the sources of each item begin."""
        return self._starts[: self.num_items + 1]

    @property
    def sources(self) -> Tensor:
        """Positions in the list of indices, grouped by row."""
        return self._sources[: self.num_items]

    @property
    def valid(self) -> Tensor:
        """0-d bool: whether all indices since `clear` were in range.

        Multiply the column `apply` by it, and a step with a wrong index does nothing.
        """
        return self._is_valid

    def clear(self) -> None:
        """Start a new step."""
        is_captured = is_capturing(self._device)
        self._is_captured = self._is_captured or is_captured
        if self._has_recorded_start:
            self._starts[:1].zero_()
            self._has_recorded_start = is_captured
        self.num_items = 0
        self.width = 0
        self._is_valid = torch.ones((), dtype=torch.bool, device=self._device)

    def append(
        self,
        indices: Tensor,
        *,
        num_rows: int,
        width: int,
        variable: int,
        scalar_row: int = 0,
        gradient_offset: int = 0,
    ) -> None:
        """Add the touched rows of one variable.

        Indices that are out of range touch nothing; `check` and `valid` tell.

        Args:
            indices: Shape (N,), int32 or int64, on the device.
            num_rows: Rows of the variable.
            width: Elements of a row.
            variable: Row of the pointer table.
            scalar_row: Row of the scalar table.
            gradient_offset: Where row 0 of the gradient begins.

        Raises:
            TypeError: If the indices are not integers.
        """
        check_indices(indices)
        count, base = indices.numel(), self.num_items
        if count == 0:
            return
        self._reserve(base + count)
        values, order = torch.sort(indices.long(), stable=True)
        is_inside = (values >= 0) & (values < num_rows)
        is_first, ends = _groups(values)
        items = self._items[base : base + count]
        items[:, 0], items[:, 2], items[:, 4] = variable, gradient_offset, scalar_row
        torch.mul(values, width, out=items[:, 1])
        torch.mul(is_first & is_inside, width, out=items[:, 3])
        torch.add(ends, base, out=self._starts[base + 1 : base + count + 1])
        self._sources[base : base + count] = order
        self._is_valid = self._is_valid & is_inside.all()
        self.num_items += count
        self.width = max(self.width, width)

    def check(self) -> None:
        """Wait for the device, and refuse what was out of range.

        Raises:
            RowIndexError: If an index since `clear` was negative or too large.
        """
        if not bool(self._is_valid):
            raise RowIndexError(
                message(
                    "rows",
                    "indices from 0 to the number of rows - 1",
                    "another one",
                    "Check the indices of the gradient.",
                )
            )

    def _reserve(self, count: int) -> None:
        """Make room for that many indices."""
        if len(self._sources) >= count:
            return
        if self._is_captured:
            self._outgrown.append((self._items, self._starts, self._sources))
            # In a graph the copies below are made by its replays only.
            self._has_recorded_start = is_capturing(self._device)
        room, used = max(count, 2 * len(self._sources)), self.num_items
        items = self._empty((room, _ITEM_COLUMNS))
        starts, sources = self._empty((room + 1,)), self._empty((room,))
        items[:used] = self._items[:used]
        starts[: used + 1] = self._starts[: used + 1]
        sources[:used] = self._sources[:used]
        self._items, self._starts, self._sources = items, starts, sources

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device=self._device)


def _groups(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of sorted values: which are the first of their kind, and where each kind ends."""
    count = values.numel()
    is_first = torch.ones(count, dtype=torch.bool, device=values.device)
    torch.ne(values[1:], values[:-1], out=is_first[1:])
    places = torch.arange(1, count + 1, device=values.device)
    is_last = torch.ones_like(is_first)
    is_last[:-1] = is_first[1:]
    ends = torch.where(is_last, places, count)
    return is_first, ends.flip(0).cummin(0).values.flip(0)
