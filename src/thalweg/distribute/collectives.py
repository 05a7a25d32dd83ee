"""Communication between ranks, out of place, and nothing at all with one process.

These functions are the only callers of `torch.distributed`'s collectives. Each takes
tensors, leaves them as they are, and returns new ones (`broadcast` alone writes, since
writing is its purpose). Every rank has to make the same calls in the same order.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from thalweg import errors
from thalweg.state import IndexedSlices

BUCKET_BYTES = 25 * 2**20
SCALAR_ACTION = "Reshape scalars to (1,) before gathering them."

Group = Any


class ReduceOp(enum.Enum):
    """How the values of several replicas become one."""

    SUM = "SUM"
    MEAN = "MEAN"

    @classmethod
    def of(cls, op: ReduceOp | str) -> ReduceOp:
        """Read a reduction from a member or from its name in any case.

        Args:
            op: ``ReduceOp.SUM``, ``ReduceOp.MEAN``, ``"sum"`` or ``"mean"``.

        Returns:
            The member.

        Raises:
            ValueError: the name is neither.

        Example:
            >>> ReduceOp.of("mean")
            <ReduceOp.MEAN: 'MEAN'>
        """
        if isinstance(op, cls):
            return op
        if isinstance(op, str) and op.upper() in cls.__members__:
            return cls[op.upper()]
        raise ValueError(
            errors.message(
                "reduce_op", "'sum' or 'mean'", errors.describe(op), "Pass one of them."
            )
        )


def world_size(group: Group = None) -> int:
    """How many ranks communicate; 1 where there is no process group."""
    if not dist.is_available() or not dist.is_initialized():
        return 1
    return dist.get_world_size(group)


def rank(group: Group = None) -> int:
    """The number of this process among the ranks; 0 where there is no group."""
    if not dist.is_available() or not dist.is_initialized():
        return 0
    return dist.get_rank(group)


def all_reduce(
    tensor: Tensor, op: ReduceOp | str = ReduceOp.SUM, group: Group = None
) -> Tensor:
    """Sum or average one tensor over the ranks.

    Args:
        tensor: any shape, the same on every rank.
        op: ``"sum"`` or ``"mean"``; the mean of integers is a floating tensor.
        group: a process group; the whole world by default.

    Returns:
        Tensor: a new tensor of that shape; the argument itself with one process.
    """
    return all_reduce_bucketed([tensor], op, group)[0]


def all_reduce_bucketed(
    tensors: Sequence[Tensor],
    op: ReduceOp | str = ReduceOp.SUM,
    group: Group = None,
    bucket_bytes: int = BUCKET_BYTES,
) -> list[Tensor]:
    """Sum or average many tensors over the ranks in a few large messages.

    Tensors of one dtype and device are laid end to end in buckets. All buckets are
    on their way before the first is waited for.

    Args:
        tensors: any shapes; number, shapes and dtypes are the same on every rank.
        op: ``"sum"`` or ``"mean"``.
        group: a process group; the whole world by default.
        bucket_bytes: a bucket is closed before it would grow beyond this size.

    Returns:
        list[Tensor]: the reduced tensors in the same order; parts of the buckets.
    """
    ranks = world_size(group)
    op = ReduceOp.of(op)
    if ranks == 1:
        return list(tensors)
    messages = []
    for members in make_buckets(tensors, bucket_bytes):
        parts = [tensors[i] for i in members]
        flat = _laid_end_to_end(parts)
        if op is ReduceOp.MEAN and flat.dtype == torch.float16:
            flat /= ranks  # before the sum, which could be beyond its largest number
        work = dist.all_reduce(flat, group=group, async_op=True)
        messages.append((members, parts, flat, work))
    reduced = list(tensors)
    for members, parts, flat, work in messages:
        if work is not None:
            work.wait()
        is_done = op is ReduceOp.SUM or flat.dtype == torch.float16
        result = flat if is_done else flat / ranks
        for i, part in zip(
            members, _unflatten_dense_tensors(result, parts), strict=True
        ):
            reduced[i] = part
    return reduced


@torch.no_grad()
def _laid_end_to_end(tensors: Sequence[Tensor]) -> Tensor:
    """A new vector with the elements of all tensors."""
    flat = _flatten_dense_tensors(tensors)
    # A single tensor is not copied by that, and must not be written.
    return flat.clone() if len(tensors) == 1 else flat


def make_buckets(
    tensors: Sequence[Tensor], bucket_bytes: int = BUCKET_BYTES
) -> list[list[int]]:
    """Divide tensors into groups of one dtype and device of bounded size.

    Args:
        tensors: what is to be sent, in an order that all ranks share.
        bucket_bytes: a group is closed before it would grow beyond this size; a
            larger tensor is a group of its own.

    Returns:
        list[list[int]]: positions in ``tensors``; every position once.
    """
    buckets: list[list[int]] = []
    open_buckets: dict[tuple[torch.dtype, torch.device], tuple[list[int], int]] = {}
    for position, tensor in enumerate(tensors):
        key = (tensor.dtype, tensor.device)
        size = tensor.numel() * tensor.element_size()
        members, filled = open_buckets.get(key, ([], 0))
        if not members or filled + size > bucket_bytes:
            members, filled = [], 0
            buckets.append(members)
        members.append(position)
        open_buckets[key] = (members, filled + size)
    return buckets


def broadcast(tensors: Iterable[Tensor], source: int = 0, group: Group = None) -> None:
    """Overwrite tensors of every rank by those of one rank, bit for bit.

    The bytes travel, so that any dtype does; tensors without data (``meta``, no
    elements) are passed over.

    Args:
        tensors: number, shapes and dtypes are the same on every rank.
        source: the rank whose values stay.
        group: a process group; the whole world by default.
    """
    if world_size(group) == 1:
        return
    filled = [t.detach() for t in tensors if t.numel() and not t.is_meta]
    flat = [t.reshape(-1).contiguous().view(torch.uint8) for t in filled]
    for members in make_buckets(flat):
        bucket = torch.cat([flat[i] for i in members])
        dist.broadcast(bucket, source, group=group)
        if rank(group) == source:
            continue
        parts = bucket.split([flat[i].numel() for i in members])
        for i, part in zip(members, parts, strict=True):
            # The clone is aligned for any dtype; a part of the bucket may not be.
            value = part.clone().view(filled[i].dtype)
            filled[i].copy_(value.view(filled[i].shape))


def all_gather_objects(value: object, group: Group = None) -> list[Any]:
    """Collect one picklable value from every rank, in rank order."""
    if world_size(group) == 1:
        return [value]
    gathered: list[Any] = [None] * world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def all_gather_counts(
    counts: Sequence[int], device: torch.device, group: Group = None
) -> list[list[int]]:
    """Collect the same number of integers from every rank.

    Args:
        counts: integers; as many on every rank.
        device: where the message is built.
        group: a process group; the whole world by default.

    Returns:
        list[list[int]]: the integers of rank 0, of rank 1 …
    """
    if world_size(group) == 1:
        return [list(counts)]
    own = torch.tensor(list(counts), dtype=torch.int64, device=device)
    gathered = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(gathered, own, group=group)
    return [tensor.tolist() for tensor in gathered]


def all_gather_padded(
    tensor: Tensor, lengths: Sequence[int], group: Group = None
) -> Tensor:
    """Lay the tensors of all ranks end to end along the first axis.

    Args:
        tensor: shape (n, ...); only n may differ between ranks.
        lengths: n of every rank.
        group: a process group; the whole world by default.

    Returns:
        Tensor: shape (sum of lengths, ...), in rank order.
    """
    if world_size(group) == 1:
        return tensor
    tensor = tensor.detach()
    longest = max(lengths)
    if longest == 0:
        return tensor
    padded = tensor.new_zeros((longest, *tensor.shape[1:]))
    padded[: tensor.shape[0]] = tensor
    gathered = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded, group=group)
    return torch.cat([part[:n] for part, n in zip(gathered, lengths, strict=True)])


def all_gather(tensor: Tensor, axis: int = 0, group: Group = None) -> Tensor:
    """Lay the tensors of all ranks end to end along an axis.

    Args:
        tensor: at least one axis; only the length of ``axis`` may differ.
        axis: which axis grows.
        group: a process group; the whole world by default.

    Returns:
        Tensor: the concatenation in rank order; the argument with one process.

    Raises:
        ValueError: the tensor is a scalar, or has no such axis.
    """
    check_axis("gather", tensor, axis, SCALAR_ACTION)
    if world_size(group) == 1:
        return tensor
    rows = tensor.movedim(axis, 0)
    lengths = all_gather_counts([rows.shape[0]], tensor.device, group)
    gathered = all_gather_padded(rows, [n for (n,) in lengths], group)
    return gathered.movedim(0, axis)


def join_totals(totals: Tensor, is_maximum: Tensor, group: Group = None) -> Tensor:
    """Reduce partial results of all ranks, sums and maxima in one message.

    They are gathered, and joined in rank order on every rank: unlike an all-reduce
    this gives every rank the same bits, and a NaN is the largest number.

    Args:
        totals: shape (n, k), the same on every rank.
        is_maximum: shape (k,), bool: which columns are joined by a maximum.
        group: a process group; the whole world by default.

    Returns:
        Tensor: a new tensor of that shape; the argument with one process.
    """
    ranks = world_size(group)
    if ranks == 1:
        return totals
    gathered = all_gather_padded(totals.unsqueeze(0), [1] * ranks, group)
    return torch.where(is_maximum, gathered.amax(0), gathered.sum(0))


def check_axis(where: str, tensor: Tensor, axis: int, action: str) -> None:
    """Refuse a tensor that lacks an axis.

    Args:
        where: the public call.
        tensor: what was passed to it.
        axis: counted from the front, or negative from the back.
        action: what to do about it.

    Raises:
        ValueError: there is no such axis.
    """
    if not -tensor.ndim <= axis < tensor.ndim:
        expected = f"a tensor that has axis {axis}"
        got = errors.describe(tensor)
        raise ValueError(errors.message(where, expected, got, action))


def all_gather_rows(slices: IndexedSlices, group: Group = None) -> IndexedSlices:
    """Join the sparse rows of all ranks, in rank order, duplicates kept.

    Args:
        slices: this rank's rows; their number may differ between ranks.
        group: a process group; the whole world by default.

    Returns:
        IndexedSlices: all rows (int64 indices); the argument with one process.
    """
    if world_size(group) == 1:
        return slices
    lengths = all_gather_counts([slices.indices.shape[0]], slices.device, group)
    return join_rows(slices, [n for (n,) in lengths], group)


def join_rows(
    slices: IndexedSlices, lengths: Sequence[int], group: Group = None
) -> IndexedSlices:
    """Join sparse rows whose numbers on all ranks are known already."""
    indices = all_gather_padded(slices.indices.long(), lengths, group)
    values = all_gather_padded(slices.values, lengths, group)
    return IndexedSlices(values, indices, slices.dense_shape)


def communication_device(group: Group = None) -> torch.device:
    """Where a small message of host numbers is best built for this group."""
    if world_size(group) == 1 or "cpu:" in dist.get_backend_config(group):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
