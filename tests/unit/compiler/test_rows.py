"""Touched rows: grouped in order of appearance, checked before anything is added."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from thalweg.compiler import RowTables, rows
from thalweg.compiler.build import find_compiler


@pytest.fixture(params=["c", "numpy"])
def tables(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> RowTables:
    if request.param == "numpy":
        monkeypatch.setattr(rows, "_functions", dict)
    elif find_compiler() is None:
        pytest.skip("needs a C compiler")
    return RowTables()


def by_hand(indices: list[int]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for position, index in enumerate(indices):
        groups.setdefault(index, []).append(position)
    return groups


def groups_of(tables: RowTables, width: int, first: int = 0) -> dict[int, list[int]]:
    starts, sources = tables.starts.tolist(), tables.sources.tolist()
    offsets = tables.items[:, 1].tolist()
    return {
        offsets[n] // width: sources[starts[n] : starts[n + 1]]
        for n in range(first, tables.num_items)
    }


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_rows_ascend_and_keep_the_order_of_their_gradients(
    tables: RowTables, dtype: torch.dtype, count: int
) -> None:
    indices = torch.randint(0, 300, (count,), dtype=dtype)
    tables.append(indices, num_rows=300, width=8, variable=2, scalar_row=5)
    expected = by_hand(indices.tolist())
    assert groups_of(tables, 8) == expected
    assert list(groups_of(tables, 8)) == sorted(expected)
    assert tables.num_elements == 8 * count
    assert tables.items[:, [0, 2, 3, 4]].unique(dim=0).tolist() == [[2, 0, 8, 5]]


@pytest.mark.parametrize("num_rows", [1, 2, 256, 4097, 10**6, 2**31 - 1, 2**62])
@pytest.mark.parametrize("count", [40, 700])
def test_indices_of_any_size_are_sorted(
    tables: RowTables, num_rows: int, count: int
) -> None:
    generator = torch.Generator().manual_seed(count)
    indices = torch.randint(num_rows, (count,), generator=generator)
    indices[: count // 2] = indices[count // 2 :]
    tables.append(indices, num_rows=num_rows, width=1, variable=0)
    assert groups_of(tables, 1) == by_hand(indices.tolist())
    assert tables.items[:, 1].tolist() == sorted(set(indices.tolist()))


def test_ascending_indices_are_taken_as_they_are(tables: RowTables) -> None:
    tables.append(torch.tensor([0, 0, 3, 8, 8]), num_rows=9, width=1, variable=0)
    assert groups_of(tables, 1) == {0: [0, 1], 3: [2], 8: [3, 4]}


def test_a_second_variable_is_appended(tables: RowTables) -> None:
    tables.append(torch.tensor([4, 4, 1]), num_rows=5, width=2, variable=0)
    tables.append(
        torch.tensor([0, 3, 0]), num_rows=4, width=3, variable=1, gradient_offset=6
    )
    assert tables.items.tolist() == [
        [0, 2, 0, 2, 0], [0, 8, 0, 2, 0], [1, 0, 6, 3, 0], [1, 9, 6, 3, 0],
    ]  # fmt: skip
    assert tables.starts.tolist() == [0, 1, 3, 5, 6]
    assert tables.sources.tolist() == [2, 0, 1, 0, 2, 1]


def test_tables_are_reused_and_grow(tables: RowTables) -> None:
    tables.append(torch.arange(10), num_rows=10, width=1, variable=0)
    address = tables.items.data_ptr()
    tables.clear()
    tables.append(torch.arange(5), num_rows=10, width=1, variable=0)
    assert tables.items.data_ptr() == address
    assert tables.starts.tolist() == list(range(6))
    tables.append(torch.arange(50), num_rows=50, width=1, variable=1)
    assert tables.num_items == 55
    assert tables.items[:5, 1].tolist() == list(range(5))


@pytest.mark.parametrize(
    ("indices", "part"), [([0, 3, -1], "-1 at position 2"), ([0, 9], "9 at position 1")]
)
def test_an_index_out_of_range_adds_nothing(
    tables: RowTables, indices: list[int], part: str
) -> None:
    tables.append(torch.tensor([1]), num_rows=4, width=1, variable=0)
    with pytest.raises(IndexError) as caught:
        tables.append(torch.tensor(indices), num_rows=4, width=1, variable=0)
    assert part in str(caught.value)
    assert tables.num_items == 1
    assert tables.starts.tolist() == [0, 1]


@pytest.mark.parametrize("indices", [torch.tensor([1.0]), torch.tensor([[1]])])
def test_indices_must_be_a_vector_of_integers(
    tables: RowTables, indices: Tensor
) -> None:
    with pytest.raises(TypeError, match="a vector of int32 or int64"):
        tables.append(indices, num_rows=4, width=1, variable=0)


def test_no_indices_add_no_items(tables: RowTables) -> None:
    tables.append(torch.empty(0, dtype=torch.int64), num_rows=4, width=1, variable=0)
    assert tables.num_items == 0
    assert tables.starts.tolist() == [0]
