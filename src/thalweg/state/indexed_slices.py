"""Gradients of a few rows: values, the rows they belong to, and the whole shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from thalweg.errors import RowIndexError, describe, message

_INDEX_DTYPES = (torch.int32, torch.int64)
# Sums of halves are formed in float32 and rounded once.
_SUM_DTYPES = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


class IndexedSlices:
    """Rows of a larger tensor: row `values[i]` belongs at `indices[i]`.

    Duplicates are allowed and mean a sum. The order of the rows is kept: it is the
    order in which duplicates are added.

    Args:
        values: Shape [N, ...], any dtype.
        indices: Shape [N], int32 or int64.
        dense_shape: Shape of the whole, [rows, ...], or None where it is unknown.

    Raises:
        TypeError: If values or indices are no tensors, or indices no integers.
        ValueError: If the shapes do not fit each other, or the devices differ.

    Example:
        >>> rows = IndexedSlices(torch.ones(2, 1), torch.tensor([2, 2]), (3, 1))
        >>> rows.to_dense().flatten().tolist()
        [0.0, 0.0, 2.0]
    """

    __slots__ = ("dense_shape", "indices", "values")

    def __init__(
        self,
        values: torch.Tensor,
        indices: torch.Tensor,
        dense_shape: Sequence[int] | None = None,
    ) -> None:
        _check_tensors(values, indices)
        shape = None if dense_shape is None else tuple(int(n) for n in dense_shape)
        _check_shapes(values, indices, shape)
        self.values = values
        self.indices = indices
        self.dense_shape = shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """The device of values and indices."""
        return self.values.device

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the whole; None where it is unknown."""
        return self.dense_shape

    @classmethod
    def from_sparse(cls, sparse: torch.Tensor) -> IndexedSlices:
        """Take over a sparse COO tensor whose first dimension is the sparse one.

        Nothing is coalesced: duplicates and their order stay.

        Args:
            sparse: COO tensor with `sparse_dim() == 1`.

        Raises:
            TypeError: If it is not a sparse COO tensor.
            ValueError: If more dimensions than the first are sparse.
        """
        if getattr(sparse, "layout", None) != torch.sparse_coo:
            raise TypeError(
                message(
                    "IndexedSlices.from_sparse",
                    "a sparse COO tensor",
                    describe(sparse),
                    "Use as_gradient for gradients of unknown layout.",
                )
            )
        if sparse.sparse_dim() != 1:
            raise ValueError(
                message(
                    "IndexedSlices.from_sparse",
                    "one sparse dimension, the first",
                    f"{sparse.sparse_dim()} sparse dimensions",
                    "Call to_dense() on it instead.",
                )
            )
        slices = cls.__new__(cls)  # torch has checked what the constructor would
        if sparse.requires_grad:  # `_values()` has no gradient, those of unique rows do
            sparse = sparse.coalesce()
            slices.values, slices.indices = sparse.values(), sparse.indices()[0]
        else:
            slices.values, slices.indices = sparse._values(), sparse._indices()[0]
        slices.dense_shape = tuple(sparse.shape)
        return slices

    def to_sparse(self) -> torch.Tensor:
        """Return the same rows as an uncoalesced sparse COO tensor.

        Raises:
            ValueError: If `dense_shape` is unknown, or an index is out of range.
        """
        shape = self._known_shape("IndexedSlices.to_sparse")
        self.check_bounds()
        return torch.sparse_coo_tensor(  # pyright: ignore[reportUnknownMemberType]
            self.indices.long().unsqueeze(0), self.values, shape, check_invariants=False
        )

    def to_dense(self) -> torch.Tensor:
        """Return the whole tensor, with zeros where no row is given.

        Raises:
            ValueError: If `dense_shape` is unknown, or an index is out of range.
        """
        shape = self._known_shape("IndexedSlices.to_dense")
        self.check_bounds()
        summed = self.sum_duplicates()
        dense = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return dense.index_copy(0, summed.indices.long(), summed.values)

    def sum_duplicates(self) -> IndexedSlices:
        """Return each row once, in order of first appearance.

        Values of one row are added in order of appearance, in float32 for halves. On
        a GPU the order is a fixed one too, but need not be that of appearance.
        """
        groups = _group(self.indices)
        if groups is None:
            return self
        values = _add_rows(self.values, groups)
        return IndexedSlices(values, self.indices[groups.first], self.dense_shape)

    def sum_at_first(self) -> IndexedSlices:
        """Return the same rows, the sum of each where it appears first, else zeros.

        Unlike `sum_duplicates` it need not know how many rows there are, so that on a
        GPU nothing waits. Sums have the same order.

        Example:
            >>> rows = IndexedSlices(torch.ones(3, 1), torch.tensor([4, 1, 4]), (6, 1))
            >>> rows.sum_at_first().values.flatten()
            tensor([2., 1., 0.])
        """
        count = self.indices.numel()
        ordered, positions = torch.sort(self.indices, stable=True)
        is_first = torch.ones(count, dtype=torch.bool, device=self.device)
        is_first[1:] = ordered[1:] != ordered[:-1]
        places = torch.arange(count, device=self.device)
        begins = torch.cummax(torch.where(is_first, places, 0), 0).values
        targets = torch.empty_like(positions)
        targets.index_copy_(0, positions, positions.index_select(0, begins))
        wide = self.values.to(_SUM_DTYPES.get(self.dtype, self.dtype))
        summed = torch.zeros_like(wide).index_put((targets,), wide, accumulate=True)
        return self.with_values(summed.to(self.dtype))

    def with_values(self, values: torch.Tensor) -> IndexedSlices:
        """Return the same rows with other values, shape [N, ...]."""
        return IndexedSlices(values, self.indices, self.dense_shape)

    def to(self, device: torch.device | str) -> IndexedSlices:
        """Return the rows on a device; itself if they are there already."""
        if self.device == torch.device(device):
            return self
        return IndexedSlices(
            self.values.to(device), self.indices.to(device), self.dense_shape
        )

    def check_bounds(self, num_rows: int | None = None) -> None:
        """Check that every index names a row. On a GPU this waits for the device.

        Args:
            num_rows: Rows of the whole; that of `dense_shape` by default.

        Raises:
            RowIndexError: If an index is negative or too large.
            ValueError: If `num_rows` is unknown.
        """
        if num_rows is None:
            num_rows = self._known_shape("IndexedSlices.check_bounds")[0]
        if self.indices.numel() == 0 or self.indices.is_meta:
            return
        least, greatest = torch.aminmax(self.indices)
        if int(least) < 0 or int(greatest) >= num_rows:
            wrong = (self.indices < 0) | (self.indices >= num_rows)
            offset = int(wrong.nonzero()[0])
            raise RowIndexError(
                message(
                    "IndexedSlices",
                    f"indices in [0, {num_rows})",
                    f"indices[{offset}] = {int(self.indices[offset])}",
                    "Correct the index, or the number of rows of the variable.",
                )
            )

    def __repr__(self) -> str:
        return f"<{describe(self)}>"

    def _known_shape(self, where: str) -> tuple[int, ...]:
        if self.dense_shape is None:
            raise ValueError(
                message(
                    where,
                    "a known dense_shape",
                    "None",
                    "Give dense_shape to IndexedSlices.",
                )
            )
        return self.dense_shape


def as_gradient(gradient: Any) -> Any:
    """Turn a sparse COO gradient into IndexedSlices; return anything else as it is.

    Where more than the first dimension is sparse (`torch.gather` with
    `sparse_grad=True`), there are no rows to speak of, and the gradient is made dense.

    Args:
        gradient: A tensor, IndexedSlices, or None.
    """
    if not isinstance(gradient, torch.Tensor) or gradient.layout != torch.sparse_coo:
        return gradient
    if gradient.sparse_dim() != 1:
        return gradient.to_dense()
    return IndexedSlices.from_sparse(gradient)


def convert_to_tensor(value: Any) -> torch.Tensor:
    """Return a dense tensor: rows and sparse tensors are filled up with zeros.

    Args:
        value: IndexedSlices, a tensor of any layout, or what `torch.as_tensor` takes.

    Raises:
        ValueError: If IndexedSlices do not know their `dense_shape`.
    """
    if isinstance(value, IndexedSlices):
        return value.to_dense()
    tensor = torch.as_tensor(value)
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


class _Groups(NamedTuple):
    """Which rows belong together; groups are in order of first appearance.

    Attributes:
        first: Shape [groups]: position of the first row of each group.
        later: Shape [rest]: positions of the others, in order.
        place: Shape [rest]: the group of each of those.
    """

    first: torch.Tensor
    later: torch.Tensor
    place: torch.Tensor


def _group(indices: torch.Tensor) -> _Groups | None:
    """Group equal indices; None if all differ."""
    count = indices.numel()
    # A stable sort keeps the rows of one group in order of appearance.
    ordered, positions = torch.sort(indices, stable=True)
    is_first = torch.ones(count, dtype=torch.bool, device=indices.device)
    is_first[1:] = ordered[1:] != ordered[:-1]
    first = positions[is_first]
    if first.numel() == count:
        return None
    by_appearance = torch.argsort(first)
    rank = torch.empty_like(by_appearance)
    rank[by_appearance] = torch.arange(first.numel(), device=indices.device)
    place = torch.empty_like(positions)
    place[positions] = rank[torch.cumsum(is_first, 0) - 1]
    is_later = torch.ones_like(is_first)
    is_later[first] = False
    later = is_later.nonzero().flatten()
    return _Groups(first[by_appearance], later, place[later])


def _add_rows(values: torch.Tensor, groups: _Groups) -> torch.Tensor:
    """Add the later rows of each group, in order, to its first one."""
    wide = values.to(_SUM_DTYPES.get(values.dtype, values.dtype))
    summed, later = wide[groups.first], wide[groups.later]
    # Of the two, the one that adds without atomics, so always in the same order.
    if summed.is_cuda:
        summed = summed.index_put((groups.place,), later, accumulate=True)
    else:
        summed = summed.index_add(0, groups.place, later)
    return summed.to(values.dtype)


def _check_tensors(values: object, indices: object) -> None:
    for name, tensor in (("values", values), ("indices", indices)):
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise TypeError(
                message(
                    "IndexedSlices",
                    f"{name} to be a dense tensor",
                    describe(tensor),
                    "Use IndexedSlices.from_sparse for a sparse tensor.",
                )
            )
    if isinstance(indices, torch.Tensor) and indices.dtype not in _INDEX_DTYPES:
        raise TypeError(
            message(
                "IndexedSlices",
                "int32 or int64 indices",
                describe(indices),
                "Convert them with .long().",
            )
        )


def _check_shapes(
    values: torch.Tensor, indices: torch.Tensor, dense_shape: tuple[int, ...] | None
) -> None:
    if values.dim() == 0 or tuple(indices.shape) != (values.shape[0],):
        raise ValueError(
            message(
                "IndexedSlices",
                "values of shape [N, ...] and indices of shape [N]",
                _described(values, indices),
                "Give one index for each row.",
            )
        )
    if values.device != indices.device:
        raise ValueError(
            message(
                "IndexedSlices",
                "values and indices on one device",
                _described(values, indices),
                "Move one.",
            )
        )
    if dense_shape is not None and dense_shape[1:] != tuple(values.shape[1:]):
        raise ValueError(
            message(
                "IndexedSlices",
                f"rows of shape {dense_shape[1:]}, as dense_shape has it",
                describe(values),
                "Correct the values or dense_shape.",
            )
        )


def _described(values: torch.Tensor, indices: torch.Tensor) -> str:
    return f"values {describe(values)}, indices {describe(indices)}"
