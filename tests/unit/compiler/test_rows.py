"""Touched rows: grouped in order of appearance, checked before anything is added."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from thalweg.compiler import RowTables, RowWalk

KERNEL = ctypes.CFUNCTYPE(
    None,
    ctypes.c_int64,
    ctypes.POINTER(ctypes.c_int64),
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_int64),
    ctypes.POINTER(ctypes.c_int64),
)


@pytest.fixture
def tables() -> RowTables:
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


def test_tables_are_filled_anew_and_grow(tables: RowTables) -> None:
    tables.append(torch.arange(10), num_rows=10, width=1, variable=0)
    tables.clear()
    tables.append(torch.arange(5), num_rows=10, width=1, variable=0)
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


# -- walks --------------------------------------------------------------------

Row = tuple[int, int, tuple[int, ...]]


class Recorder:
    """A kernel that notes which rows it is given, with the positions of each."""

    def __init__(self, count: int) -> None:
        self.calls: list[list[Row]] = []
        self.derived: list[int] = []
        self._function = KERNEL(self._run)
        pointers, scalars = np.zeros((count, 2), np.int64), np.zeros((count, 1))
        walk = RowWalk.of(self._function, pointers, scalars)
        if walk is None:
            pytest.skip("needs a C compiler")
        self.walk = walk

    def _run(
        self,
        num_items: int,
        items: Sequence[int],
        _pointers: object,
        _scalars: object,
        num_rows: int,
        num_threads: int,
        starts: Sequence[int],
        sources: Sequence[int],
    ) -> None:
        assert num_threads == 1
        if num_rows:
            self.derived.append(num_rows)
        rows: list[Row] = []
        for number in range(num_items):
            variable, offset, gradient, width, scalar = items[
                5 * number : 5 * number + 5
            ]
            assert (gradient, scalar) == (0, variable)
            assert offset % width == 0
            found = tuple(sources[starts[number] : starts[number + 1]])
            rows.append((variable, offset // width, found))
        self.calls += [rows] if rows else []


def indices_like(kind: str, count: int, num_rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    drawn = torch.randint(num_rows, (count,), generator=generator)
    if kind == "few":
        return drawn % 3
    if kind == "skewed":
        return torch.where(drawn % 3 == 0, drawn, num_rows // 2)
    return drawn.sort().values if kind == "ascending" else drawn


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("kind", ["spread", "few", "skewed", "ascending"])
@pytest.mark.parametrize("width", [1, 64, 5000, 20_000])
def test_a_walk_visits_every_row_once(
    kind: str, width: int, dtype: torch.dtype
) -> None:
    shapes = [(300, width), (2**20, width), (2**31 - 1, width)]
    recorder = Recorder(len(shapes))
    recorder.walk.bind(shapes)
    for counts in ((1, 700, 40), (1500, 127, 129), (128, 256, 1)):
        given = [
            indices_like(kind, count, num_rows).to(dtype)
            for count, (num_rows, _) in zip(counts, shapes, strict=True)
        ]
        recorder.walk.sort(given, 2)
        recorder.walk(1)
        visited = [row for call in recorder.calls for row in call]
        expected = [
            (number, index, tuple(positions))
            for number, indices in enumerate(given)
            for index, positions in sorted(by_hand(indices.tolist()).items())
        ]
        assert visited == expected
        recorder.calls.clear()
    assert recorder.derived == [3, 3, 3]


def test_long_rows_are_shared_one_by_one() -> None:
    recorder = Recorder(1)
    recorder.walk.bind([(50, 10_000)])
    recorder.walk.sort([torch.arange(20)], 1)
    recorder.walk(1)
    assert [len(call) for call in recorder.calls] == [1] * 20


@pytest.mark.parametrize("num_rows", [1, 2, 1024, 1025, 2**40, 2**62])
def test_a_walk_takes_tables_of_any_size(num_rows: int) -> None:
    recorder = Recorder(1)
    recorder.walk.bind([(num_rows, 1)])
    indices = indices_like("spread", 90, num_rows)
    recorder.walk.sort([torch.cat([indices, indices])], 1)
    recorder.walk(1)
    visited = [index for call in recorder.calls for _, index, _ in call]
    assert visited == sorted(set(indices.tolist()))


@pytest.mark.parametrize("wrong", [-1, 4, 2**40])
def test_a_walk_refuses_indices_out_of_range(wrong: int) -> None:
    recorder = Recorder(2)
    recorder.walk.bind([(9, 2), (4, 2)])
    right = torch.tensor([8, 0])
    with pytest.raises(IndexError, match=f"{wrong} at position 1"):
        recorder.walk.sort([right, torch.tensor([3, wrong, 0])], 2)
    recorder.walk.sort([right, torch.tensor([3])], 2)
    recorder.walk(1)
    assert recorder.calls == [[(0, 0, (1,)), (0, 8, (0,))], [(1, 3, (0,))]]
