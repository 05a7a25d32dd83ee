"""Boxes of a global shape: who writes which, whether they are whole, who reads what.

A tensor that several ranks hold is stored as boxes, each with its offset in the global
shape. Reading any box out of any set of boxes is a matter of overlaps, so that the
number of ranks that restore need not be the number that saved. Nothing here touches a
tensor, a file or a process.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple, Self

MOST_CUTS: Final = 64


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

    The boxes have to come apart by straight cuts, as those of every mesh do; that is
    what makes the check fast for any number of them. An empty shape has one box.

    Example:
        >>> is_tiling((4,), [Box((0,), (3,)), Box((3,), (1,))])
        True
        >>> is_tiling((4,), [Box((0,), (3,)), Box((2,), (2,))])
        False
    """
    whole = Box.whole(shape)
    if len(boxes) == 1:
        return boxes[0] == whole
    regions = [(whole, list(boxes))]
    if any(box.is_empty for box in boxes):
        return False
    for _ in range(MOST_CUTS):
        remaining: list[tuple[Box, list[Box]]] = []
        for region, inside in regions:
            if len(inside) != 1:
                parts = _cut(region, inside)
                if not parts:
                    return False
                remaining.extend(parts)
            elif inside[0] != region:
                return False
        if not remaining:
            return True
        regions = remaining
    return False


def _cut(region: Box, boxes: list[Box]) -> list[tuple[Box, list[Box]]]:
    """Cut a region along the first dimension in which no box is in the way."""
    if any(len(box.shape) != len(region.shape) for box in boxes):
        return []
    for dimension in range(len(region.shape)):
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
