"""Whether a rule is the same formula each time it is called.

A kernel is made of one call. What a rule takes from a clock, a generator of random
numbers or a count of its calls would be frozen in it, silently; a second call tells.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import cast

from torch import fx

from thalweg.compiler.graph import operands_of
from thalweg.compiler.refusals import Place

__all__ = ["first_difference", "is_users"]

_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"


def is_users(graph: fx.Graph) -> bool:
    """Whether a line outside this package made a node; its own rules are pure."""
    places = map(_place_of, graph.nodes)
    return any(place is not None and not _is_own(place) for place in places)


def first_difference(one: fx.Graph, other: fx.Graph) -> fx.Node | None:
    """The first node that another trace of the same rule made otherwise, if any."""
    for a, b in zip_longest(one.nodes, other.nodes):
        if a is None or b is None or _written(a) != _written(b):
            return a or b
    return None


def _is_own(place: Place) -> bool:
    return place[0].startswith(_PACKAGE)


def _place_of(node: fx.Node) -> Place | None:
    return node.meta.get("place")


def _written(node: fx.Node) -> tuple[object, ...]:
    is_output = node.op == "output"
    values = cast("Iterable[object]", node.args[0]) if is_output else operands_of(node)
    return node.op, node.target, *map(_value, values)


def _value(value: object) -> object:
    # NaN is not equal to itself; -0.0 is to 0.0.
    if isinstance(value, fx.Node):
        return value.name
    return struct.pack("d", value) if isinstance(value, float) else value
