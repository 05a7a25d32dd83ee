"""Updates of rows: what happens once for a row, and what for each duplicate."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import thalweg as tw

TWICE = tw.IndexedSlices(torch.full((3, 2), 1.0), torch.tensor([2, 0, 2]))


def table(value: float = 1.0) -> tw.Variable:
    return tw.Variable(torch.full((4, 2), value), name="table")


@pytest.mark.parametrize("policy", ["rows", "keras"])
@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.5},
        {"per_variable": {"table": {"weight_decay": 0.5}}},
        {"weight_decay": 0.5, "use_ema": True, "ema_momentum": 0.5},
    ],
    ids=["decay", "per variable", "average"],
)
def test_a_row_decays_once_however_often_it_is_indexed(
    policy: str, options: dict[str, Any]
) -> None:
    optimizer = tw.optimizers.SGD(0.25, sparse_update=policy, **options)
    weight = table()
    optimizer.apply_gradients([(TWICE, weight)])
    # One eighth decays, and a quarter of each gradient is taken off.
    assert weight[:, 0].tolist() == [0.625, 1.0, 0.375, 1.0]
    if "use_ema" in options:
        optimizer.apply_gradients([(TWICE, weight)])
        average = optimizer.get_slot(weight, "average")[:, 0].tolist()
        second = [0.625 * 0.875 - 0.25, 0.375 * 0.875 - 0.5]
        means = [(a + b) / 2 for a, b in zip([0.625, 0.375], second, strict=True)]
        assert average == [means[0], 1.0, means[1], 1.0]


def test_without_them_duplicates_are_taken_one_after_the_other() -> None:
    weights = {}
    for policy in ("rows", "keras"):
        weight = weights[policy] = table(1e8)
        slices = tw.IndexedSlices(torch.full((2, 2), 3.0), torch.tensor([1, 1]))
        optimizer = tw.optimizers.SGD(1.0, sparse_update=policy)
        optimizer.apply_gradients([(slices, weight)])
    # Neighbours are 8 apart here: 3 twice is rounded away, 6 is not.
    assert weights["keras"][1, 0].item() == 1e8
    assert weights["rows"][1, 0].item() == 1e8 - 8


ROW = torch.tensor([1])


def rows_of(variable: torch.Tensor) -> tw.IndexedSlices:
    return tw.IndexedSlices(torch.ones(1, *variable.shape[1:]), ROW)


@pytest.mark.parametrize("policy", ["rows", "keras", "exact"])
def test_a_table_that_was_resized_leaves_the_others_as_they_were(policy: str) -> None:
    tables = [torch.nn.Parameter(torch.ones(4, 2)) for _ in range(2)]
    optimizer = tw.optimizers.Nadam(sparse_update=policy)
    optimizer.apply_gradients([(rows_of(t), t) for t in tables])
    kept = [tables[0].detach(), *(optimizer.get_slot(tables[0], n) for n in ("m", "v"))]
    before = [tensor.clone() for tensor in kept]
    tables[1].data = torch.ones(6, 2)
    with pytest.raises(ValueError, match="resized"):
        optimizer.apply_gradients([(rows_of(t), t) for t in tables])
    assert all(map(torch.equal, kept, before))


@pytest.mark.parametrize("policy", ["rows", "keras"])
def test_tables_that_share_memory_are_refused_in_any_step(policy: str) -> None:
    tables = [torch.nn.Parameter(torch.ones(4, 2)) for _ in range(2)]
    for kind in (tw.optimizers.Adam, tw.optimizers.Adagrad, tw.optimizers.Nadam):
        optimizer = kind(sparse_update=policy)
        for _ in range(4):  # the last of them by a replay
            optimizer.apply_gradients([(rows_of(t), t) for t in tables])
        tables[1].data = tables[0].data
        before = tables[0].detach().clone()
        with pytest.raises(ValueError, match="overlap"):
            optimizer.apply_gradients([(rows_of(t), t) for t in tables])
        assert torch.equal(tables[0], before)
        tables[1].data = torch.ones(4, 2)


@pytest.mark.parametrize("steps", [0, 4])
def test_rows_without_memory_or_from_the_table_itself(steps: int) -> None:
    table = torch.nn.Parameter(torch.arange(8.0).reshape(4, 2))
    optimizer = tw.optimizers.SGD(1.0)
    none = tw.IndexedSlices(torch.zeros(2, 2), torch.tensor([1, 0]))
    for _ in range(steps):
        optimizer.apply_gradients([(none, table)])
    own = tw.IndexedSlices(table.detach()[:2], torch.tensor([1, 0]))
    optimizer.apply_gradients([(own, table)])
    assert table.tolist() == [[-2, -2], [2, 2], [4, 5], [6, 7]]
    lost = rows_of(table)
    lost.values.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="without memory"):
        optimizer.apply_gradients([(lost, table)])
    assert table.tolist() == [[-2, -2], [2, 2], [4, 5], [6, 7]]


@pytest.mark.parametrize("options", [{}, {"clipnorm": 1.0}, {"clipvalue": 1.0}])
@pytest.mark.parametrize("part", ["values", "indices"])
def test_no_transform_reads_rows_without_memory(
    part: str, options: dict[str, Any]
) -> None:
    table = torch.nn.Parameter(torch.ones(4, 2))
    for steps in (0, 4):
        optimizer = tw.optimizers.Adam(**options)
        for _ in range(steps):
            optimizer.apply_gradients([(rows_of(table), table)])
        before = table.detach().clone()
        given = tw.IndexedSlices(torch.ones(1, 2), ROW.clone())
        getattr(given, part).untyped_storage().resize_(0)
        with pytest.raises(ValueError, match=f"{part}.*without memory"):
            optimizer.apply_gradients([(given, table)])
        assert torch.equal(table, before)


def test_a_variable_without_axes_has_no_rows() -> None:
    single = torch.nn.Parameter(torch.tensor(1.0))
    slices = tw.IndexedSlices(torch.ones(1), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"the variable has \(\)"):
        tw.optimizers.Adam().apply_gradients([(slices, single)])


class Shares(tw.Optimizer):
    """Divides by what the last axis holds."""

    learning_rate: tw.Hyper = tw.Hyper(default=0.5)

    @staticmethod
    def update(var: Any, grad: Any, *, learning_rate: Any) -> Any:
        return var - learning_rate * grad / (1 + abs(grad).sum(-1, keepdim=True))


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2)])
def test_a_rule_that_reduces_does_to_rows_what_it_does_to_all(shape: Any) -> None:
    some, other = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    grad = torch.zeros(shape)
    grad[[2, 0]] = torch.rand(2, *shape[1:], generator=torch.Generator().manual_seed(1))
    slices = tw.IndexedSlices(grad[[2, 0]], torch.tensor([2, 0]))
    sparse, dense = Shares(), Shares()
    for _ in range(4):
        sparse.apply_gradients([(slices, some)])
        dense.apply_gradients([(grad, other)])
    assert torch.equal(some, other)
