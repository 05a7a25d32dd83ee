"""Run a kernel and the interpreter on the same memory contents, and compare bits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from thalweg.compiler import APPLY, NUM_ELEMENTS, ROW_LENGTH, Kernel, RowTables

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def special_values(dtype: torch.dtype) -> list[float]:
    """Values at which implementations differ."""
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps
    magnitudes = [
        0.0, 1.0, 0.5, 3.0, math.inf, info.max, info.tiny, smallest, info.tiny / 2,
    ]  # fmt: skip
    return [*magnitudes, *(-m for m in magnitudes), math.nan]


def filled(count: int, dtype: torch.dtype, shift: int = 0) -> Tensor:
    """Every special value, then random ones over many magnitudes."""
    special = special_values(dtype)
    pairs = list(itertools.islice(itertools.product(special, special), count // 2))
    head = torch.tensor([pair[shift % 2] for pair in pairs], dtype=torch.float64)
    size = count - len(pairs)
    tail = torch.randn(size, dtype=torch.float64) * 10 ** (torch.rand(size) * 6 - 3)
    return torch.cat([head, tail]).to(dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same bits; any NaN equals any NaN."""
    kind = _INTEGERS[a.dtype.itemsize]
    is_nan = a.isnan() & b.isnan()
    return bool(((a.view(kind) == b.view(kind)) | is_nan).all())


def ulps(a: Tensor, b: Tensor) -> Tensor:
    """Distance in units of the last place, for finite values."""

    def ordered(x: Tensor) -> Tensor:
        bits = x.view(_INTEGERS[x.dtype.itemsize]).long()
        lowest = torch.iinfo(_INTEGERS[x.dtype.itemsize]).min
        return torch.where(bits < 0, lowest - bits, bits)

    return (ordered(a) - ordered(b)).abs()


def scalar_table(
    kernel: Kernel, scalars: Mapping[str, float], elements: int, width: int = 1
) -> Tensor:
    """One row with everything a launch needs."""
    table = torch.zeros(1, len(kernel.columns), dtype=torch.float64)
    known = {APPLY: 1.0, ROW_LENGTH: width, NUM_ELEMENTS: elements, **scalars}
    for name, column in kernel.columns.index.items():
        table[0, column] = known.get(name, 0.0)
    return table


def run_dense(
    kernel: Kernel,
    tensors: Sequence[Tensor],
    scalars: Mapping[str, float],
    *,
    compiled: bool,
    num_threads: int = 1,
    width: int = 1,
) -> list[Tensor]:
    """New contents of the tensors after one dense launch."""
    copies = [tensor.clone() for tensor in tensors]
    count = tensors[0].numel()
    items = torch.tensor([[0, 0, 0, count, 0]])
    pointers = torch.tensor([[copy.data_ptr() for copy in copies]])
    table = scalar_table(kernel, scalars, count, width)
    if compiled:
        assert kernel.backend == "c"
        kernel.launch(items, pointers, table, num_threads)
    else:
        kernel.bind_interpreter((items, pointers, table))(None)
    return copies


def run_rows(
    kernel: Kernel,
    tensors: Sequence[Tensor],
    indices: Tensor,
    scalars: Mapping[str, float],
    *,
    compiled: bool,
    num_threads: int = 1,
) -> list[Tensor]:
    """New contents of the tensors after one launch over touched rows."""
    copies = [tensor.clone() for tensor in tensors]
    num_rows, width = tensors[0].shape
    rows = RowTables()
    rows.append(indices, num_rows=num_rows, width=width, variable=0)
    pointers = torch.tensor([[copy.data_ptr() for copy in copies]])
    table = scalar_table(kernel, scalars, tensors[0].numel(), width)
    if compiled:
        assert kernel.backend == "c"
        kernel.launch(
            rows.items, pointers, table, num_threads, rows.starts, rows.sources
        )
    else:
        tables, lists = (rows.items, pointers, table), (rows.starts, rows.sources)
        kernel.bind_interpreter(tables, lists)(None)
    return copies
