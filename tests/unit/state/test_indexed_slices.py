"""Rows of gradients."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from thalweg.state import IndexedSlices, Variable, as_gradient, convert_to_tensor


def rows(indices: list[int], num_rows: int = 5, width: int = 2) -> IndexedSlices:
    count = len(indices)
    values = torch.arange(count * width, dtype=torch.float32).reshape(count, width) + 1
    places = torch.tensor(indices, dtype=torch.int64)
    return IndexedSlices(values, places, (num_rows, width))


def summed_by_hand(slices: IndexedSlices) -> tuple[list[int], torch.Tensor]:
    sums: dict[int, torch.Tensor] = {}
    for index, value in zip(slices.indices.tolist(), slices.values, strict=True):
        wide = value.float() if value.dtype.itemsize == 2 else value.clone()
        sums[index] = sums[index] + wide if index in sums else wide
    values = torch.stack(list(sums.values())).to(slices.dtype)
    return list(sums), values


def test_attributes() -> None:
    slices = rows([3, 1])
    assert (slices.shape, slices.dense_shape) == ((5, 2), (5, 2))
    assert (slices.dtype, slices.device.type) == (torch.float32, "cpu")
    assert "2 rows of shape (2,)" in repr(slices)
    assert IndexedSlices(slices.values, slices.indices).shape is None


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("row_shape", [(), (3,), (2, 3)])
def test_duplicates_are_added_in_order_of_appearance(
    row_shape: tuple[int, ...], dtype: torch.dtype, index_dtype: torch.dtype
) -> None:
    scales = torch.logspace(-6, 6, 200).reshape(200, *[1] * len(row_shape))
    values = (torch.randn(200, *row_shape) * scales).to(dtype)
    indices = torch.randint(0, 9, (200,), dtype=index_dtype)
    slices = IndexedSlices(values, indices, (9, *row_shape))
    unique = slices.sum_duplicates()
    expected_rows, expected = summed_by_hand(slices)
    assert unique.indices.tolist() == expected_rows
    assert unique.indices.dtype == index_dtype
    assert torch.equal(unique.values, expected)
    assert unique.dense_shape == slices.dense_shape


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=30))
def test_sum_and_dense_agree(indices: list[int]) -> None:
    slices = rows(indices, num_rows=7)
    unique = slices.sum_duplicates()
    assert unique.indices.tolist() == list(dict.fromkeys(indices))
    expected = torch.zeros(7, 2)
    for index, value in zip(indices, slices.values, strict=True):
        expected[index] += value
    assert torch.equal(unique.to_dense(), expected)
    assert torch.equal(slices.to_dense(), expected)
    at_first = slices.sum_at_first()
    assert torch.equal(at_first.indices, slices.indices)
    places = [indices.index(index) for index in unique.indices.tolist()]
    assert torch.equal(at_first.values[places], unique.values)
    others = [place for place in range(len(indices)) if place not in places]
    assert not at_first.values[others].any()


def test_halves_are_rounded_once() -> None:
    values = torch.full((257, 1), 1.0, dtype=torch.bfloat16)
    slices = IndexedSlices(values, torch.zeros(257, dtype=torch.int64), (1, 1))
    # Rounded at every addition, the sum would stop at 256 long before a 300th row.
    more = IndexedSlices(
        torch.ones(300, 1, dtype=torch.bfloat16), torch.zeros(300, dtype=torch.int64)
    )
    assert slices.to_dense().item() == 256
    assert more.sum_duplicates().values.item() == 300
    assert more.sum_at_first().values[0].item() == 300


def test_single_rows_keep_every_bit() -> None:
    values = torch.tensor([[-0.0], [float("inf")], [1.0], [float("nan")]])
    unique = IndexedSlices(values, torch.tensor([0, 1, 2, 2])).sum_duplicates()
    assert torch.signbit(unique.values[0]).item()
    assert unique.values[1].item() == float("inf")
    assert unique.values[2].isnan().item()


def test_no_row_and_no_duplicate() -> None:
    empty = IndexedSlices(torch.empty(0, 3), torch.empty(0, dtype=torch.int32), (4, 3))
    assert empty.sum_duplicates() is empty
    assert torch.equal(empty.to_dense(), torch.zeros(4, 3))
    different = rows([2, 0])
    assert different.sum_duplicates() is different
    nothing = IndexedSlices(
        torch.empty(0, 3), torch.empty(0, dtype=torch.int32), (0, 3)
    )
    assert nothing.to_dense().shape == (0, 3)


def test_gradients_flow_through_a_sum() -> None:
    values = torch.ones(3, 1, requires_grad=True)
    slices = IndexedSlices(values, torch.tensor([1, 0, 1]), (2, 1))
    (slices.to_dense() * torch.tensor([[2.0], [3.0]])).sum().backward()
    assert values.grad is not None
    assert values.grad.flatten().tolist() == [3.0, 2.0, 3.0]


def test_sparse_tensors_keep_order_and_duplicates() -> None:
    slices = rows([3, 1, 3])
    sparse = slices.to_sparse()
    assert not sparse.is_coalesced()
    back = IndexedSlices.from_sparse(sparse)
    assert back.indices.tolist() == [3, 1, 3]
    assert torch.equal(back.values, slices.values)
    assert back.dense_shape == (5, 2)
    assert torch.equal(sparse.to_dense(), slices.to_dense())
    coalesced = IndexedSlices.from_sparse(sparse.coalesce())
    assert torch.equal(coalesced.to_dense(), slices.to_dense())


def test_an_embedding_gradient() -> None:
    table = nn.Embedding(6, 2, sparse=True)
    table(torch.tensor([[4, 4], [0, 4]])).sum().backward()
    gradient = as_gradient(table.weight.grad)
    assert isinstance(gradient, IndexedSlices)
    assert gradient.indices.tolist() == [4, 4, 0, 4]
    assert gradient.to_dense()[4].tolist() == [3.0, 3.0]


def test_other_gradients_stay_as_they_are() -> None:
    dense, slices = torch.ones(2), rows([0])
    assert as_gradient(dense) is dense
    assert as_gradient(slices) is slices
    assert as_gradient(None) is None


def test_gradients_sparse_in_more_dimensions_become_dense() -> None:
    matrix = torch.zeros(3, 4, requires_grad=True)
    picked = torch.gather(matrix, 1, torch.tensor([[1], [1], [2]]), sparse_grad=True)
    picked.sum().backward()
    assert matrix.grad is not None
    assert matrix.grad.layout == torch.sparse_coo
    gradient = as_gradient(matrix.grad)
    assert gradient.layout == torch.strided
    assert gradient[:, 1].tolist() == [1.0, 1.0, 0.0]


def test_convert_to_tensor() -> None:
    slices = rows([1, 1])
    assert torch.equal(convert_to_tensor(slices), slices.to_dense())
    assert torch.equal(convert_to_tensor(slices.to_sparse()), slices.to_dense())
    variable = Variable([1.0])
    assert convert_to_tensor(variable) is variable
    assert convert_to_tensor([1, 2]).tolist() == [1, 2]


def test_other_values_and_devices() -> None:
    slices = rows([1, 0])
    doubled = slices.with_values(slices.values * 2)
    assert doubled.indices is slices.indices
    assert doubled.values[0].tolist() == [2.0, 4.0]
    assert slices.to("cpu") is slices
    moved = slices.to("meta")
    assert (moved.device.type, moved.indices.device.type) == ("meta", "meta")
    with pytest.raises(ValueError, match="Give one index for each row"):
        slices.with_values(torch.ones(3, 2))


def test_copies_and_pickle() -> None:
    slices = rows([1, 1])
    for copied in (copy.deepcopy(slices), pickle.loads(pickle.dumps(slices))):
        assert torch.equal(copied.to_dense(), slices.to_dense())


@pytest.mark.parametrize(("bad", "offset"), [([0, -1], 1), ([5, 0], 0)])
def test_indices_out_of_range_are_refused(bad: list[int], offset: int) -> None:
    slices = rows(bad)
    for method in (slices.check_bounds, slices.to_dense, slices.to_sparse):
        with pytest.raises(ValueError, match=rf"\[0, 5\); got indices\[{offset}\]"):
            method()
    rows([0, 4]).check_bounds()
    for kind in (ValueError, IndexError):  # whatever a caller expects of an index
        with pytest.raises(kind, match=r"\[0, 4\); got indices\[1\] = 4"):
            rows([0, 4]).check_bounds(4)


@pytest.mark.parametrize("method", ["to_dense", "to_sparse", "check_bounds"])
def test_an_unknown_shape_is_said(method: str) -> None:
    slices = IndexedSlices(torch.ones(1, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match="expected a known dense_shape"):
        getattr(slices, method)()


@pytest.mark.parametrize(
    ("values", "indices", "shape", "error", "match"),
    [
        ([1.0], torch.tensor([0]), None, TypeError, "values to be a dense tensor"),
        (torch.ones(1), [0], None, TypeError, "indices to be a dense tensor"),
        (torch.ones(1), torch.tensor([0.0]), None, TypeError, "int32 or int64"),
        (torch.ones(1), torch.tensor([True]), None, TypeError, "int32 or int64"),
        (torch.ones(()), torch.tensor([0]), None, ValueError, "one index for each"),
        (torch.ones(2), torch.tensor([0]), None, ValueError, "one index for each"),
        (torch.ones(1), torch.tensor([[0]]), None, ValueError, "one index for each"),
        (
            torch.ones(1, 2),
            torch.tensor([0]),
            (4, 3),
            ValueError,
            r"rows of shape \(3,",
        ),
        (torch.ones(1, device="meta"), torch.tensor([0]), None, ValueError, "device"),
        (torch.ones(1).to_sparse(), torch.tensor([0]), None, TypeError, "from_sparse"),
    ],
)
def test_what_does_not_fit_is_refused(
    values: torch.Tensor,
    indices: torch.Tensor,
    shape: tuple[int, ...] | None,
    error: type[Exception],
    match: str,
) -> None:
    with pytest.raises(error, match=match):
        IndexedSlices(values, indices, shape)


def test_only_rows_can_be_taken_from_sparse_tensors() -> None:
    with pytest.raises(TypeError, match="expected a sparse COO tensor"):
        IndexedSlices.from_sparse(torch.ones(2))
    with pytest.raises(ValueError, match="got 2 sparse dimensions"):
        IndexedSlices.from_sparse(torch.eye(2).to_sparse())
