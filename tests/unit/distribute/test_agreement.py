"""Plans: what the ranks agree on, with the other ranks' word given by the test."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thalweg.distribute import agreement, collectives
from thalweg.distribute.agreement import (
    Kind,
    RefusedElsewhereError,
    Sighting,
    make_plan,
)
from thalweg.state import IndexedSlices


def _rows(shape: tuple[int, ...] = (4, 2), dtype: torch.dtype = torch.float32) -> Any:
    return IndexedSlices(torch.ones(1, 2, dtype=dtype), torch.tensor([1]), shape)


@pytest.fixture
def other_rank(monkeypatch: pytest.MonkeyPatch) -> list[list[Sighting]]:
    """A list; what the test puts into it is what the other ranks say."""
    others: list[list[Sighting]] = []
    monkeypatch.setattr(
        collectives, "all_gather_objects", lambda own, group=None: [own, *others]
    )
    return others


def _sighting(kind: Kind, dtype: torch.dtype = torch.float32) -> Sighting:
    return Sighting((4, 2), kind, dtype)


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        (None, Kind.UNKNOWN, "unknown"),
        (None, Kind.DENSE, "dense"),
        (None, Kind.ROWS, "rows"),
        (torch.ones(4, 2), Kind.UNKNOWN, "dense"),
        (torch.ones(4, 2), Kind.ROWS, "dense"),
        (_rows(), Kind.DENSE, "dense"),
        (_rows(), Kind.UNKNOWN, "rows"),
        (_rows(), Kind.ROWS, "rows"),
    ],
)
def test_ranks_agree_on_what_travels(
    other_rank: list[list[Sighting]], own: Any, other: Kind, expected: str
) -> None:
    other_rank.append([_sighting(other)])
    variable = torch.zeros(4, 2)
    plan = make_plan([own], [variable])
    found = {
        name: getattr(plan, name)
        for name in ("dense", "rows", "unknown")
        if getattr(plan, name)
    }
    assert found == {expected: [0]}


def test_widest_dtype_travels_and_a_missing_gradient_has_no_say(
    other_rank: list[list[Sighting]],
) -> None:
    variables = [torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.float64)]
    other_rank.append(
        [_sighting(Kind.DENSE, torch.bfloat16), _sighting(Kind.DENSE, torch.float32)]
    )
    plan = make_plan([torch.ones(4, 2), None], variables)
    assert plan.dtypes == [torch.float32, torch.float32]


def test_other_shapes_are_refused(other_rank: list[list[Sighting]]) -> None:
    other_rank.append([Sighting((2, 4), Kind.DENSE, torch.float32)])
    with pytest.raises(RuntimeError, match="the same variables in the same order"):
        make_plan([torch.ones(4, 2)], [torch.zeros(4, 2)])


def test_wrapping_on_one_rank_only_is_refused(
    other_rank: list[list[Sighting]],
) -> None:
    other_rank.append([_sighting(Kind.ELSEWHERE)])
    with pytest.raises(RuntimeError, match="on every rank or on none"):
        make_plan([torch.ones(4, 2)], [torch.zeros(4, 2)])


def test_a_wrapped_variable_is_left_alone(
    other_rank: list[list[Sighting]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "reduced_elsewhere", lambda v: [True] * len(v))
    other_rank.append([_sighting(Kind.ELSEWHERE)])
    plan = make_plan([torch.ones(4, 2)], [torch.zeros(4, 2)])
    assert (plan.dense, plan.rows, plan.unknown) == ([], [], [])


def test_a_refusal_on_another_rank_is_one_here(
    other_rank: list[list[Sighting]],
) -> None:
    other_rank.append([Sighting((4, 2), Kind.UNKNOWN, torch.float32, is_refused=True)])
    with pytest.raises(RefusedElsewhereError, match=r"refused on rank \[1\]"):
        make_plan([torch.ones(4, 2)], [torch.zeros(4, 2)])


def test_the_host_reads_what_is_there_already(
    other_rank: list[list[Sighting]],
) -> None:
    other_rank.append([_sighting(Kind.DENSE)])
    assert make_plan([torch.ones(4, 2)], [torch.zeros(4, 2)]).is_always_read
    variable = torch.zeros(4, 2, device="meta")
    gradient = torch.ones(4, 2, device="meta")
    plan = make_plan([gradient], [variable])
    assert not plan.is_always_read
    assert not plan.tells
    other_rank[0] = [_sighting(Kind.UNKNOWN)]
    assert make_plan([None], [variable]).tells
