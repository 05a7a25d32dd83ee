"""Touched rows where the variables are, under Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.codegen.bits import same_bits
from tests.codegen.triton_runs import interpreting
from thalweg.compiler import KernelKey, Rule, TraceError
from thalweg.state import IndexedSlices
from thalweg.step.device_checks import LateErrors, listening
from thalweg.step.device_rows import (
    DeviceRows,
    launch_device_rows,
    launch_on_devices,
)
from thalweg.step.device_step import StepClock
from thalweg.step.group import Member
from thalweg.step.row_updates import RowUpdate
from thalweg.step.rows import launch_row_updates

HERE = torch.device("cpu")
RATES = {"lr": np.array([0.1, 0.2]), "beta": np.array([0.9, 0.5])}


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    with interpreting(), np.errstate(all="ignore"):
        yield


def momentum(var: Any, m: Any, grad: Any, *, lr: Any, beta: Any) -> tuple[Any, Any]:
    m_new = beta * m + (1 - beta) * grad
    return var - lr * m_new / (torch.sqrt(abs(m_new)) + 1e-8), m_new


def row_adagrad(var: Any, accumulator: Any, grad: Any, *, lr: Any) -> Any:
    accumulator_new = accumulator + (grad * grad).mean(-1, keepdim=True)
    return var - lr * grad * torch.rsqrt(accumulator_new), accumulator_new


def members_of(function: Any, shapes: Any, layouts: Any = ()) -> list[Member]:
    rule = Rule.of(function)
    made: list[Member] = []
    for number, shape in enumerate(shapes):
        beside = (shape[0], *(1 for _ in shape[1:]))
        slot = torch.rand(beside) if layouts else torch.randn(shape)
        made.append(Member(rule, (torch.randn(shape), slot), layouts, number % 2))
    return made


def copied(members: list[Member]) -> list[Member]:
    return [replace(m, tensors=tuple(t.clone() for t in m.tensors)) for m in members]


def slices_of(var: Tensor, count: int, kind: torch.dtype) -> IndexedSlices:
    indices = torch.randint(0, var.shape[0], (count,)).to(kind)
    return IndexedSlices(torch.randn(count, *var.shape[1:]), indices, tuple(var.shape))


def launch(key: KernelKey, members: Any, slices: Any, errors: Any = None) -> StepClock:
    """Update rows where they are; say what was decided."""
    pairs = zip(members, slices, strict=True)
    updates = [RowUpdate(m, s, key.mode) for m, s in pairs]
    clock = StepClock(HERE)
    listening.errors = errors or LateErrors()
    try:
        launch_device_rows({(key, HERE): updates}, RATES, clock)
    finally:
        listening.errors = None
    return clock


def key_of(member: Member, mode: Any) -> KernelKey:
    dtypes = (*(t.dtype for t in member.tensors), torch.float32)
    return KernelKey(member.rule, (), dtypes, mode, member.layouts)


@pytest.mark.parametrize("mode", ["sum", "sequence"])
@pytest.mark.parametrize(
    ("function", "layouts"), [(momentum, ()), (row_adagrad, ("row",))]
)
def test_rows_have_the_bits_of_the_cpu(mode: Any, function: Any, layouts: Any) -> None:
    # One number for each row goes with a rule that reduces all of a row.
    last = (6, 6) if layouts else (6, 2, 3)
    members = members_of(function, [(9, 5), (7, 130), last], layouts)
    twins = copied(members)
    for count in (14, 5):
        slices = [slices_of(m.var, count, torch.int32) for m in members]
        updates = [RowUpdate(m, s, mode) for m, s in zip(members, slices, strict=True)]
        launch_row_updates(updates, RATES)
        launch(key_of(twins[0], mode), twins, slices)
        for member, twin in zip(members, twins, strict=True):
            for a, b in zip(member.tensors, twin.tensors, strict=True):
                assert same_bits(a, b)


def test_vectors_have_rows_of_one_element() -> None:
    members = members_of(momentum, [(40,)])
    twins, slices = copied(members), [slices_of(members[0].var, 60, torch.int64)]
    launch_row_updates([RowUpdate(members[0], slices[0], "sum")], RATES)
    launch(key_of(twins[0], "sum"), twins, slices)
    assert same_bits(members[0].var, twins[0].var)


def test_a_launch_is_seen_by_autograd() -> None:
    members = members_of(momentum, [(9, 5)])
    versions = [t._version for t in members[0].tensors]
    slices = [slices_of(members[0].var, 3, torch.int64)]
    launch(key_of(members[0], "sum"), members, slices)
    assert [t._version for t in members[0].tensors] == [v + 1 for v in versions]


@pytest.mark.parametrize("wrong", [-1, 9])
def test_a_wrong_index_changes_nothing_and_is_told(wrong: int) -> None:
    members = members_of(momentum, [(9, 5), (9, 5)])
    before = copied(members)
    slices = [slices_of(m.var, 4, torch.int64) for m in members]
    slices[1].indices[2] = wrong
    key, errors = key_of(members[0], "sum"), LateErrors()
    verdict = launch(key, members, slices, errors).verdict
    assert verdict is not None
    assert not verdict
    with pytest.raises(IndexError, match="indices from 0"):
        errors.refuse()
    for member, old in zip(members, before, strict=True):
        assert all(map(torch.equal, member.tensors, old.tensors))
    slices[1].indices[2] = 0
    launch(key, members, slices, errors)
    errors.refuse()
    assert not torch.equal(members[0].var, before[0].var)


def test_a_wrong_index_stops_the_other_kernels_of_its_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    members = members_of(momentum, [(9, 5), (9, 4)])
    before = copied(members)
    slices = [slices_of(m.var, 4, torch.int64) for m in members]
    slices[1].indices[2] = 9
    modes: list[Any] = ["sum", "sequence"]  # of which each has a kernel
    updates = [RowUpdate(*x) for x in zip(members, slices, modes, strict=True)]
    groups = {(u.key(), HERE): [u] for u in updates}
    errors = LateErrors()
    monkeypatch.setattr(listening, "errors", errors)
    launch_device_rows(groups, RATES, StepClock(HERE))
    for member, old in zip(members, before, strict=True):
        assert all(map(torch.equal, member.tensors, old.tensors))
    with pytest.raises(IndexError, match="that step has changed nothing"):
        errors.refuse()


def test_launches_outside_of_steps_tell_the_next_one() -> None:
    members = members_of(momentum, [(9, 5)])
    wrong = slices_of(members[0].var, 4, torch.int64)
    wrong.indices[1] = -1
    key = key_of(members[0], "sum")
    groups = {(key, HERE): [RowUpdate(members[0], wrong, "sum")]}
    launch_device_rows(groups, RATES, StepClock(HERE))
    with pytest.raises(IndexError):
        launch_device_rows(groups, RATES, StepClock(HERE))


def test_the_device_gives_scalars_and_decides() -> None:
    members = members_of(momentum, [(9, 5), (9, 5)])
    expected, still = copied(members), copied(members)
    slices = [slices_of(m.var, 4, torch.int64) for m in members]
    rows = DeviceRows(key_of(members[0], "sum"), 2, torch.device("cpu"))
    rate = torch.tensor([0.3, 0.4], dtype=torch.float64)
    rates = {"lr": rate, "other": rate}
    assert rows.load(members, slices, RATES)
    rows.run(torch.tensor(False), rates)
    for member, old in zip(members, still, strict=True):
        assert torch.equal(member.var, old.var)
    rows.load(members, slices, RATES)
    rows.run(torch.tensor(True), rates)
    pairs = zip(expected, slices, strict=True)
    numbers = {**RATES, "lr": np.array([0.3, 0.4])}
    launch_row_updates([RowUpdate(m, s, "sum") for m, s in pairs], numbers)
    for member, wanted in zip(members, expected, strict=True):
        assert same_bits(member.var, wanted.var)


def test_a_rule_that_needs_all_rows_is_refused() -> None:
    def trust(var: Any, grad: Any, *, lr: Any) -> Any:
        return var - lr * torch.linalg.vector_norm(var) * grad

    key = KernelKey(Rule.of(trust), (), (torch.float32,) * 2, "sum")
    with pytest.raises(TraceError, match="exact"):
        DeviceRows(key, 1, torch.device("cpu"))


def test_updates_that_no_kernel_takes_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    members = members_of(momentum, [(9, 5), (9, 4), (9, 3)])
    strided = replace(
        members[2], tensors=(torch.randn(3, 9).t(), members[2].tensors[1])
    )
    members.append(strided)
    slices = [slices_of(m.var, 4, torch.int64) for m in members]
    modes: list[Any] = ["sum", "sequence", "sum", "sum"]
    updates = [RowUpdate(*x) for x in zip(members, slices, modes, strict=True)]
    assert launch_on_devices(updates, RATES) == updates
    name = "thalweg.step.device_rows.has_device_kernels"
    monkeypatch.setattr(name, lambda device: True)
    twins = [replace(u, member=copied([u.member])[0]) for u in updates]
    assert launch_on_devices(twins, RATES) == twins[3:]
    assert launch_on_devices(updates, RATES) == updates[3:]
    for update, twin in zip(updates[:3], twins, strict=False):
        assert same_bits(update.member.var, twin.member.var)
