"""Kernels of the GPU: what a key gives where there is Triton, and how it is started.

The tables are those of `kernel`, on the device. Triton itself is imported by the text
of a kernel, so that this module can be loaded without it. Under Triton's interpreter
(`TRITON_INTERPRET=1`) the same kernels run on tables and tensors of the CPU.
"""

from __future__ import annotations

import hashlib
import importlib.util
import linecache
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from thalweg.compiler.emit_triton import emit_triton, kernel_name, scalar_slots
from thalweg.compiler.graph import expect_reduction, label_of
from thalweg.compiler.interpret import program_for
from thalweg.compiler.key import KernelKey
from thalweg.compiler.program import Columns, Program
from thalweg.compiler.reductions import LANES
from thalweg.compiler.skeleton_c import pass_name
from thalweg.compiler.table_checks import check_tables, checked_row_tables
from thalweg.compiler.triton_tables import chunks_and_folds, cut, piece_length
from thalweg.errors import message

__all__ = ["TritonKernel", "TritonLaunch", "compile_triton", "has_triton", "load_text"]

Between = Callable[[int], None]

_DENSE_BLOCK, _ROW_BLOCK = 1024, 128
_MOST_COLUMNS = 65535
"""What the second axis of a CUDA grid may have."""
_KERNELS: dict[KernelKey, TritonKernel] = {}
_LOCK = threading.Lock()


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def compile_triton(key: KernelKey) -> TritonKernel:
    """The GPU kernel of a key; made once in a process.

    Args:
        key: Rule, flags, dtypes, mode.

    Returns:
        The kernel; its machine code is made when it is first started.

    Raises:
        ImportError: If Triton is not installed.
        TraceError: If the rule cannot be compiled for a GPU.
    """
    with _LOCK:
        if key not in _KERNELS:
            _KERNELS[key] = TritonKernel(key)
        return _KERNELS[key]


def load_text(text: str) -> dict[str, Any]:
    """Run the text of a module; its lines can be found as Triton needs them.

    Args:
        text: A Python module.

    Returns:
        What it defines.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    file = f"<kernel {digest}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names: dict[str, Any] = {"__name__": f"thalweg_kernel_{digest}"}
    exec(compile(text, file, "exec"), names)
    return names


class TritonKernel:
    """One rule, compiled for a GPU.

    Attributes:
        key: What it was made for.
        columns: Layout of the scalar table; `apply` must be set by the caller.
        row_axes: Number of trailing axes of a row; 0 if rows do not matter.
        num_passes: More than one for a rule that reduces whole variables. Then each
            variable needs a scalar row of its own, and its items must begin at
            multiples of 16,384 elements, in order.
        totals: For each reading pass, columns it fills and "sum" or "max".
        source: The text.
        backend: "triton".
        names: What the text defines.
        reads_cells: Whether a slot of one number is read.
        writes_cells: Whether a slot of one number is written.
        writes_elements: Whether anything else is.

    Args:
        key: Rule, flags, dtypes, mode.

    Raises:
        ImportError: If Triton is not installed.
        TraceError: If the rule cannot be compiled for a GPU.
    """

    def __init__(self, key: KernelKey) -> None:
        if not has_triton():
            where, expected = f"kernel of {key.rule.name}", "Triton, to run on a GPU"
            action = 'Install it with pip install "triton>=3.6".'
            raise ImportError(message(where, expected, "none", action))
        program = program_for(key)
        self.key = key
        self.program: Program = program
        self.source = emit_triton(program, key.dtypes, key.mode)
        self.columns: Columns = program.columns
        self.row_axes = program.trace.row_axes
        self.num_passes = program.num_passes
        self.totals: list[list[tuple[str, Literal["max", "sum"]]]] = [
            [
                (label_of(node), "max" if expect_reduction(node).is_maximum else "sum")
                for node in program.totals_of(number)
            ]
            for number in range(program.num_passes - 1)
        ]
        self.backend: Literal["triton"] = "triton"
        self.names = load_text(self.source)
        self._name = kernel_name(program)
        cells = scalar_slots(program)
        self.reads_cells = any(program.inputs[name].users for name in cells)
        written = {
            name
            for name, value in zip(key.rule.outputs, program.outputs, strict=True)
            if value is not None
        }
        self.writes_cells = bool(written & cells)
        self.writes_elements = bool(written - cells)

    def launch(
        self,
        items: Tensor,
        pointers: Tensor,
        scalars: Tensor,
        num_threads: int = 1,
        starts: Tensor | None = None,
        sources: Tensor | None = None,
        between: Between | None = None,
    ) -> None:
        """Run once; see `bind` for the arguments.

        Args:
            items: Work items.
            pointers: Addresses.
            scalars: Scalar table; its derived columns are written.
            num_threads: Not used; a launch on a CPU takes it.
            starts: Row modes only.
            sources: Row modes only.
            between: Called with the number of each reading pass when it was started.
        """
        self.bind(items, pointers, scalars, starts, sources)(num_threads, between)

    def bind(
        self,
        items: Tensor,
        pointers: Tensor,
        scalars: Tensor,
        starts: Tensor | None = None,
        sources: Tensor | None = None,
        width: int | None = None,
    ) -> TritonLaunch:
        """Check the tables once and keep them for many launches.

        The contents of the tables may change between launches, their sizes and
        addresses may not; in mode "dense" the items are read here, once.

        Args:
            items: Shape (n, 5), int64: variable, offset in variable and slots, offset
                in the gradient, length, scalar row. In row modes an item is one row,
                or has length 0 and does nothing.
            pointers: Shape (variables, tensors), int64, on the device.
            scalars: Shape (rows, len(columns)), float64, on the device.
            starts: In row modes, shape (n + 1,), int64: where the sources of each item
                begin.
            sources: In row modes, int64: row numbers in the gradient, in order of
                appearance for each item.
            width: In row modes, elements of the longest row; read from the items,
                which waits for the device, if None.

        Returns:
            A callable that starts the kernels on the current stream.

        Raises:
            TypeError: If a table has another dtype or is not contiguous.
            ValueError: If a table has the wrong number of columns, or row tables are
                missing.
        """
        tables = {"items": items, "pointers": pointers, "scalars": scalars}
        check_tables(self.key, len(self.columns), kinds=(Tensor,), **tables)
        rows = checked_row_tables(
            self.key, len(self.columns), (Tensor,), starts, sources
        )
        if rows and width is None:
            width = int(items[:, 3].max()) if len(items) else 0
        return TritonLaunch(self, (items, pointers, scalars), rows, width or 0)

    def start(
        self,
        suffix: str,
        grid: tuple[int, int],
        arguments: Sequence[Any],
        num_warps: int = 1,
    ) -> None:
        """Start one of the text's kernels, if it has any program."""
        if grid[0] and grid[1]:
            function = self.names[f"{self._name}{suffix}"]
            function[grid](*arguments, num_warps=num_warps, enable_fp_fusion=False)

    def pass_suffix(self, number: int) -> str:
        """What distinguishes the name of a pass."""
        return pass_name("", number, self.num_passes)


class TritonLaunch:
    """A GPU kernel with its tables: calling it starts it.

    A call waits for nothing and allocates nothing.

    Attributes:
        kernel: The kernel.
        num_items: Items in use, from the front of the table; in row modes it may be
            lowered.
    """

    def __init__(
        self,
        kernel: TritonKernel,
        tables: tuple[Tensor, Tensor, Tensor],
        rows: tuple[Tensor, ...],
        width: int,
    ) -> None:
        items, pointers, scalars = tables
        self.kernel = kernel
        self.num_items = int(items.shape[0])
        self._device = scalars.device
        self._items = items.to(self._device)
        self._tables = (pointers, scalars)
        self._rows = rows
        uses_rows = kernel.program.uses_rows
        self._block = LANES if uses_rows else _ROW_BLOCK if rows else _DENSE_BLOCK
        self._share = _share(width, 4 * self._block) if not uses_rows else 1
        self._pieces = self._items
        self._chunks = self._folds = self._partials = items.new_empty(0)
        if not rows:
            self._cut(items)

    def _cut(self, items: Tensor) -> None:
        """Pieces for all processors, and chunks for the passes that only read."""
        kernel, host = self.kernel, items.numpy(force=True)
        longest = int(host[:, 3].max()) if len(host) else 0
        if kernel.program.uses_rows:
            self._share = _share(longest, 4 * _DENSE_BLOCK)
        else:
            length = piece_length(int(host[:, 3].sum()))
            self._pieces = torch.as_tensor(cut(host, length), device="cpu").to(
                self._device
            )
            self._share = 1
        if kernel.num_passes > 1:
            chunks, folds = chunks_and_folds(host)
            self._chunks = torch.as_tensor(chunks, device="cpu").to(self._device)
            self._folds = torch.as_tensor(folds, device="cpu").to(self._device)
            size = max(len(chunks) * max(map(len, kernel.totals)), 1)
            self._partials = torch.empty(size, dtype=torch.float64, device=self._device)

    def __call__(self, num_threads: int = 1, between: Between | None = None) -> None:
        """Start all kernels on the current stream of the tables' device.

        Args:
            num_threads: Not used; a launch on a CPU takes it.
            between: Called with the number of each reading pass when it was started,
                for example to join the totals of other ranks.
        """
        kernel = self.kernel
        with _on(self._device):
            if kernel.reads_cells:
                self._start_cells("_load_cells")
            for number in range(kernel.num_passes - 1):
                self._derive()
                self._read(number)
                if between is not None:
                    between(number)
            self._derive()
            if kernel.writes_elements:
                self._write()
            if kernel.writes_cells:
                self._start_cells("_store_cells")

    def _derive(self) -> None:
        scalars = self._tables[1]
        if self.kernel.columns.derived:
            self.kernel.start("_derive", (int(scalars.shape[0]), 1), (scalars,))

    def _start_cells(self, suffix: str) -> None:
        self.kernel.start(suffix, (self.num_items, 1), (self._items, *self._tables))

    def _read(self, number: int) -> None:
        kernel, scalars = self.kernel, self._tables[1]
        arguments = (self._chunks, *self._tables, self._partials)
        kernel.start(kernel.pass_suffix(number), (len(self._chunks), 1), arguments, 2)
        folding = (self._folds, self._partials, scalars)
        kernel.start(f"_fold{number}", (len(self._folds), 1), folding)

    def _write(self) -> None:
        count = self.num_items if self._rows else len(self._pieces)
        arguments = (self._pieces, *self._tables, *self._rows, self._block)
        self.kernel.start("", (count, self._share), arguments, 1 if self._rows else 4)


def _share(length: int, unit: int) -> int:
    """Programs that share one item."""
    return max(1, min(-(-length // unit), _MOST_COLUMNS))


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
