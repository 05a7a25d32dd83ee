"""Tables of GPU kernels: pieces of items, touched rows, uploads."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch

from tests.codegen.bits import same_bits, scalar_table
from tests.codegen.triton_runs import interpreted, run_rows
from thalweg.compiler import KernelKey, RowTables, Rule
from thalweg.compiler.triton_rows import DeviceRowTables
from thalweg.compiler.triton_tables import (
    Upload,
    chunks_and_folds,
    cut,
    is_capturing,
    piece_length,
)

ITEMS = np.array([[0, 0, 7, 2500, 0], [1, 5, 0, 0, 1], [2, 64, 64, 1024, 2]])


def test_pieces_cover_every_element_once() -> None:
    pieces = cut(ITEMS, 1024)
    assert pieces[:, 3].tolist() == [1024, 1024, 452, 1024]
    assert pieces[:, 1].tolist() == [0, 1024, 2048, 64]
    assert pieces[:, 2].tolist() == [7, 1031, 2055, 64]
    assert pieces[:, 0].tolist() == [0, 0, 0, 2]
    assert ITEMS[0, 3] == 2500


def test_pieces_of_a_huge_item_have_offsets_of_64_bits() -> None:
    pieces = cut(np.array([[0, 0, 0, 3 * 2**31, 0]]), 2**28)
    assert len(pieces) == 24
    assert pieces[-1, 1] == 3 * 2**31 - 2**28


def test_no_item_is_no_piece() -> None:
    assert cut(np.zeros((0, 5), dtype=np.int64), 1024).shape == (0, 5)


def test_small_work_is_for_many_programs_too() -> None:
    assert piece_length(0) == 1024
    assert piece_length(2**40) == 16384


def test_folds_know_the_chunks_of_each_variable() -> None:
    items = np.array([[0, 0, 0, 40_000, 1], [1, 0, 0, 0, 0], [0, 49152, 49152, 5, 1]])
    chunks, folds = chunks_and_folds(items)
    assert chunks[:, 3].tolist() == [16384, 16384, 7232, 5]
    assert folds.tolist() == [[0, 0, 0], [1, 0, 4]]


def test_an_upload_copies_what_is_there_at_the_call() -> None:
    table, values = torch.zeros(3, 4), torch.empty(3, 4)
    upload = Upload(table)
    for number in (1.0, 2.0):
        upload(values.fill_(number))
    values.fill_(3.0)
    assert table.tolist() == [[2.0] * 4] * 3
    assert not is_capturing(table.device)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_device_rows_have_the_sources_of_the_others(kind: torch.dtype) -> None:
    indices = torch.randint(0, 12, (40,), dtype=kind)
    here, there = RowTables(), DeviceRowTables("cpu")
    for rows in (here, there):
        rows.append(indices, num_rows=12, width=3, variable=4, scalar_row=2)
        rows.append(indices[:9], num_rows=12, width=5, variable=1, gradient_offset=60)

    def touched(rows: Any) -> dict[tuple[int, ...], list[int]]:
        items, starts = rows.items.tolist(), rows.starts.tolist()
        sources = rows.sources.tolist()
        return {
            tuple(item): sources[starts[number] : starts[number + 1]]
            for number, item in enumerate(items)
            if item[3]
        }

    assert touched(here) == touched(there)
    assert there.width == 5
    there.check()


def test_device_rows_are_reused_and_grow() -> None:
    rows = DeviceRowTables("cpu")
    rows.append(torch.arange(8), num_rows=9, width=2, variable=0)
    place = rows.items.data_ptr()
    rows.clear()
    rows.append(torch.tensor([5, 5]), num_rows=9, width=2, variable=0)
    assert rows.items.data_ptr() == place
    assert rows.starts.tolist() == [0, 2, 2]
    rows.append(torch.arange(9), num_rows=9, width=2, variable=1)
    assert rows.starts[:4].tolist() == [0, 2, 2, 3]
    assert rows.items[0].tolist() == [0, 10, 0, 2, 0]
    rows.append(torch.arange(0), num_rows=9, width=2, variable=1)
    assert rows.num_items == 11


def test_tables_of_a_captured_step_outlive_larger_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = DeviceRowTables("cpu")
    found: list[Any] = []

    def fill(count: int, *, captured: bool) -> list[int]:
        module = "thalweg.compiler.triton_rows.is_capturing"
        monkeypatch.setattr(module, lambda device: captured)
        rows.clear()
        rows.append(torch.arange(count), num_rows=99, width=4, variable=0)
        tables = rows.items, rows.starts, rows.sources
        found.append([weakref.ref(t.untyped_storage()) for t in tables])
        return rows.starts.tolist()

    fill(3, captured=False)
    fill(3, captured=True)
    fill(40, captured=False)
    fill(90, captured=True)
    rows._starts[0] = 7  # as if it had not been written, as in a graph
    assert fill(2, captured=True) == [0, 1, 2]
    rows._starts[0] = 7
    assert fill(2, captured=False) == [0, 1, 2]
    fill(98, captured=False)
    assert all(reference() is not None for step in found for reference in step)


@pytest.mark.parametrize("wrong", [-1, 6])
def test_a_wrong_index_touches_nothing_and_is_told(wrong: int) -> None:
    rows = DeviceRowTables("cpu")
    rows.append(torch.tensor([2, wrong, 2]), num_rows=6, width=4, variable=0)
    assert sorted(rows.items[:, 3].tolist()) == [0, 0, 4]
    assert not rows.valid
    with pytest.raises(IndexError, match="indices from 0"):
        rows.check()
    rows.clear()
    assert rows.valid
    with pytest.raises(TypeError, match="vector of int32 or int64"):
        rows.append(torch.ones(2), num_rows=6, width=4, variable=0)


def momentum(var: Any, m: Any, grad: Any, *, lr: Any) -> tuple[Any, Any]:
    m_new = m + 0.1 * (grad - m)
    return var - lr * m_new, m_new


@pytest.mark.parametrize("mode", ["sum", "sequence"])
def test_kernels_take_the_rows_of_a_device(mode: Any) -> None:
    kernel = interpreted(KernelKey(Rule.of(momentum), (), (torch.float32,) * 3, mode))
    indices = torch.randint(0, 6, (15,))
    tensors = [torch.randn(6, 20), torch.randn(6, 20), torch.randn(15, 20)]
    expected = run_rows(kernel, tensors, indices, {"lr": 0.5})
    rows = DeviceRowTables("cpu")
    rows.append(indices, num_rows=6, width=20, variable=0)
    pointers = torch.tensor([[tensor.data_ptr() for tensor in tensors]])
    table = scalar_table(kernel, {"lr": 0.5}, 120, 20)  # pyright: ignore[reportArgumentType] - it has columns as well
    kernel.bind(
        rows.items, pointers, table, rows.starts, rows.sources, width=rows.width
    )()
    for new, wanted in zip(tensors, expected, strict=True):
        assert same_bits(new, wanted)
