"""Shards of one tensor in one process: reductions are those of the whole variable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.codegen.bits import same_bits
from tests.codegen.triton_runs import interpreting
from thalweg.compiler import Rule, compile_rule
from thalweg.compiler import compilation as compilation_room
from thalweg.distribute.shards import Whole
from thalweg.step import Plan
from thalweg.step.device_group import DeviceGroup
from thalweg.step.group import Group, Member

Totals = list[Tensor]
RATE = {"lr": np.array([0.1, 0.2])}


class Rank:
    """Stands for the other ranks: knows the totals of some passes, notes the next."""

    def __init__(self, known: Totals) -> None:
        self.known = known
        self.noted: Totals = []
        self.is_maximum = torch.empty(0)
        self.calls = 0

    def __call__(self, totals: Tensor, is_maximum: Tensor) -> Tensor:
        number, self.calls = self.calls, self.calls + 1
        if number < len(self.known):
            assert totals.shape == self.known[number].shape
            return self.known[number]
        if number == len(self.known):
            self.noted, self.is_maximum = [totals.clone()], is_maximum
        return totals


def trust(var: Any, grad: Any, *, lr: Any) -> Any:
    size = torch.linalg.vector_norm(var)
    return var - lr * size / torch.linalg.vector_norm(grad) * grad


def mixed(var: Any, m: Any, grad: Any, *, lr: Any) -> Any:
    m_new = m + torch.mean(grad)
    return var - lr * grad / torch.amax(abs(var)) * m_new, m_new


def in_turn(var: Any, grad: Any, *, lr: Any) -> Any:
    centred = grad - torch.mean(grad)
    return var - lr * centred / torch.linalg.vector_norm(centred)


RULES = [(trust, 1, 1), (mixed, 2, 1), (in_turn, 1, 2)]
SMALL = ((33, 7), (1, 5), (6, 9, 2))
SHAPES = (*SMALL[:2], (40_000,), SMALL[2])


def cut(tensor: Tensor, axis: int, ranks: int) -> list[Tensor]:
    """Parts as FSDP2 makes them: the last ones may be smaller, or empty."""
    axis = min(axis, tensor.ndim - 1)
    size = -(-tensor.shape[axis] // ranks)
    starts = [min(rank * size, tensor.shape[axis]) for rank in range(ranks + 1)]
    return [tensor.narrow(axis, a, b - a).clone() for a, b in pairwise(starts)]


def joined(noted: Sequence[Rank]) -> Tensor:
    stacked = torch.stack([rank.noted[0] for rank in noted])
    return torch.where(noted[0].is_maximum, stacked.amax(0), stacked.sum(0))


def step_shards(
    run: Callable[[int, Rank], None], ranks: int, reading: int
) -> list[Rank]:
    """Take a step on all ranks; each pass is tried, until all know its totals."""
    known: Totals = []
    for _ in range(reading):
        trial = [Rank(known) for _ in range(ranks)]
        for number, rank in enumerate(trial):
            run(number, rank)
        known.append(joined(trial))
    final = [Rank(known) for _ in range(ranks)]
    for number, rank in enumerate(final):
        run(number, rank)
    return final


class Case:
    """Variables, slots and gradients, whole and in parts."""

    def __init__(
        self, rule: Any, tensors: int, axis: int, ranks: int, shapes: Any = SHAPES
    ) -> None:
        generator = torch.Generator().manual_seed(7)
        self.rule, self.ranks, self.axis = Rule.of(rule), ranks, axis
        self.whole = [
            [torch.randn(s, generator=generator) for _ in range(tensors + 1)]
            for s in shapes
        ]

    def members(self, rank: int, join: Any) -> tuple[list[Member], list[Tensor]]:
        """What a rank has: parts of all variables but the last, which is whole."""
        given, gradients = [], []
        for number, tensors in enumerate(self.whole):
            is_cut = number < len(self.whole) - 1
            own = [
                cut(t, self.axis, self.ranks)[rank] if is_cut else t.clone()
                for t in tensors
            ]
            axis = min(self.axis, tensors[0].ndim - 1)
            shape = tuple(tensors[0].shape)
            whole = Whole(shape, frozenset({axis}), join) if is_cut else None
            member = Member(self.rule, tuple(own[:-1]), (), number % 2, whole=whole)
            given.append(member)
            gradients.append(own[-1])
        return given, gradients

    def expected(self) -> list[list[Tensor]]:
        members = [
            Member(self.rule, tuple(t.clone() for t in tensors[:-1]), (), i % 2)
            for i, tensors in enumerate(self.whole)
        ]
        gradients = [tensors[-1] for tensors in self.whole]
        plan = Plan("test", members, gradients)
        plan.load(gradients, RATE)
        plan.run()
        return [list(member.tensors) for member in members]

    def check(self, found: dict[int, list[Member]]) -> None:
        for number, tensors in enumerate(self.expected()):
            for position, tensor in enumerate(tensors):
                whole = number == len(self.whole) - 1
                wanted = [tensor] * self.ranks
                if not whole:
                    wanted = cut(tensor, self.axis, self.ranks)
                for rank, part in enumerate(wanted):
                    got = found[rank][number].tensors[position]
                    assert torch.allclose(got, part, rtol=1e-6, atol=1e-7)
                    assert not whole or same_bits(got, part)


@pytest.fixture(params=["compiled", "interpreted"])
def way(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    if request.param == "interpreted":
        monkeypatch.setenv("THALWEG_COMPILER", "0")
    compilation_room.clear()
    yield request.param
    compilation_room.clear()


@pytest.mark.parametrize(("rule", "tensors", "reading"), RULES)
@pytest.mark.parametrize(("axis", "ranks"), [(0, 2), (0, 3), (1, 2)])
def test_shards_move_as_the_whole_variable(
    rule: Any, tensors: int, reading: int, axis: int, ranks: int, way: str
) -> None:
    case = Case(rule, tensors, axis, ranks)
    found: dict[int, list[Member]] = {}

    def run(rank: int, join: Rank) -> None:
        found[rank], gradients = case.members(rank, join)
        plan = Plan("test", found[rank], gradients)
        assert {k.backend for k in plan.kernels} == {
            "c" if way == "compiled" else "interpreter"
        }
        plan.load(gradients, RATE)
        plan.run()

    last = step_shards(run, ranks, reading)
    case.check(found)
    # One message for each pass, whatever the number of variables.
    assert [rank.calls for rank in last] == [reading] * ranks


@pytest.mark.parametrize(("rule", "tensors", "reading"), RULES)
def test_groups_of_a_device_ask_other_ranks_too(
    rule: Any, tensors: int, reading: int
) -> None:
    case = Case(rule, tensors, 0, 2, SMALL)
    found: dict[int, list[Member]] = {}

    def run(rank: int, join: Rank) -> None:
        found[rank], gradients = case.members(rank, join)
        key = found[rank][0].key(torch.float32)
        group = DeviceGroup(key, found[rank], list(range(len(gradients))))
        group.gather_gradients(gradients)
        group.write_scalars(RATE)
        group.run(1)

    with interpreting(), np.errstate(all="ignore"):
        last = step_shards(run, 2, reading)
    case.check(found)
    assert [rank.calls for rank in last] == [reading] * 2


def test_variables_of_other_meshes_are_asked_for_apart() -> None:
    tensors = [torch.randn(4) for _ in range(3)]
    meshes = [Rank([]), Rank([])]
    members = [
        Member(Rule.of(trust), (t,), (), 0, whole=Whole((8,), frozenset({0}), mesh))
        for t, mesh in zip(tensors, [meshes[0], meshes[1], meshes[0]], strict=True)
    ]
    gradients = [torch.randn(4) for _ in range(3)]
    plan = Plan("test", members, gradients)
    plan.load(gradients, {"lr": np.ones(1)})
    plan.run()
    assert [mesh.calls for mesh in meshes] == [1, 1]
    assert [len(mesh.noted[0]) for mesh in meshes] == [2, 1]


def test_a_group_without_shards_or_reductions_asks_nobody() -> None:
    def descent(var: Any, grad: Any, *, lr: Any) -> Any:
        return var - lr * grad

    whole = Whole((6,), frozenset({0}), Rank([]))
    for rule, own in ((trust, None), (descent, whole)):
        member = Member(Rule.of(rule), (torch.ones(3),), (), 0, whole=whole and own)
        group = Group(compile_rule(member.key(torch.float32)), [member], [0])
        assert group._join is None
        assert member.reduces_whole == (rule is trust)


def test_parts_of_rows_are_refused_where_rows_are_read() -> None:
    def by_row(var: Any, grad: Any, *, lr: Any) -> Any:
        return var - lr * grad / torch.mean(abs(var), -1, keepdim=True)

    make = partial(Member, Rule.of(by_row), (torch.ones(3, 2),), (), 0)
    between = make(whole=Whole((6, 2), frozenset({0}), Rank([])))
    within = make(whole=Whole((3, 4), frozenset({1}), Rank([])))
    Plan("test", [between], [torch.ones(3, 2)])
    with pytest.raises(ValueError, match="before axis 1"):
        Plan("test", [within], [torch.ones(3, 2)])
