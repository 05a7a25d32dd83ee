"""Boxes: any division of a shape can be read as any other, element by element."""

import math
import time
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.checkpoint.boxes import (
    Box,
    divide,
    intersection,
    is_grid,
    is_tiling,
    overlaps,
)


def chunks(shape, parts, dimension):
    """The boxes that `torch.chunk` deals out; the last may be smaller or empty."""
    size = shape[dimension]
    each = math.ceil(size / parts)
    boxes = []
    for part in range(parts):
        begin = min(part * each, size)
        offset, extent = [0] * len(shape), list(shape)
        offset[dimension] = begin
        extent[dimension] = min(each, size - begin)
        boxes.append(Box(tuple(offset), tuple(extent)))
    return boxes


def gathered(wanted, stored, values):
    """What `overlaps` says, done to arrays."""
    result = torch.full(wanted.shape, -1)
    for index, source, target in overlaps(wanted, stored):
        result[target] = values[index][source]
    return result


SHAPES = st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple)


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.data())
def test_every_number_of_ranks_reads_what_every_other_wrote(shape, data):
    whole = torch.arange(math.prod(shape)).reshape(shape)
    dimensions = st.integers(0, len(shape) - 1)
    there, here = data.draw(dimensions), data.draw(dimensions)
    for saving, restoring in product(range(1, 5), repeat=2):
        stored = [b for b in chunks(shape, saving, there) if not b.is_empty]
        values = [whole[box.inside(Box.whole(shape))] for box in stored]
        assert is_tiling(shape, stored or [Box.whole(shape)])
        for wanted in chunks(shape, restoring, here):
            expected = whole[wanted.inside(Box.whole(shape))]
            assert torch.equal(gathered(wanted, stored, values), expected)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=1, max_size=5))
def test_a_tiling_holds_every_element_once(corners):
    boxes = [Box((a, b), (c, d)) for a, b, c, d in corners]
    counts = torch.zeros(8, 8)
    for box in boxes:
        counts[box.inside(Box.whole((8, 8)))] += 1
    inside = counts[:3, :3]
    exact = bool((inside == 1).all()) and int(counts.sum()) == 9
    # Four boxes around a fifth hold each element once but do not come apart by cuts:
    # no mesh makes them, and with sizes to 3 there is one such pattern.
    pinwheel = len(boxes) == 5 and exact
    assert is_tiling((3, 3), boxes) <= exact
    if exact and not pinwheel and not any(box.is_empty for box in boxes):
        assert is_tiling((3, 3), boxes)


@pytest.mark.parametrize(
    ("shape", "boxes", "whole"),
    [
        ((), [Box((), ())], True),
        ((), [], False),
        ((0, 3), [Box((0, 0), (0, 3))], True),
        ((0, 3), [], False),
        ((4,), [Box((0,), (2,)), Box((2,), (2,))], True),
        ((4,), [Box((2,), (2,)), Box((0,), (2,))], True),
        ((4,), [Box((0,), (2,)), Box((3,), (1,))], False),
        ((4,), [Box((0,), (2,)), Box((2,), (3,))], False),
        ((4,), [Box((1,), (1,)), Box((2,), (2,))], False),
        ((4,), [Box((0,), (4,)), Box((0,), (4,))], False),
        ((4,), [Box((0,), (4,)), Box((4,), (0,))], False),
        ((2, 2), [Box((0,), (2,)), Box((1,), (1,))], False),
        ((2, 2), [Box((i, j), (1, 1)) for i in range(2) for j in range(2)], True),
    ],
)
def test_tilings(shape, boxes, whole):
    assert is_tiling(shape, boxes) is whole


def mesh(shape, parts):
    """The boxes of a mesh, each dimension cut into so many."""
    spans = [
        chunks((size,), number, 0) for size, number in zip(shape, parts, strict=True)
    ]
    return [
        Box(sum((b.offset for b in box), ()), sum((b.shape for b in box), ()))
        for box in product(*spans)
    ]


def test_boxes_of_any_mesh_are_a_grid_and_none_may_be_another():
    boxes = mesh((7, 5, 3), (3, 2, 1))
    for order in (boxes, boxes[::-1]):
        assert is_grid((7, 5, 3), order)
    assert is_grid((12, 2), mesh((12, 2), (6, 1)))
    for number, box in enumerate(boxes):
        others = [*boxes[:number], *boxes[number + 1 :]]
        assert not is_grid((7, 5, 3), others)
        for dimension in range(3):
            offset = list(box.offset)
            offset[dimension] += 1
            moved = Box(tuple(offset), box.shape)
            assert not is_tiling((7, 5, 3), [*others, moved])
    assert not is_grid((2,), [Box((0,), (1,)), Box((1,), (1,)), Box((2,), (0,))])
    assert not is_grid((2, 2), [Box((0, 0), (2, 2))] * 2)


def test_few_boxes_that_are_no_grid_may_come_apart():
    cut = [Box((0, 0), (2, 4)), Box((2, 0), (2, 1)), Box((2, 1), (2, 3))]
    assert is_tiling((4, 4), cut)
    assert not is_grid((4, 4), cut)


def test_many_hostile_boxes_are_judged_at_once():
    start = time.process_time()
    rows = [Box((i, 0), (1, 4)) for i in range(3_000)]
    assert is_tiling((3_000, 4), rows)
    assert not is_tiling((3_000, 4), [Box((0, 0), (2_999, 4))] * 3_000)
    # A spiral: each cut takes one box off, so that there are as many cuts as boxes.
    spiral = []
    for i in range(500):
        spiral.append(Box((i, i), (1, 1_000)))
        spiral.append(Box((i + 1, i), (1_000, 1)))
    assert not is_tiling((1_000, 1_000), spiral)
    assert time.process_time() - start < 1.0


def test_intersection_is_symmetric_and_none_where_nothing_is_shared():
    left, right = Box((0, 0), (2, 5)), Box((1, 3), (4, 4))
    assert intersection(left, right) == intersection(right, left) == Box((1, 3), (1, 2))
    assert intersection(left, Box((2, 0), (1, 1))) is None
    assert intersection(Box((), ()), Box((), ())) == Box((), ())


def test_each_box_is_written_once_by_the_first_that_holds_it():
    whole, upper, lower = Box((0,), (4,)), Box((0,), (2,)), Box((2,), (2,))
    nothing = Box((4,), (0,))
    offers = [
        {"copied": whole, "sharded": upper, "empty": Box((0,), (0,))},
        {"copied": whole, "sharded": lower, "empty": Box((0,), (0,))},
        {"copied": whole, "sharded": nothing, "own": whole},
        {"copied": whole, "sharded": lower},
    ]
    assert divide(offers) == [
        {"copied": whole, "sharded": upper, "empty": Box((0,), (0,))},
        {"sharded": lower},
        {"own": whole},
        {},
    ]
