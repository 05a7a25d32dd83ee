"""Clipping against the formulas, written in float64."""

from __future__ import annotations

import math

import pytest
import torch

from thalweg.gradients import (
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    global_norm,
)
from thalweg.state import IndexedSlices

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def pairs(dtype=torch.float32):
    return [
        (torch.tensor([3.0, -4.0], dtype=dtype), "a"),
        (None, "b"),
        (torch.tensor(12.0, dtype=dtype), "c"),
    ]


def rows(dtype=torch.float32):
    values = torch.tensor([[3.0], [4.0]], dtype=dtype)
    return IndexedSlices(values, torch.tensor([1, 1]), (3, 1))


def values(clipped):
    return [None if g is None else g.double().tolist() for g, _ in clipped]


@pytest.mark.parametrize("dtype", DTYPES)
def test_by_value(dtype):
    given = pairs(dtype)
    clipped = clip_by_value(iter(given), 3.5)
    assert values(clipped) == [[3.0, -3.5], None, 3.5]
    assert [v for _, v in clipped] == ["a", "b", "c"]
    assert clipped[0][0].dtype == dtype
    assert given[0][0].tolist() == [3.0, -4.0]


def test_by_value_keeps_nan():
    ((grad, _),) = clip_by_value([(torch.tensor([math.nan, math.inf]), None)], 1.0)
    assert math.isnan(grad[0])
    assert grad[1] == 1.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_by_norm(dtype):
    clipped = clip_by_norm(pairs(dtype), 10.0)
    assert values(clipped) == [[3.0, -4.0], None, 10.0]
    assert clipped[2][0].dtype == dtype


def test_by_norm_shortens_to_the_bound():
    given = torch.linspace(-3, 5, 1001)
    ((grad, _),) = clip_by_norm([(given, None)], 0.25)
    wanted = given.double() * 0.25 / given.double().norm()
    torch.testing.assert_close(grad.double(), wanted, rtol=3e-7, atol=0)


def test_by_global_norm():
    clipped = clip_by_global_norm(pairs(), 6.5)
    assert values(clipped) == [[1.5, -2.0], None, 6.0]
    assert values(clip_by_global_norm(pairs(), 13.0)) == [[3.0, -4.0], None, 12.0]


def test_by_global_norm_with_a_known_norm():
    clipped = clip_by_global_norm(pairs(), 1.0, use_norm=torch.tensor(2.0))
    assert values(clipped) == [[1.5, -2.0], None, 6.0]


def test_infinite_norm_gives_nan_everywhere():
    given = [(torch.tensor([1.0]), 0), (torch.tensor([math.inf]), 1)]
    assert all(g.isnan().all() for g, _ in clip_by_global_norm(given, 1.0))


def test_rows_are_clipped_before_duplicates_are_summed():
    by_value = clip_by_value([(rows(), None)], 3.5)[0][0]
    by_norm = clip_by_norm([(rows(), None)], 2.5)[0][0]
    both = clip_by_global_norm([(rows(), None), (torch.tensor(12.0), None)], 6.5)
    assert by_value.values.flatten().tolist() == [3.0, 3.5]
    assert by_norm.values.flatten().tolist() == [1.5, 2.0]
    assert both[0][0].values.flatten().tolist() == [1.5, 2.0]
    assert both[0][0].indices.tolist() == [1, 1]


def test_norm_of_halves_does_not_overflow():
    grad = torch.full((4,), 60000.0, dtype=torch.float16)
    norm = global_norm([grad])
    assert norm.dtype == torch.float32
    assert norm.item() == 120000.0
    ((clipped, _),) = clip_by_norm([(grad, None)], 1.0)
    assert clipped.tolist() == [0.5] * 4


def test_norm_of_mixed_dtypes_is_the_widest():
    norm = global_norm([torch.tensor(3.0), torch.tensor(4.0, dtype=torch.float64)])
    assert norm.dtype == torch.float64
    assert norm.item() == 5.0


@pytest.mark.parametrize("clip", [clip_by_norm, clip_by_global_norm])
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_gradients_are_shortened_to_the_bound(clip, dtype):
    # In float32 a sum of so many equal squares stops growing.
    long = torch.full((3_000_001,), 1e-3, dtype=dtype)
    ((clipped, _),) = clip([(long, None)], 1.0)
    expected = long.double() / long.double().square().sum().sqrt()
    torch.testing.assert_close(clipped, expected.to(dtype), rtol=2e-7, atol=0.0)


@pytest.mark.parametrize("clip", [clip_by_norm, clip_by_global_norm])
def test_squares_that_float32_cannot_hold(clip):
    ((clipped, _),) = clip([(torch.full((4,), 1e25), None)], 1.0)
    assert clipped.tolist() == [0.5] * 4
    ((clipped, _),) = clip([(torch.full((4,), 1e-25), None)], 1e-25)
    torch.testing.assert_close(clipped, torch.full((4,), 5e-26), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("clip", [clip_by_norm, clip_by_global_norm])
@pytest.mark.parametrize("size", [0, 1, 100, 16_384, 70_000])
def test_norms_know_neither_strides_nor_threads(clip, size):
    whole = torch.randn(size, 4, dtype=torch.float64)
    ((expected, _),) = clip([(whole, None)], 0.1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        ((clipped, _),) = clip([(whole.t().contiguous().t(), None)], 0.1)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(clipped, expected)


@pytest.mark.parametrize("clip", [clip_by_value, clip_by_norm, clip_by_global_norm])
def test_bound_of_zero(clip):
    zeros = (torch.zeros(2), None)
    for grad, _ in clip([(torch.tensor([3.0, -4.0]), None), zeros], 0.0):
        assert not grad.any()


@pytest.mark.parametrize("clip", [clip_by_value, clip_by_norm, clip_by_global_norm])
@pytest.mark.parametrize("bound", [-1.0, math.nan])
def test_bound_refused(clip, bound):
    with pytest.raises(ValueError, match="a bound >= 0"):
        clip(pairs(), bound)


@pytest.mark.parametrize("clip", [clip_by_value, clip_by_norm, clip_by_global_norm])
def test_nothing_to_clip(clip):
    assert clip([], 1.0) == []
    assert clip([(None, "v")], 1.0) == [(None, "v")]


def test_global_norm_of_nothing():
    assert global_norm([]).item() == 0.0
    assert global_norm([None]).item() == 0.0
