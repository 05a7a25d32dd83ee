"""Scatter ops on integers, where nothing may be rounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import thalweg as tw

BIG = 2**24 + 1  # the first integer that float32 cannot hold


def scattered(op: str, start: Any, indices: Any, updates: Any, dtype: Any) -> list[Any]:
    resource = tw.Variable(torch.tensor(start, dtype=dtype))
    updates = torch.tensor(updates, dtype=dtype)
    getattr(tw.raw_ops, f"ResourceScatter{op}")(
        resource=resource.handle, indices=torch.tensor(indices), updates=updates
    )
    return resource.tolist()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("Add", [BIG + 5, -7]),
        ("Sub", [BIG - 5, -7]),
        ("Mul", [BIG * 6, -7]),
        ("Div", [BIG // 6, -7]),
        ("Min", [2, -7]),
        ("Max", [BIG, -7]),
        ("Update", [3, -7]),
    ],
)
def test_integers_are_exact(op: str, expected: list[int], dtype: torch.dtype) -> None:
    assert scattered(op, [BIG, -7], [0, 0], [2, 3], dtype) == expected


def test_integers_are_divided_towards_zero() -> None:
    start, updates = [7, -7, 7, -7], [2, 2, -2, -2]
    quotients = scattered("Div", start, [0, 1, 2, 3], updates, torch.int64)
    assert quotients == [3, -3, -3, 3]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_smallest_integer_divided_by_minus_one_wraps(dtype: torch.dtype) -> None:
    smallest = torch.iinfo(dtype).min
    assert scattered("Div", [smallest], [0], [-1], dtype) == [smallest]


def test_division_by_zero_is_refused_before_writing() -> None:
    resource = tw.Variable(torch.tensor([6, 7, 8]))
    with pytest.raises(ValueError, match="must not contain 0"):
        tw.raw_ops.ResourceScatterDiv(
            resource=resource.handle, indices=[0, 1], updates=torch.tensor([2, 0])
        )
    assert resource.tolist() == [6, 7, 8]


def test_floats_too_are_not_divided_by_zero() -> None:
    variable = torch.tensor([1.0, -1.0])
    with pytest.raises(ValueError, match="must not contain 0"):
        tw.raw_ops.ResourceScatterDiv(
            resource=variable, indices=[0, 1], updates=torch.tensor([2.0, 0.0])
        )
    assert variable.tolist() == [1.0, -1.0]


def test_the_largest_byte_is_no_minus_one() -> None:
    assert scattered("Div", [95], [0], [255], torch.uint8) == [0]


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_integers_that_torch_cannot_select_are_copied(dtype: torch.dtype) -> None:
    table = torch.tensor([[95, 2], [7, 8]], dtype=dtype)
    updates = torch.tensor([[1, 2], [40_000, 4]], dtype=dtype)
    tw.raw_ops.ResourceScatterUpdate(resource=table, indices=[0, 0], updates=updates)
    assert table.tolist() == [[40_000, 4], [7, 8]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.uint8])
def test_update_takes_any_dtype(dtype: torch.dtype) -> None:
    assert scattered("Update", [0, 1, 0], [2, 1], [1, 0], dtype) == [0, 0, 1]


def test_indices_of_any_rank_and_scalars_for_all() -> None:
    table = tw.Variable(torch.zeros(3, 2, dtype=torch.int64))
    tw.raw_ops.ResourceScatterAdd(
        resource=table, indices=torch.tensor([[0, 2], [2, 2]]), updates=1
    )
    assert table.tolist() == [[1, 1], [0, 0], [3, 3]]
    tw.raw_ops.ResourceScatterMul(resource=table, indices=2, updates=[5, 7])
    assert table.tolist() == [[1, 1], [0, 0], [15, 21]]


@pytest.mark.parametrize("op", ["Add", "Min"])
def test_other_dtypes_and_shapes_are_refused(op: str) -> None:
    resource = tw.Variable(torch.tensor([1, 2]))
    door = getattr(tw.raw_ops, f"ResourceScatter{op}")
    with pytest.raises(ValueError, match="dtype"):
        door(resource=resource, indices=[0], updates=torch.tensor([1.0]))
    with pytest.raises(ValueError, match="prefix"):
        door(resource=resource, indices=[0], updates=torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="indices"):
        door(resource=resource, indices=torch.tensor([0.5]), updates=1)
    with pytest.raises(TypeError, match="resource"):
        door(resource=[1, 2], indices=[0], updates=1)
    assert resource.tolist() == [1, 2]


@pytest.mark.parametrize("op", ["Add", "Div", "Max", "Min", "Mul", "Sub"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_what_is_no_number_is_not_reckoned_with(op: str, dtype: torch.dtype) -> None:
    resource = torch.ones(3).to(dtype)
    with pytest.raises(ValueError, match=f"ResourceScatter{op}: resource: expected"):
        getattr(tw.raw_ops, f"ResourceScatter{op}")(
            resource=resource, indices=[0], updates=torch.ones(1).to(dtype)
        )
    expected = torch.ones(3).to(dtype)
    assert torch.equal(resource.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_small_integers_wrap_around(dtype: torch.dtype) -> None:
    most = torch.iinfo(dtype).max
    assert scattered("Add", [most], [0, 0], [1, 1], dtype) == [
        torch.iinfo(dtype).min + 1
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_division_by_zero_is_refused_after_calls_that_were_right(
    dtype: torch.dtype,
) -> None:
    resource = torch.full((3, 2), 8.0, dtype=dtype)
    divide = tw.raw_ops.ResourceScatterDiv
    indices, right = torch.tensor([0, 1]), torch.full((2, 2), 2.0, dtype=dtype)
    for _ in range(2):
        divide(resource=resource, indices=indices, updates=right)
    wrong = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=dtype)
    for _ in range(2):
        with pytest.raises(ValueError, match="must not contain 0"):
            divide(resource=resource, indices=indices, updates=wrong)
    divide(resource=resource, indices=indices, updates=right)
    assert resource.tolist() == [[1.0, 1.0], [1.0, 1.0], [8.0, 8.0]]
