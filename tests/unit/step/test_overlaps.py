"""Tensors that share memory, and those that only lie between one another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from thalweg.step.overlaps import (
    are_same_elements,
    first_overlap,
    overlap,
    shares_elements,
)

ROOM = torch.arange(48.0)


def places(tensor: torch.Tensor) -> set[int]:
    """Bytes of all elements, asked of them one by one."""
    offsets = [0]
    for stride, size in zip(tensor.stride(), tensor.shape, strict=True):
        offsets = [o + stride * i for o in offsets for i in range(size)]
    starts = [tensor.data_ptr() + o * tensor.itemsize for o in offsets]
    return {start + byte for start in starts for byte in range(tensor.itemsize)}


def views() -> Iterator[torch.Tensor]:
    for shape, stride in [
        ((6,), (1,)),
        ((4,), (3,)),
        ((2, 3), (3, 1)),
        ((3, 2), (1, 3)),
        ((2, 3), (12, 2)),
        ((2, 1, 3), (12, 5, 2)),
        ((2, 2, 2), (16, 4, 1)),
        ((), ()),
    ]:
        for offset in range(8):
            yield ROOM.as_strided(shape, stride, offset)
    yield ROOM[:8].view(torch.int32)
    yield ROOM[2:5].view(torch.float16)


def test_overlap_is_found_byte_by_byte() -> None:
    seen = [0, 0]
    for some, other in itertools.product(views(), repeat=2):
        expected = bool(places(some) & places(other))
        is_alike = some.stride() == other.stride() and some.dtype == other.dtype
        if is_alike or (some.is_contiguous() and other.is_contiguous()):
            assert overlap(some, other) == expected
            seen[expected] += 1
        else:  # one in the gaps of another may be taken for an overlap
            assert overlap(some, other) >= expected
    assert min(seen) > 50


def test_what_has_no_memory_overlaps_nothing() -> None:
    gone = torch.ones(3)
    gone.untyped_storage().resize_(0)
    for nothing in (ROOM[:0], torch.ones(3, device="meta"), gone):
        assert not overlap(nothing, ROOM)
        assert not overlap(nothing, nothing)


@pytest.mark.parametrize(
    ("shape", "stride", "expected"),
    [
        ((3, 2), (2, 1), False),
        ((3, 2), (1, 3), False),
        ((3, 2), (7, 3), False),
        ((3, 1), (1, 0), False),
        ((0, 3), (0, 0), False),
        ((), (), False),
        ((3, 2), (0, 1), True),
        ((3, 2), (1, 1), True),
        ((2, 2, 2), (3, 2, 1), True),
    ],
)
def test_elements_at_one_place_are_found(
    shape: tuple[int, ...], stride: tuple[int, ...], expected: bool
) -> None:
    assert shares_elements(ROOM.as_strided(shape, stride)) == expected


def test_the_same_elements() -> None:
    square = ROOM[:4].reshape(2, 2)
    assert are_same_elements(square, square.detach())
    for other in (square.T, square[:1], square.view(torch.int32), square.clone()):
        assert not are_same_elements(square, other)


def test_the_first_two_that_overlap_are_named() -> None:
    whole = torch.zeros(8, 4)
    assert first_overlap([]) is None
    assert first_overlap([whole[:, :2], whole[:, 2:], torch.zeros(3)]) is None
    assert first_overlap([whole[6:], torch.zeros(3), whole[:3], whole[2]]) == (2, 3)
    assert first_overlap([whole[4:5], whole]) == (0, 1)
    assert first_overlap([whole[:0], whole, whole[8:]]) is None
