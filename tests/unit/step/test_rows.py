"""Updates of touched rows: all are checked first, and each step may name others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from thalweg.compiler import Rule
from thalweg.state import IndexedSlices
from thalweg.step import Plan, RowUpdate, launch_row_updates
from thalweg.step.group import Member
from thalweg.step.row_updates import RowMode
from thalweg.step.rows import RowPlan


def momentum(var: Any, m: Any, grad: Any, *, lr: Any) -> Any:
    m_new = 0.5 * m + grad
    return var - lr * m_new, m_new


def rowwise(var: Any, accumulator: Any, grad: Any, *, lr: Any) -> Any:
    accumulator_new = accumulator + (grad * grad).mean(-1, keepdim=True)
    return var - lr * grad * torch.rsqrt(accumulator_new), accumulator_new


VALUES = {"lr": np.array([0.25])}


def update(
    var: Tensor, slot: Tensor, indices: Tensor, values: Tensor, rule: Any = momentum
) -> RowUpdate:
    layouts = ("like",) if slot.shape == var.shape else ("row",)
    member = Member(Rule.of(rule), (var, slot), layouts, 0)
    return RowUpdate(member, IndexedSlices(values, indices, tuple(var.shape)), "sum")


def summed(indices: Tensor, values: Tensor, num_rows: int) -> Tensor:
    """The gradient of all rows, duplicates added in order of appearance."""
    total = torch.zeros(num_rows, values.shape[1], dtype=values.dtype)
    seen: set[int] = set()
    for index, value in zip(indices.tolist(), values, strict=True):
        total[index] = total[index] + value if index in seen else value
        seen.add(index)
    return total


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("width", [1, 3, 8, 20, 64, 300])
def test_steps_over_other_rows_each_time(threads: int, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    var = torch.randn(500, width, generator=generator)
    slot = torch.zeros_like(var)
    expected, expected_slot = var.clone(), slot.clone()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in (700, 30, 2000):
            indices = torch.randint(500, (count,), generator=generator)
            values = torch.randn(count, width, generator=generator)
            launch_row_updates([update(var, slot, indices, values)], VALUES)
            rows, grad = indices.unique(), summed(indices, values, 500)
            expected_slot[rows] = 0.5 * expected_slot[rows] + grad[rows]
            expected[rows] = expected[rows] - 0.25 * expected_slot[rows]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(slot, expected_slot)
    assert torch.equal(var, expected)


@pytest.mark.parametrize("mode", ["sum", "sequence"])
def test_threads_and_shares_do_not_show(mode: RowMode) -> None:
    generator = torch.Generator().manual_seed(7)
    indices = torch.randint(3000, (5000,), generator=generator)
    indices[::3] = 17  # more often than a share has rows
    values = torch.randn(5000, 16, generator=generator)
    results: list[Tensor] = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            var, slot = torch.ones(3000, 16), torch.zeros(3000, 16)
            one = update(var, slot, indices, values)
            launch_row_updates([replace(one, mode=mode)], VALUES)
            results.append(torch.cat([var, slot]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("width", [1, 2, 63, 64, 65, 129, 255, 256, 257, 700])
def test_short_rows_are_reduced_in_the_order_of_long_ones(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    var = torch.randn(9, width, generator=generator)
    values = torch.randn(9, width, generator=generator)
    indices = torch.randperm(9, generator=generator)
    slot = torch.full((9, 1), 0.1)
    launch_row_updates([update(var, slot, indices, values, rowwise)], VALUES)
    lanes = torch.zeros(9, 256, dtype=torch.float64)
    for start in range(0, width, 256):
        part = (values[:, start : start + 256] ** 2).double()
        lanes[:, : part.shape[1]] += part
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    mean = (lanes / width).float()
    assert torch.equal(slot[indices], 0.1 + mean)


def test_all_indices_are_checked_before_the_first_write() -> None:
    first, second = torch.ones(4, 2), torch.ones(3, 2, dtype=torch.float64)
    slots = torch.zeros_like(first), torch.zeros_like(second)
    updates = [
        update(first, slots[0], torch.tensor([1, 1]), torch.ones(2, 2)),
        update(second, slots[1], torch.tensor([0, 3]), torch.ones(2, 2).double()),
    ]
    with pytest.raises(IndexError, match="3 at position 1"):
        launch_row_updates(updates, VALUES)
    assert first.eq(1).all()
    assert not slots[0].any()
    assert second.eq(1).all()
    launch_row_updates(updates[:1], VALUES)
    assert first.tolist() == [[1.0, 1.0], [0.5, 0.5], [1.0, 1.0], [1.0, 1.0]]


def test_variables_of_one_kernel_are_updated_together() -> None:
    variables = [torch.ones(5, 4), torch.ones(2, 6), torch.ones(5, 4)]
    updates = [
        update(v, torch.zeros_like(v), torch.tensor([1, 0, 1]), torch.ones(3, n))
        for v, n in zip(variables, (4, 6, 4), strict=True)
    ]
    versions = [v._version for v in variables]
    for taken in (updates, updates[:2], updates):
        launch_row_updates(taken, VALUES)
    for var, steps, version in zip(variables, (3, 3, 2), versions, strict=True):
        # The slot holds 2, 3, 3.5 after one, two and three steps with a sum of 2.
        moved = {2: 0.25 * (2 + 3), 3: 0.25 * (2 + 3 + 3.5)}[steps]
        assert var[1].eq(1 - moved).all()
        assert var[0].eq(1 - moved / 2).all()
        assert var[2:].eq(1).all()
        assert var._version == version + steps


def test_nothing_to_do() -> None:
    var = torch.ones(3, 2)
    none = torch.empty(0, dtype=torch.int64)
    launch_row_updates([update(var, torch.zeros(3, 2), none, torch.ones(0, 2))], VALUES)
    launch_row_updates([], VALUES)
    assert var.eq(1).all()


def test_a_row_plan_repeats_what_a_launch_does() -> None:
    generator = torch.Generator().manual_seed(0)
    variables = [torch.ones(40, 4), torch.ones(30, 6).double()]
    slots = [torch.zeros_like(v) for v in variables]
    copies = [v.clone() for v in variables], [s.clone() for s in slots]
    plan = None
    for count in (9, 4, 50):
        indices = [
            torch.randint(len(v), (count,), generator=generator).int()
            for v in variables
        ]
        values = [
            torch.randn(count, v.shape[1], dtype=v.dtype, generator=generator)
            for v in variables
        ]
        given = zip(variables, slots, indices, values, strict=True)
        updates = [update(*one) for one in given]
        plan = plan or RowPlan(updates)
        gradients = [u.slices for u in updates]
        assert plan.fits(gradients)
        assert plan.load(gradients, VALUES)
        plan.run()
        others = zip(*copies, indices, values, strict=True)
        launch_row_updates([update(*one) for one in others], VALUES)
    assert plan is not None
    assert plan.is_in_place()
    assert all(map(torch.equal, variables, copies[0]))
    assert all(map(torch.equal, slots, copies[1]))
    variables[0].data = variables[0].data.clone()
    assert not plan.is_in_place()


def _negated(values: Tensor) -> Tensor:
    """The values behind torch's lazy negation, contiguous."""
    numbers = torch.complex(torch.zeros_like(values), values)
    lazy = numbers.conj().imag
    return lazy.as_strided(values.shape, values.stride())


def test_a_row_plan_takes_only_what_its_kernels_take() -> None:
    var, values = torch.ones(5, 4), torch.ones(2, 4)
    first = update(var, torch.zeros_like(var), torch.tensor([1, 2]), values)
    plan, indices = RowPlan([first]), first.slices.indices
    unfit = [
        torch.ones(5, 4),
        None,
        IndexedSlices(values.double(), indices),
        IndexedSlices(torch.ones(2, 3), indices),
        IndexedSlices(values, indices, (6, 4)),
        IndexedSlices(torch.ones(4, 2).T, indices),
        IndexedSlices(_negated(values), indices),
        IndexedSlices(values, torch.arange(4)[::2]),
        IndexedSlices(values[:0], indices[:0]),
    ]
    assert not any(plan.fits([gradient]) for gradient in unfit)
    wrong = IndexedSlices(values, torch.tensor([0, 5]))
    assert plan.fits([wrong])
    assert not plan.load([wrong], VALUES)
    assert var.eq(1).all()


def scaled(var: Any, m: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * grad * var.shape[0] / var.numel(), m


def by_last_axis(var: Any, m: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * grad / abs(grad).sum(-1, keepdim=True), m


def by_rest(var: Any, m: Any, grad: Any, *, lr: Any) -> Any:
    rest = tuple(range(1, var.ndim))
    return var - lr * grad / (1 + abs(grad).sum(rest, keepdim=True)), m


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("mode", ["sum", "sequence"])
@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 2), (6, 2, 3, 2)])
@pytest.mark.parametrize("rule", [scaled, by_last_axis, by_rest])
def test_rows_see_the_shape_and_the_axes_that_all_do(
    rule: Any, shape: tuple[int, ...], mode: RowMode, strided: bool
) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    start, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    dense = start.clone(), torch.zeros(shape)
    member = Member(Rule.of(rule), dense, (), 0)
    plan = Plan("test", [member], [grad])
    plan.load([grad], VALUES)
    plan.run()
    var = torch.cat([start, start], -1)[..., : shape[-1]] if strided else start.clone()
    member = replace(member, tensors=(var, torch.zeros(shape)))
    rows = torch.tensor([4, 0, 3])
    slices = IndexedSlices(grad[rows], rows)
    launch_row_updates([RowUpdate(member, slices, mode)], VALUES)
    assert torch.equal(var[rows], dense[0][rows])
    assert torch.equal(var[[1, 2, 5]], start[[1, 2, 5]])


def counted(var: Any, count: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * grad * count, count + 1


@pytest.mark.parametrize("mode", ["sum", "sequence"])
@pytest.mark.parametrize("strided", [False, True])
def test_a_slot_of_one_number_is_read_before_the_first_row(
    mode: RowMode, strided: bool
) -> None:
    var = torch.ones(4, 4)[:, ::2] if strided else torch.ones(4, 2)
    count = torch.ones(())
    member = Member(Rule.of(counted), (var, count), ("scalar",), 0)
    slices = IndexedSlices(torch.ones(3, 2), torch.tensor([1, 1, 2]))
    for _ in range(2):
        launch_row_updates([RowUpdate(member, slices, mode)], VALUES)
    assert count == 3
    assert var[:, 0].tolist() == [1.0, 1 - 0.5 - 1.0, 1 - 0.25 - 0.5, 1.0]


def test_a_row_plan_leaves_alone_what_touches_its_variables() -> None:
    var, slot = torch.ones(5, 4), torch.zeros(5, 4)
    first = update(var, slot, torch.tensor([1, 2]), torch.ones(2, 4))
    plan, indices = RowPlan([first]), first.slices.indices
    lost = torch.ones(2, 4)
    lost.untyped_storage().resize_(0)
    for values in (var[3:], slot[:2], lost):
        assert not plan.fits([IndexedSlices(values, indices)])
    no_indices = torch.tensor([1, 2])
    no_indices.untyped_storage().resize_(0)
    assert not plan.fits([IndexedSlices(torch.ones(2, 4), no_indices)])
    assert plan.fits([IndexedSlices(torch.ones(2, 4), indices)])


@pytest.mark.parametrize("strided", ["indices", "values", "variable"])
def test_gaps_change_no_bits(strided: str) -> None:
    generator = torch.Generator().manual_seed(3)
    indices = torch.randint(0, 8, (40,), generator=generator)
    values = torch.randn(40, 6, generator=generator).bfloat16()
    expected = [torch.ones(8, 6), torch.zeros(8, 6)]
    launch_row_updates([update(*expected, indices, values)], VALUES)
    found = [torch.ones(8, 6), torch.zeros(8, 6)]
    if strided == "indices":
        indices = indices.repeat_interleave(2)[::2]
    elif strided == "values":
        values = values.t().contiguous().t()
    else:
        found = [tensor.t().contiguous().t() for tensor in found]
    launch_row_updates([update(*found, indices, values)], VALUES)
    assert all(map(torch.equal, found, expected))
