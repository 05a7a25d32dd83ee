"""What a member of a group says of its kernel where bfloat16 is rounded by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.codegen.triton_runs import interpreting
from thalweg.compiler import Rule, compile_rule
from thalweg.compiler.rounding import FIRST_INDEX, ROUNDING_KEY
from thalweg.distribute.shards import Whole
from thalweg.state import IndexedSlices
from thalweg.step import LOW_PRECISION_COPY
from thalweg.step.device_group import DeviceGroup
from thalweg.step.device_rows import launch_device_rows
from thalweg.step.device_step import StepClock
from thalweg.step.group import Group, Member, Rounding
from thalweg.step.row_updates import RowUpdate
from thalweg.step.rows import launch_row_updates

HALF = torch.bfloat16
NUMBERS = {"lr": 0.1, "beta": 0.9, "step": 3.0}
VALUES = {name: np.array([number, number]) for name, number in NUMBERS.items()}


def momentum(
    var: Any, m: Any, grad: Any, *, lr: Any, beta: Any, step: Any
) -> tuple[Any, Any]:
    m_new = beta * m + (1 - beta) * grad
    return var - lr * m_new / (torch.sqrt(abs(m_new)) + 1e-8 * step), m_new


def by_rows(
    var: Any, m: Any, grad: Any, *, lr: Any, beta: Any, step: Any
) -> tuple[Any, Any]:
    return var - lr * grad.sum(-1, keepdim=True) * beta / step, m


def row_mean(var: Any, n: Any, grad: Any, *, step: Any) -> tuple[Any, Any]:
    n_new = n + grad.mean(-1, keepdim=True) / step
    return var - n_new, n_new


def member_of(shape: Sequence[int], dtypes: Any = (HALF, HALF), **more: Any) -> Member:
    tensors = tuple(torch.randn(*shape).to(dtype) for dtype in dtypes)
    return Member(Rule.of(momentum), tensors, (), 0, **more)


def copied(members: Sequence[Member]) -> list[Member]:
    return [replace(m, tensors=tuple(t.clone() for t in m.tensors)) for m in members]


def members() -> list[Member]:
    roundings = Rounding(11), Rounding(12, first=1000), Rounding(11)
    shapes = (1030,), (3, 5), (6, 4)
    return [member_of(s, rounding=r) for s, r in zip(shapes, roundings, strict=True)]


def assert_equal(some: Sequence[Member], others: Sequence[Member]) -> None:
    for one, other in zip(some, others, strict=True):
        for a, b in zip(one.tensors, other.tensors, strict=True):
            assert torch.equal(a, b)


def run(group: Any, gradients: Sequence[Tensor]) -> None:
    group.gather_gradients(gradients)
    group.write_scalars(VALUES)
    group.run(1)


def test_halves_of_the_variables_shape_are_rounded_but_no_copy() -> None:
    assert member_of((3,)).rounded == ()
    assert member_of((3,)).rounding_columns == {}
    own = Rounding(5, first=7)
    assert member_of((3,), rounding=own).rounded == ("var", "m")
    assert member_of((3,), (torch.float32, HALF), rounding=own).rounded == ("m",)
    tensors = torch.ones(3, 2, dtype=HALF), torch.ones(3, 1, dtype=HALF)
    row = Member(Rule.of(row_mean), tensors, ("row",), 0, rounding=own)
    assert row.rounded == ("var",)
    wide = member_of((3,), (torch.float32, torch.float64), rounding=own)
    assert wide.rounded == ()
    assert wide.rounding_columns == {}
    assert wide.key(HALF) == replace(wide, rounding=None).key(HALF)
    columns = {ROUNDING_KEY: 5, FIRST_INDEX: 7}
    assert row.rounding_columns == columns


def test_a_low_precision_copy_is_none_of_them() -> None:
    member = member_of((3,), rounding=Rounding(5))
    rule = replace(member.rule, slots=(LOW_PRECISION_COPY,))
    assert replace(member, rule=rule).rounded == ("var",)


def test_each_variable_has_chances_of_its_own() -> None:
    start = torch.ones(500).to(HALF)
    made = [
        Member(Rule.of(momentum), (start.clone(), start.clone()), (), 0, rounding=own)
        for own in (Rounding(1), Rounding(2), Rounding(1), Rounding(1, first=500))
    ]
    grad = torch.full((500,), 0.01, dtype=HALF)
    group = Group(compile_rule(made[0].key(HALF)), made, range(4))
    run(group, [grad] * 4)
    one, other, same, behind = (member.var for member in made)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, behind)


def test_a_group_on_a_device_has_the_bits_of_the_cpu() -> None:
    here = members()
    there = copied(here)
    gradients = [torch.randn(m.var.shape).to(HALF) for m in here]
    run(Group(compile_rule(here[0].key(HALF)), here, range(3)), gradients)
    with interpreting(), np.errstate(all="ignore"):
        group = DeviceGroup(there[0].key(HALF), there, range(3))
        run(group, gradients)
    assert_equal(here, there)


def test_rows_on_a_device_have_the_bits_of_the_cpu() -> None:
    here = members()[1:]
    there = copied(here)
    slices = [
        IndexedSlices(
            torch.randn(6, m.var.shape[1]).to(HALF), torch.tensor([2, 0, 1, 2, 2, 0])
        )
        for m in here
    ]
    pairs = list(zip(here, slices, strict=True))
    updates = [RowUpdate(member, given, "sequence") for member, given in pairs]
    launch_row_updates(updates, VALUES)
    with interpreting(), np.errstate(all="ignore"):
        pairs = zip(there, slices, strict=True)
        updates = [RowUpdate(member, given, "sequence") for member, given in pairs]
        place = torch.device("cpu")
        groups = {(updates[0].key(), place): updates}
        launch_device_rows(groups, VALUES, StepClock(place))
    assert_equal(here, there)


@pytest.mark.parametrize(
    ("dims", "shape"), [((-1,), (4, 3, 2)), ((-2, -1), (4, 3)), ((-1,), (4,))]
)
def test_a_slot_of_rows_goes_with_reductions_of_all_of_a_row(
    dims: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    def row_sum(var: Any, n: Any, grad: Any) -> tuple[Any, Any]:
        n_new = n + grad.sum(dims, keepdim=True)
        return var - n_new, n_new

    slot = torch.zeros(4, *(1 for _ in shape[1:]))
    with pytest.raises(ValueError, match=r"all axes but the first.*tuple"):
        Member(Rule.of(row_sum), (torch.ones(shape), slot), ("row",), 0)
    like = Member(Rule.of(row_sum), (torch.ones(shape), torch.ones(shape)), (), 0)
    assert like.reduces_whole == (len(shape) < 3)


def test_shards_of_parts_of_rows_are_refused() -> None:
    member = member_of(
        (4, 3), whole=Whole((4, 6), frozenset((1,)), lambda totals, _: totals)
    )
    member.check_cut()
    rule = replace(member.rule, function=by_rows)
    with pytest.raises(ValueError, match="cut between rows"):
        replace(member, rule=rule).check_cut()
