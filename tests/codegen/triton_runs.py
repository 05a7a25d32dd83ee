"""Run GPU kernels on the CPU, under Triton's interpreter.

It runs one program after the other with NumPy. Functions of libdevice are device code;
here NumPy's take their place, so that only their spelling is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.codegen.bits import scalar_table
from thalweg.compiler import KernelKey, RowTables, triton_kernel
from thalweg.compiler.triton_kernel import TritonKernel

_NUMPY: dict[str, Callable[..., Any]] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "exp2": np.exp2,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "pow": np.power,
    "atan2": np.arctan2,
    "hypot": np.hypot,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
}


class NumpyLibdevice:
    """Stands for `triton.language.extra.libdevice`."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = _NUMPY[name]

        def evaluate(*operands: Any) -> Any:
            import triton.language as tl
            from triton.runtime.interpreter import TensorHandle

            first = operands[0]
            wide = [operand.handle.data.astype(np.float64) for operand in operands]
            data = np.asarray(function(*wide), dtype=first.handle.data.dtype)
            return tl.tensor(TensorHandle(data, first.handle.dtype), first.type)

        return evaluate


def interpreted(key: KernelKey) -> TritonKernel:
    """A kernel whose launches run on the CPU."""
    triton = pytest.importorskip("triton", reason="needs Triton")
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        kernel = TritonKernel(key)
    kernel.names["libdevice"] = NumpyLibdevice()
    return kernel


@contextmanager
def interpreting() -> Iterator[None]:
    """Within it every new kernel is one whose launches run on the CPU."""
    triton = pytest.importorskip("triton", reason="needs Triton")
    load = triton_kernel.load_text

    def load_text(text: str) -> dict[str, Any]:
        names = load(text)
        names["libdevice"] = NumpyLibdevice()
        return names

    with triton.knobs.runtime.scope(), pytest.MonkeyPatch.context() as patch:
        triton.knobs.runtime.interpret = True
        patch.setattr(triton_kernel, "load_text", load_text)
        patch.setattr(triton_kernel, "_KERNELS", {})
        yield


def run_dense(
    kernel: TritonKernel,
    tensors: Sequence[Tensor],
    scalars: Mapping[str, float],
    *,
    width: int = 1,
    apply: float = 1.0,
) -> list[Tensor]:
    """New contents of the tensors after one dense launch."""
    copies = [tensor.clone() for tensor in tensors]
    count = tensors[0].numel()
    items = torch.tensor([[0, 0, 0, count, 0]])
    pointers = torch.tensor([[copy.data_ptr() for copy in copies]])
    table = scalar_table(kernel, {"apply": apply, **scalars}, count, width)  # pyright: ignore[reportArgumentType] - it has columns as well
    kernel.launch(items, pointers, table)
    return copies


def run_rows(
    kernel: TritonKernel,
    tensors: Sequence[Tensor],
    indices: Tensor,
    scalars: Mapping[str, float],
) -> list[Tensor]:
    """New contents of the tensors after one launch over touched rows."""
    copies = [tensor.clone() for tensor in tensors]
    num_rows, width = tensors[0].shape
    rows = RowTables()
    rows.append(indices, num_rows=num_rows, width=width, variable=0)
    pointers = torch.tensor([[copy.data_ptr() for copy in copies]])
    table = scalar_table(kernel, scalars, tensors[0].numel(), width)  # pyright: ignore[reportArgumentType] - it has columns as well
    kernel.launch(rows.items, pointers, table, starts=rows.starts, sources=rows.sources)
    return copies
