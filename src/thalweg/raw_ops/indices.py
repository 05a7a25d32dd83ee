"""Indices of rows: what is refused at once, and what a GPU reports later.

On the CPU an index out of range is always refused before anything is written. On an
accelerator that would make the host wait for the device, so a check can be deferred:
then the device itself leaves everything as it was if an index is out of range, and
the error is raised at a later read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

from thalweg.compiler.triton_tables import is_capturing
from thalweg.errors import RowIndexError, describe, message
from thalweg.step.batch import is_inside_step

__all__ = ["check_deferred", "checked_rows", "indices_of", "refuse_outside"]


@dataclass(frozen=True, eq=False)
class _Deferred:
    """An error that a device may have found.

    Attributes:
        op: The raw op.
        num_rows: Rows of its variable.
        found: Offset and index of the first one out of range, −1 without one, and a
            mark; on the host if `event` says when it is there, else on the device.
        event: Recorded behind the copy to the host; None if there was no copy.
        is_captured: Whether replays of a CUDA graph write what they find.
    """

    op: str
    num_rows: int
    found: torch.Tensor
    event: torch.cuda.Event | None = None
    is_captured: bool = False

    def is_known(self) -> bool:
        """Whether the result can be read without waiting."""
        return self.event is not None and self.event.query()

    def read(self) -> None:
        """Wait for the result; raise it if it is an error."""
        if self.event is not None:
            self.event.synchronize()
        offset, index, mark = self.found.tolist()
        if mark == _MARK and offset >= 0:
            self.found.fill_(-1)  # which is told once
            raise RowIndexError(_outside_message(self.op, index, offset, self.num_rows))


_WIDE = torch.int32, torch.int64
_MARK = 0x7468616C776567
"""What a graph that was never replayed has not written."""
_deferred: deque[_Deferred] = deque()
_untold: deque[_Deferred] = deque()
"""Those without an event, which are read only by whoever waits."""


def indices_of(op: str, indices: Any, variable: torch.Tensor) -> torch.Tensor:
    """Indices as an integer tensor on the variable's device, of any range.

    Raises:
        TypeError: If they are no integers.
        ValueError: If the variable has no rows to choose from.
    """
    try:
        indices = torch.as_tensor(indices, device=variable.device)
        if indices.layout is not torch.strided:
            raise TypeError
    except (TypeError, ValueError, RuntimeError) as error:
        expected, got, advice = "integers", describe(indices), "Pass some."
        if "overflow" in str(error).lower():
            expected, got = "int32 or int64", f"{got}, one of which is larger"
            advice = "Pass the numbers of rows, which begin at 0."
        raise TypeError(message(f"{op}: indices", expected, got, advice)) from None
    if indices.dtype not in _WIDE and indices.numel():
        raise TypeError(
            message(f"{op}: indices", "int32 or int64", describe(indices), "Cast them.")
        )
    if variable.ndim == 0:
        raise ValueError(
            message(
                op, "a variable with rows", describe(variable), "Reshape it to (1,)."
            )
        )
    return indices if indices.numel() else indices.long()


def refuse_outside(op: str, indices: torch.Tensor, num_rows: int) -> None:
    """Refuse indices out of range; the host waits for them.

    Raises:
        RowIndexError: If one is negative or not below the number of rows; compiled by
            torch.compile, a RuntimeError.
    """
    if indices.numel() == 0:
        return
    if is_dynamo_compiling():
        is_right = ((indices >= 0) & (indices < num_rows)).all()
        text = f"{op}: an index is not in [0, {num_rows})"
        torch.ops.aten._assert_async.msg(is_right, text)
        return
    least, greatest = torch.aminmax(indices)
    if least.item() >= 0 and greatest.item() < num_rows:
        return
    flat = indices.reshape(-1)
    offset = int(((flat < 0) | (flat >= num_rows)).nonzero()[0])
    raise RowIndexError(_outside_message(op, int(flat[offset]), offset, num_rows))


@contextmanager
def checked_rows(
    op: str,
    indices: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    is_checked: bool | None,
) -> Generator[torch.Tensor]:
    """Open a scope that updates rows of a variable and its slots.

    Args:
        op: Name of the raw op, for messages.
        indices: Shape [N], integers.
        tensors: The variable and its slots.
        is_checked: Whether indices are checked at once; None: outside of an
            optimizer's step. On the CPU they always are.

    Yields:
        Indices that can be used. If one was out of range, rows are put back when the
        scope is left.

    Raises:
        RowIndexError: If an index is out of range and checked at once, or such an error
            of an earlier call has become known.
    """
    num_rows = tensors[0].shape[0]
    is_checked = not is_inside_step() if is_checked is None else is_checked
    if indices.is_cpu or is_checked or num_rows == 0:
        refuse_outside(op, indices, num_rows)
        yield indices
    elif indices.numel() == 0:
        yield indices
    else:
        check_deferred(wait=False)
        with _undone_if_outside(op, indices, tensors) as safe:
            yield safe


def check_deferred(*, wait: bool = True) -> None:
    """Raise the error of an index out of range that a device has found since.

    A call of a raw op with ``check_indices=False`` on an accelerator returns before
    its indices are known. If one is out of range, the call changes nothing; later
    calls of raw ops on rows raise the error once it is known, this function at once.
    Of a call that was captured in a CUDA graph only this function raises it.

    Args:
        wait: Whether to wait for the device; else only what is known is raised.

    Raises:
        RowIndexError: If an index was out of range; each one is raised once, of the
            replays of a graph the last.

    Example:
        >>> tw.raw_ops.check_deferred()
    """
    while _deferred and (wait or _deferred[0].is_known()):
        _deferred.popleft().read()
    for _ in range(len(_untold) if wait else 0):
        deferred = _untold.popleft()
        if deferred.is_captured:
            _untold.append(deferred)
        deferred.read()


@contextmanager
def _undone_if_outside(
    op: str, indices: torch.Tensor, tensors: Sequence[torch.Tensor]
) -> Generator[torch.Tensor]:
    num_rows = tensors[0].shape[0]
    outside = (indices < 0) | (indices >= num_rows)
    is_wrong = outside.any()
    safe = torch.where(is_wrong, 0, indices)
    handles = [tensor.detach() for tensor in tensors]
    before = [handle.index_select(0, safe) for handle in handles]
    yield safe
    for handle, rows in zip(handles, before, strict=True):
        now = handle.index_select(0, safe)
        handle.index_copy_(0, safe, torch.where(is_wrong, rows, now))
    first = outside.to(torch.int8).argmax().reshape(1)
    index = indices.index_select(0, first).long()  # indices[first] would be read here
    mark = torch.full_like(index, _MARK)
    found = torch.cat([torch.where(is_wrong, first, -1), index, mark])
    is_captured = is_capturing(found.device)
    if is_captured or not found.is_cuda:
        _untold.append(_Deferred(op, num_rows, found, is_captured=is_captured))
    else:
        _deferred.append(_Deferred(op, num_rows, *_on_its_way(found)))


def _on_its_way(found: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
    """Start a copy to the host; the device goes on meanwhile."""
    copy = torch.empty(found.shape, dtype=found.dtype, device="cpu", pin_memory=True)
    copy.copy_(found, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(found.device))
    return copy, event


def _outside_message(op: str, index: int, offset: int, num_rows: int) -> str:
    return (
        f"{op}: Index {index} at offset {offset} in indices is out of range: the "
        f"variable has {num_rows} rows. Nothing was written."
    )
