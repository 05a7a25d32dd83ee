"""What a rank takes of sums that each rank had for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch

from thalweg.distribute import ReduceOp, StrategyExtended
from thalweg.optimizers import rank_sums
from thalweg.optimizers.accumulation import INDICES, VALUES
from thalweg.optimizers.declarations import ACCUMULATOR
from thalweg.optimizers.rank_sums import AlikeSum, Replicas, replicas_of

WEIGHT = torch.zeros(2)


class Part(NamedTuple):
    value: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    def read(self) -> torch.Tensor:
        return self.value.clone()

    read_whole = read


class Saved(NamedTuple):
    slot: str
    parts: dict[int, Part]
    ranks: int
    reduction: str
    variable: torch.Tensor = WEIGHT


def saved(slot: str, *values: Sequence[float] | None, reduction: str = "sum") -> Saved:
    """The parts of all ranks; None for one that had nothing."""
    kind = torch.int64 if slot == INDICES else torch.float32
    parts = {
        number: Part(torch.tensor(value, dtype=kind))
        for number, value in enumerate(values)
        if value is not None
    }
    return Saved(slot, parts, len(values), reduction)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch):
    """Say which rank this is, and how many there are."""

    def are(size: int, number: int) -> None:
        monkeypatch.setattr(rank_sums, "world_size", lambda: size)
        monkeypatch.setattr(rank_sums, "rank", lambda: number)

    return are


def shares(ranks: Any, size: int, here: str, one: Any, *, is_alike: bool = False):
    """What each of `size` ranks takes, as lists."""
    found = []
    for number in range(size):
        ranks(size, number)
        replicas = Replicas(size, here if size > 1 else "sum")
        value = replicas.share_of(one, is_alike=is_alike)
        found.append(None if value is None else value.tolist())
    return found


def test_as_many_ranks_take_their_own(ranks):
    one = saved(ACCUMULATOR, [1.0, 2.0], None)
    assert shares(ranks, 2, "sum", one) == [[1.0, 2.0], None]


@pytest.mark.parametrize(
    ("there", "here", "size", "first"),
    [
        ("sum", "sum", 1, 6.0),
        ("sum", "sum", 3, 6.0),
        ("mean", "sum", 1, 3.0),
        ("mean", "mean", 3, 9.0),
        ("sum", "mean", 3, 18.0),
        ("sum", "mean", 2, 12.0),
        ("mean", "sum", 2, 3.0),
    ],
)
def test_the_first_of_others_takes_what_has_the_same_mean(
    ranks, there, here, size, first
):
    others = size - 1
    one = saved(ACCUMULATOR, [2.0], [4.0], reduction=there)
    assert shares(ranks, size, here, one) == [[first]] + [[0.0]] * others
    one = saved(VALUES, [[2.0]], [[4.0], [0.0]], reduction=there)
    rows = [[2.0 * first / 6], [4.0 * first / 6], [0.0]]
    assert shares(ranks, size, here, one) == [rows] + [[]] * others
    one = saved(INDICES, [5], [7, 3], reduction=there)
    assert shares(ranks, size, here, one) == [[5, 7, 3]] + [[]] * others


def test_where_a_wrapper_reduces_every_rank_takes_the_whole(ranks):
    one = saved(ACCUMULATOR, [2.0], [4.0], reduction="mean")
    for size in (2, 3):
        assert shares(ranks, size, "sum", one, is_alike=True) == [[3.0]] * size


def test_what_all_ranks_had_goes_to_the_first(ranks):
    one = AlikeSum.of(WEIGHT, ACCUMULATOR, torch.tensor([2.0]))
    assert shares(ranks, 2, "sum", one) == [[2.0], [0.0]]
    assert shares(ranks, 2, "mean", one) == [[4.0], [0.0]]
    assert shares(ranks, 2, "sum", one, is_alike=True) == [[2.0], [2.0]]


def test_sums_are_added_in_the_order_of_ranks(ranks):
    ranks(1, 0)
    one = saved(ACCUMULATOR, [1e8], [-1e8], [1.0])
    turned = one._replace(parts=dict(reversed(one.parts.items())))
    for same in (one, turned):
        value = Replicas(1, "sum").share_of(same, is_alike=False)
        assert value is not None
        assert value.tolist() == [1.0]


def test_sums_that_move_are_refused_where_nobody_knows_the_reduction(ranks):
    one = saved(ACCUMULATOR, [2.0], [4.0], reduction="other")
    ranks(2, 0)
    Replicas(2, "other").refuse("sgd", one, is_alike=False)
    ranks(3, 0)
    strange = [
        (Replicas(3, "sum"), one),
        (Replicas(3, "other"), saved(ACCUMULATOR, [2.0], [4.0])),
    ]
    for replicas, found in strange:
        assert replicas.may_refuse(found)
        with pytest.raises(ValueError, match=r"sgd: 'gradient_accumulator'.*2 rank"):
            replicas.refuse("sgd", found, is_alike=False)
    Replicas(3, "other").refuse("sgd", saved(ACCUMULATOR, [2.0], [4.0]), is_alike=True)


class Extended(StrategyExtended):
    @property
    def num_replicas(self) -> int:
        return 2


def test_what_replicas_make_of_their_means(ranks):
    extended: Any = Extended()
    assert replicas_of(extended, None) == (1, "sum")  # one process
    ranks(2, 0)
    assert replicas_of(StrategyExtended(), None) == (1, "sum")
    assert replicas_of(extended, None) == (2, "sum")
    extended.gradient_reduction = ReduceOp.MEAN
    assert replicas_of(extended, None) == (2, "mean")
    assert replicas_of(extended, list) == (2, "other")
