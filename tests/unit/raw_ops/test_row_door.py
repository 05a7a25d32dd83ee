"""What a raw op on rows takes for tensors and indices, called once and once more."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.step.batch import Batch, inside_step


def descend(table: Any, indices: Any, grad: Any = None, **given: Any) -> None:
    """Subtract from rows; by a proximal op without any regularization."""
    if grad is None:
        grad = torch.ones(len(indices), *table.shape[1:], dtype=table.dtype)
    tw.raw_ops.ResourceSparseApplyProximalGradientDescent(
        var=table, alpha=1.0, l1=0.0, l2=0.0, grad=grad, indices=indices, **given
    )


def counts(indices: Any, rows: int = 5) -> list[float]:
    """What is left of zeros if each index takes one away."""
    flat = torch.as_tensor(indices).tolist()
    return [-float(flat.count(row)) for row in range(rows)]


def test_any_number_of_rows_is_taken_again_and_again() -> None:
    for indices in ([3], [1, 1, 4], [0] * 40, [2, 0], [4, 3, 2, 1, 0], []):
        for dtype in (torch.int32, torch.int64):
            table = torch.zeros(5, 2)
            version = table._version
            descend(table, torch.tensor(indices, dtype=dtype))
            assert table[:, 0].tolist() == table[:, 1].tolist() == counts(indices)
            assert table._version > version or not indices


def test_kinds_may_take_turns() -> None:
    kinds: list[Any] = [
        lambda: torch.zeros(5, 2),
        lambda: torch.zeros(5, 3),
        lambda: torch.zeros(7, 2),
        lambda: torch.zeros(5),
        lambda: torch.zeros(5, 2, dtype=torch.float64),
        lambda: torch.zeros(5, 2, dtype=torch.bfloat16),
        lambda: torch.nn.Parameter(torch.zeros(5, 2)),
        lambda: tw.Variable(torch.zeros(5, 2)),
        lambda: tw.state.as_variable(torch.nn.Parameter(torch.zeros(5, 2))),
        lambda: torch.zeros(2, 5).T,
        lambda: torch.zeros(5, 4)[:, ::2],
    ]
    for _ in range(3):
        for make in kinds:
            table = make()
            descend(table, torch.tensor([3, 0, 3]))
            found = table.numpy() if isinstance(table, tw.Variable) else table
            first = torch.as_tensor(found).reshape(len(found), -1)[:, 0]
            assert first.tolist() == counts([3, 0, 3], len(found))


@pytest.mark.parametrize("wrong", [-1, 5, 2**31])
def test_an_index_out_of_range_is_refused_where_tensors_are_known(wrong: int) -> None:
    table, other = torch.zeros(5, 2), torch.zeros(9, 2)
    for own in (table, other):
        descend(own, torch.tensor([1, 2]))
    before, version = table.clone(), table._version
    for check in (None, True, False):
        with pytest.raises(ValueError, match=f"Index {wrong} at offset 1"):
            descend(table, torch.tensor([0, wrong]), check_indices=check)
    assert torch.equal(table, before)
    assert table._version == version
    descend(table, torch.tensor([0]))
    assert table[0, 0] == -1


@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(3, 2),
        torch.ones(1, 2),
        torch.ones(2, 3),
        torch.ones(4),
        torch.ones(()),
    ],
)
def test_a_gradient_of_another_shape_is_refused_where_tensors_are_known(
    wrong: torch.Tensor,
) -> None:
    table = torch.zeros(5, 2)
    descend(table, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"expected grad of shape \(2, 2\)"):
        descend(table, torch.tensor([1, 2]), wrong)
    with pytest.raises(ValueError, match="indices of one dimension"):
        descend(table, torch.tensor([[1, 2]]), torch.ones(1, 2, 2))
    assert table[:, 0].tolist() == counts([1, 2])


def test_a_gradient_in_the_table_is_read_before_the_writing() -> None:
    for known in (False, True):
        table = torch.arange(1.0, 11.0).reshape(5, 2)
        if known:
            descend(table.clone(), torch.tensor([1, 0]))
        expected = table.clone()
        descend(expected, torch.tensor([1, 0]), table[:2].clone())
        descend(table, torch.tensor([1, 0]), table[:2])
        assert torch.equal(table, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_updates_and_indices_in_the_table_are_read_before_the_writing(
    dtype: torch.dtype,
) -> None:
    for indices in ([1, 0], [1, 1]):
        table = torch.arange(1, 11).to(dtype).reshape(5, 2)
        expected, updates = table.clone(), table[:2].clone()
        add = tw.raw_ops.ResourceScatterAdd
        add(resource=expected, indices=indices, updates=updates)
        add(resource=table, indices=indices, updates=table[:2])
        assert torch.equal(table, expected)
    itself = torch.tensor([2, 1, 2])
    tw.raw_ops.ResourceScatterAdd(
        resource=itself, indices=itself, updates=torch.tensor([10, 20, 30])
    )
    assert itself.tolist() == [2, 21, 42]


def test_a_slot_that_lies_in_the_table_is_refused_where_tensors_are_known() -> None:
    def adagrad(table: torch.Tensor, accum: torch.Tensor) -> None:
        tw.raw_ops.ResourceSparseApplyAdagrad(
            var=table,
            accum=accum,
            lr=1.0,
            grad=torch.ones(1, 2),
            indices=torch.tensor([1]),
        )

    room = torch.ones(20)
    adagrad(room[:10].view(5, 2).clone(), torch.ones(5, 2))
    for start in (0, 2, 8):
        with pytest.raises(ValueError, match="var and accum with memory of their own"):
            adagrad(room[:10].view(5, 2), room[start : start + 10].view(5, 2))
    assert room.tolist() == [1.0] * 20
    adagrad(room[:10].view(5, 2), room[10:].view(5, 2))
    assert room[12:14].tolist() == [2.0, 2.0]


def test_a_longer_gradient_at_the_same_place_is_looked_at_anew() -> None:
    room = torch.zeros(14)
    table, indices = room[4:].view(5, 2), torch.tensor([4, 3])
    descend(table, indices[:1], room[:2].view(1, 2).fill_(1))
    descend(table, indices[:1], room[:2].view(1, 2))
    room[4:8] = torch.tensor([5.0, 6.0, 7.0, 8.0])
    grad = room[:8].view(4, 2)  # reaches into the first two rows
    expected = table.clone()
    descend(expected, torch.tensor([0, 1, 0, 1]), grad.clone())
    descend(table, torch.tensor([0, 1, 0, 1]), grad)
    assert torch.equal(table, expected)


def test_rows_act_after_what_waits_in_a_batch() -> None:
    batch = Batch()
    for _ in range(3):
        table = torch.ones(5, 2)
        with inside_step(batch):
            tw.raw_ops.ResourceApplyGradientDescent(
                var=table, alpha=1.0, delta=torch.full((5, 2), 2.0)
            )
            tw.raw_ops.ResourceScatterMul(
                resource=table,
                indices=torch.tensor([1]),
                updates=torch.full((1, 2), 7).float(),
            )
            assert table[:2, 0].tolist() == [-1.0, -7.0]


def test_width_zero_and_meta_write_nothing() -> None:
    for table in (torch.zeros(5, 0), torch.zeros(5, 2, device="meta")):
        indices = torch.tensor([1, 1], device=table.device)
        grad = torch.ones(2, *table.shape[1:], device=table.device)
        descend(table, indices, grad)
        tw.raw_ops.ResourceScatterAdd(resource=table, indices=indices, updates=grad)
    with pytest.raises(ValueError, match="Index 5 at offset 0"):
        descend(torch.zeros(5, 0), torch.tensor([5]))


def test_an_own_op_on_rows_that_has_run_can_be_copied() -> None:
    @tw.raw_op(sparse=True)
    def descend_rows(var, grad, *, lr, times: bool = False):
        return var - lr * grad * 2 if times else var - lr * grad

    for op in (descend_rows, copy.deepcopy(descend_rows)):
        for _ in range(2):
            var = torch.ones(3, 2)
            op(var=var, grad=torch.ones(2, 2), indices=torch.tensor([2, 2]), lr=0.25)
            op(var=var, grad=torch.ones(1, 2), indices=[0], lr=0.25, times=True)
            assert var[:, 1].tolist() == [0.5, 1.0, 0.5]


@pytest.mark.parametrize(
    ("mean", "gradient", "expected", "centered"),
    [(100.0, 0.05, 0.9000020, None), (1e8, 1.0, 0.9, -288.6)],
)
def test_sparse_rms_prop_forgets_a_mean_as_tensorflow_does(
    mean: float, gradient: float, expected: float, centered: float | None
) -> None:
    """Without decay the new mean is the square of the gradient; TensorFlow 2.21."""
    numbers = {"lr": 0.1, "rho": 0.0, "momentum": 0.0, "epsilon": 1e-7}
    rows: dict[str, Any] = {"grad": torch.tensor([gradient]), "indices": [0]}
    var, ms, mom = torch.ones(1), torch.tensor([mean]), torch.zeros(1)
    tw.raw_ops.ResourceSparseApplyRMSProp(var=var, ms=ms, mom=mom, **numbers, **rows)
    assert ms.item() == pytest.approx(gradient**2, rel=1e-6)
    assert var.item() == pytest.approx(expected, rel=1e-6)
    var, ms, mom = torch.ones(1), torch.tensor([mean]), torch.zeros(1)
    tw.raw_ops.ResourceSparseApplyCenteredRMSProp(
        var=var, mg=torch.zeros(1), ms=ms, mom=mom, **numbers, **rows
    )
    assert ms.item() == pytest.approx(gradient**2, rel=1e-6)
    if centered is not None:
        assert var.item() == pytest.approx(centered, rel=1e-3)
