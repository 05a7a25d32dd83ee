"""Run GPU kernels on the CPU, under Triton's interpreter.

It runs one program after the other with NumPy. Functions of libdevice are device code;
here NumPy's take their place, so that only their spelling is tested. Tests are skipped
where Triton's interpreter does not go with the NumPy that is there, as that of Triton
3.6 with NumPy 2.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.codegen.bits import scalar_table
from thalweg.compiler import KernelKey, RowTables, triton_kernel
from thalweg.compiler.triton_kernel import TritonKernel, load_text

# A loop whose end is read from memory: what each kernel of the library has.
_PROBE = """
import triton
import triton.language as tl

@triton.jit
def double(values):
    length = tl.load(values)
    for start in range(0, length, 2):
        index = start + tl.arange(0, 2)
        inside = index < length
        value = tl.load(values + index, mask=inside)
        tl.store(values + index, 2 * value, mask=inside)
"""
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


def interpreter() -> Any:
    """Triton, whose interpreter works; without it the test is skipped."""
    triton = pytest.importorskip("triton", reason="needs Triton")
    if problem := _problem_of_interpreter():
        versions = f"Triton {triton.__version__} and NumPy {np.__version__}"
        reason = f"needs Triton's interpreter; that of {versions}: {problem}"
        pytest.skip(reason, allow_module_level=True)
    return triton


@cache
def _problem_of_interpreter() -> str:
    """What goes wrong when it runs a few lines that are none of the library's."""
    triton: Any = pytest.importorskip("triton")
    values = torch.tensor([5, 1, 2, 3, 4, 9])
    try:
        with triton.knobs.runtime.scope():
            triton.knobs.runtime.interpret = True
            load_text(_PROBE)["double"][(1,)](values)
    except Exception as error:
        cause = error.__cause__ or error
        return f"{type(cause).__name__}: {cause}"
    return "" if values.tolist() == [10, 2, 4, 6, 8, 9] else "other numbers"


def interpreted(key: KernelKey) -> TritonKernel:
    """A kernel whose launches run on the CPU."""
    triton = interpreter()
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        kernel = TritonKernel(key)
    kernel.names["libdevice"] = NumpyLibdevice()
    return kernel


@contextmanager
def interpreting() -> Iterator[None]:
    """Within it every new kernel is one whose launches run on the CPU."""
    triton = interpreter()

    def load(text: str) -> dict[str, Any]:
        names = load_text(text)
        names["libdevice"] = NumpyLibdevice()
        return names

    with triton.knobs.runtime.scope(), pytest.MonkeyPatch.context() as patch:
        triton.knobs.runtime.interpret = True
        patch.setattr(triton_kernel, "load_text", load)
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
