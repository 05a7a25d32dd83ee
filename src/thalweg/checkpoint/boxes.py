"""Boxes of a global shape: who writes which, whether they are whole, who reads what.

A tensor that several ranks hold is stored as boxes, each with its offset in the global
shape. Reading any box out of any set of boxes is a matter of overlaps, so that the
number of ranks that restore need not be the number that saved. Nothing here touches a
tensor, a file or a process.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple, Self

# A box is looked at so often on the average until its tensor's boxes are refused.
MOST_LOOKS: Final = 24


class Box(NamedTuple):
    """A part of a shape: its first index and its extent, dimension by dimension."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Self:
        """The box that is all of a shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def end(self) -> tuple[int, ...]:
        """The first index behind the box, dimension by dimension."""
        return tuple(o + s for o, s in zip(self.offset, self.shape, strict=True))

    @property
    def is_empty(self) -> bool:
        """Whether it holds no element."""
        return 0 in self.shape

    def inside(self, outer: "Box") -> tuple[slice, ...]:
        """The slices that take this box out of an array that is `outer`."""
        starts = (a - b for a, b in zip(self.offset, outer.offset, strict=True))
        return tuple(
            slice(start, start + size)
            for start, size in zip(starts, self.shape, strict=True)
        )


class Overlap(NamedTuple):
    """What one stored box gives to a wanted one."""

    number: int
    source: tuple[slice, ...]
    target: tuple[slice, ...]


def intersection(first: Box, second: Box) -> Box | None:
    """The box that two boxes of one shape have in common; None if there is none.

    Example:
        >>> intersection(Box((0, 0), (4, 2)), Box((3, 1), (4, 2)))
        Box(offset=(3, 1), shape=(1, 1))
    """
    begin = tuple(map(max, zip(first.offset, second.offset, strict=True)))
    end = tuple(map(min, zip(first.end, second.end, strict=True)))
    shape = tuple(e - b for b, e in zip(begin, end, strict=True))
    return None if any(size <= 0 for size in shape) else Box(begin, shape)


def overlaps(wanted: Box, stored: Sequence[Box]) -> list[Overlap]:
    """How a wanted box is put together from stored ones.

    Args:
        wanted: A box of the global shape.
        stored: Boxes that tile the global shape.

    Returns:
        Number of a stored box, the part to take of it, and where it goes.
    """
    found: list[Overlap] = []
    for number, box in enumerate(stored):
        common = intersection(wanted, box)
        if common is not None:
            found.append(Overlap(number, common.inside(box), common.inside(wanted)))
    return found


def is_tiling(shape: Sequence[int], boxes: Sequence[Box]) -> bool:
    """Whether every element of a shape is in exactly one box.

    Boxes of every mesh are a grid; that is checked fast for any number of them. Others
    have to come apart by straight cuts, and by few of them.

    Example:
        >>> is_tiling((4,), [Box((0,), (3,)), Box((3,), (1,))])
        True
        >>> is_tiling((4,), [Box((0,), (3,)), Box((2,), (2,))])
        False
    """
    if is_grid(shape, boxes):
        return True
    alike = all(len(o) == len(s) == len(shape) for o, s in boxes)
    if len(boxes) < 2 or not alike or any(box.is_empty for box in boxes):
        return False
    return _comes_apart(Box.whole(shape), boxes)


def is_grid(shape: Sequence[int], boxes: Sequence[Box]) -> bool:
    """Whether the boxes are all those that cuts through the whole shape make.

    Those of every mesh are. There is no other tiling of a shape that fewer than three
    boxes make.
    """
    if len(boxes) < 2:
        return list(boxes) == [Box.whole(shape)]
    if _is_row(tuple(shape), boxes):
        return True
    alike = all(len(o) == len(s) == len(shape) for o, s in boxes)
    return alike and not any(0 in s for _, s in boxes) and _is_product(shape, boxes)


def _is_row(shape: tuple[int, ...], boxes: Sequence[Box]) -> bool:
    """Whether the boxes follow on one another along one dimension, as shards do."""
    axis = 0
    for size, extent in zip(shape, boxes[0].shape, strict=False):
        if size != extent:
            break
        axis += 1
    before, behind = shape[:axis], shape[axis + 1 :]
    left, right = (0,) * axis, (0,) * len(behind)
    reached = 0
    for offset, extents in boxes:
        extent = extents[axis] if axis < len(extents) else 0
        if offset != (*left, reached, *right) or extents != (*before, extent, *behind):
            return False
        if not extent:
            return False
        reached += extent
    return shape[axis:] != () and reached == shape[axis]


def _is_product(shape: Sequence[int], boxes: Sequence[Box]) -> bool:
    """Whether the boxes are all combinations of spans that fill each dimension."""
    offsets = [box.offset for box in boxes]
    begins = list(zip(*offsets, strict=True))
    extents = list(zip(*(box.shape for box in boxes), strict=True))
    count = 1
    for size, begin, extent in zip(shape, begins, extents, strict=True):
        spans = sorted(set(zip(begin, extent, strict=True)))
        ends = [0, *(first + more for first, more in spans)]
        if [first for first, _ in spans] != ends[:-1] or ends[-1] != size:
            return False
        count *= len(spans)
    return count == len(boxes) == len(set(offsets))


def _comes_apart(whole: Box, boxes: Sequence[Box]) -> bool:
    regions = [(whole, list(boxes))]
    looks = MOST_LOOKS * len(boxes)
    while regions:
        region, inside = regions.pop()
        if len(inside) != 1:
            dimensions = _uneven(inside)
            looks -= len(inside) * len(dimensions)
            parts = _cut(region, inside, dimensions) if looks >= 0 else []
            if not parts:
                return False
            regions.extend(parts)
        elif inside[0] != region:
            return False
    return True


def _uneven(boxes: list[Box]) -> list[int]:
    """The dimensions in which boxes do not all begin alike: cuts are there only."""
    begins = zip(*(box.offset for box in boxes), strict=True)
    return [number for number, found in enumerate(begins) if len(set(found)) > 1]


def _cut(
    region: Box, boxes: list[Box], dimensions: list[int]
) -> list[tuple[Box, list[Box]]]:
    """Cut a region along the first dimension in which no box is in the way."""
    for dimension in dimensions:
        slabs = _slabs(boxes, dimension)
        if len(slabs) > 1:
            begins = [slab[0].offset[dimension] for slab in slabs]
            # The outer bounds are the region's own: a box that leaves a gap there
            # is found when it is compared with the slab it should fill.
            bounds = [region.offset[dimension], *begins[1:], region.end[dimension]]
            return [
                (_slab(region, dimension, begin, end), slab)
                for slab, (begin, end) in zip(slabs, pairwise(bounds), strict=True)
            ]
    return []


def _slabs(boxes: list[Box], dimension: int) -> list[list[Box]]:
    slabs: list[list[Box]] = []
    reached = -1
    for box in sorted(boxes, key=lambda box: box.offset[dimension]):
        if not slabs or box.offset[dimension] >= reached:
            slabs.append([])
        slabs[-1].append(box)
        reached = max(reached, box.end[dimension])
    return slabs


def _slab(region: Box, dimension: int, begin: int, end: int) -> Box:
    offset, shape = list(region.offset), list(region.shape)
    offset[dimension], shape[dimension] = begin, end - begin
    return Box(tuple(offset), tuple(shape))


def divide(offers: Sequence[Mapping[str, Box]]) -> list[dict[str, Box]]:
    """Decide which rank writes which box: each one once, by the first that holds it.

    Args:
        offers: For each rank, key to the box that it holds.

    Returns:
        For each rank, key to the box that it writes. An empty box is written only
        where a tensor has no other.
    """
    written: list[dict[str, Box]] = [{} for _ in offers]
    taken: dict[str, set[Box]] = {}
    for wants_empty in (False, True):
        for rank, offer in enumerate(offers):
            for key, box in offer.items():
                known = taken.setdefault(key, set())
                if box.is_empty == wants_empty and not (
                    known if wants_empty else box in known
                ):
                    known.add(box)
                    written[rank][key] = box
    return written
