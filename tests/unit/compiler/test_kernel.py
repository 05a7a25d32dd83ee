"""Launching: tables, apply, offsets, passes, with C and with the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from thalweg.compiler import Kernel, KernelKey, Rule, compilation, compile_rule
from thalweg.compiler.build import can_compile

F = torch.float32
BACKENDS = ["c", "interpreter"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "c" and not can_compile():
        pytest.skip("needs a C compiler")
    if request.param == "interpreter":
        monkeypatch.setenv("THALWEG_COMPILER", "0")
    compilation.clear()
    return request.param


def descent(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * grad


def kernel_of(
    function: Any, backend: str, *dtypes: torch.dtype, **options: Any
) -> Kernel:
    kernel = compile_rule(KernelKey(Rule.of(function), (), dtypes, **options))
    assert kernel.backend == backend
    return kernel


def table(kernel: Kernel, *rows: dict[str, float]) -> torch.Tensor:
    names = kernel.columns.names
    return torch.tensor(
        [[{"apply": 1.0, **row}.get(n, 0.0) for n in names] for row in rows],
        dtype=torch.float64,
    )


def pointers(*variables: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.tensor([[t.data_ptr() for t in tensors] for tensors in variables])


def test_items_name_variables_offsets_and_scalar_rows(backend: str) -> None:
    kernel = kernel_of(descent, backend, F, F)
    a, b = torch.zeros(6), torch.zeros(4)
    grad = torch.arange(10.0)
    items = torch.tensor([[0, 1, 2, 3, 0], [1, 0, 4, 4, 1]])
    scalars = table(kernel, {"lr": 1.0}, {"lr": -10.0})
    kernel.launch(items, pointers((a, grad), (b, grad)), scalars, 1)
    assert a.tolist() == [0, -2, -3, -4, 0, 0]
    assert b.tolist() == [40, 50, 60, 70]


def test_a_row_whose_apply_is_zero_changes_nothing(backend: str) -> None:
    kernel = kernel_of(descent, backend, F, F)
    a, b, grad = torch.zeros(2), torch.zeros(2), torch.ones(2)
    items = torch.tensor([[0, 0, 0, 2, 0], [1, 0, 0, 2, 1]])
    scalars = table(kernel, {"lr": 1.0, "apply": 0.0}, {"lr": 1.0})
    kernel.launch(items, pointers((a, grad), (b, grad)), scalars, 1)
    assert a.tolist() == [0, 0]
    assert b.tolist() == [-1, -1]


def test_a_bound_launch_reads_tables_anew(backend: str) -> None:
    kernel = kernel_of(descent, backend, F, F)
    var, grad = torch.zeros(2), torch.ones(2)
    scalars = table(kernel, {"lr": 1.0})
    launch = kernel.bind(
        torch.tensor([[0, 0, 0, 2, 0]]), pointers((var, grad)), scalars
    )
    launch(1)
    scalars[0, kernel.columns.index["lr"]] = 10.0
    launch(1)
    assert var.tolist() == [-11, -11]


def test_numpy_tables_do_too(backend: str) -> None:
    kernel = kernel_of(descent, backend, F, F)
    var, grad = torch.zeros(2), torch.ones(2)
    items = np.array([[0, 0, 0, 2, 0]])
    kernel.launch(
        items, pointers((var, grad)).numpy(), table(kernel, {"lr": 1.0}).numpy(), 2
    )
    assert var.tolist() == [-1, -1]


def test_empty_items_and_no_items_are_fine(backend: str) -> None:
    kernel = kernel_of(descent, backend, F, F)
    empty = torch.empty(0)
    scalars = table(kernel, {"lr": 1.0})
    kernel.launch(torch.tensor([[0, 0, 0, 0, 0]]), pointers((empty, empty)), scalars, 1)
    none = torch.empty((0, 5), dtype=torch.int64)
    kernel.launch(none, pointers((empty, empty)), scalars, 1)


def trusted(var: Any, grad: Any, *, lr: Any) -> Any:
    return var - lr * torch.linalg.vector_norm(grad) * grad


def test_totals_can_be_joined_between_passes(backend: str) -> None:
    kernel = kernel_of(trusted, backend, F, F)
    assert kernel.num_passes == 2
    assert kernel.totals == [[("sum_squares", "sum")]]
    var, grad = torch.zeros(4), torch.ones(4)
    scalars = table(kernel, {"lr": 1.0})
    column = kernel.columns.index["sum_squares"]
    seen: list[float] = []

    def other_rank(number: int) -> None:
        seen.append(scalars[0, column].item())
        scalars[0, column] += 12.0

    tables = (torch.tensor([[0, 0, 0, 4, 0]]), pointers((var, grad)), scalars)
    kernel.launch(*tables, 1, between=other_rank)
    assert seen == [4.0]
    assert var.tolist() == [-4.0] * 4


def test_several_items_of_a_variable_reduce_together(backend: str) -> None:
    kernel = kernel_of(trusted, backend, F, F)
    var, grad = torch.zeros(40_000), torch.randn(40_000)
    scalars = table(kernel, {"lr": 1.0})
    pieces = torch.tensor([[0, 0, 0, 16384, 0], [0, 16384, 16384, 23616, 0]])
    kernel.launch(pieces, pointers((var, grad)), scalars, 1)
    whole = torch.zeros(40_000)
    kernel.launch(
        torch.tensor([[0, 0, 0, 40_000, 0]]), pointers((whole, grad)), scalars, 2
    )
    assert torch.equal(var, whole)


def test_a_scalar_slot_is_one_number_of_a_variable(backend: str) -> None:
    def rule(var: Any, total: Any, grad: Any) -> Any:
        total_new = total + grad.sum()
        return var - total_new * grad, total_new

    kernel = kernel_of(rule, backend, F, F, F, layouts=("scalar",))
    var, total, grad = torch.zeros(3), torch.tensor([2.0]), torch.ones(3)
    items, scalars = torch.tensor([[0, 0, 0, 3, 0]]), table(kernel, {})
    kernel.launch(items, pointers((var, total, grad)), scalars, 1)
    assert total.tolist() == [5.0]
    assert var.tolist() == [-5.0] * 3


def test_row_slots_follow_the_rows_of_an_item(backend: str) -> None:
    def rule(var: Any, acc: Any, grad: Any) -> Any:
        acc_new = acc + grad.sum(-1, keepdim=True)
        return var - acc_new, acc_new

    kernel = kernel_of(rule, backend, F, F, F, layouts=("row",))
    var, acc, grad = torch.zeros(4, 2), torch.zeros(4), torch.arange(8.0).reshape(4, 2)
    items, scalars = torch.tensor([[0, 2, 2, 4, 0]]), table(kernel, {"row_length": 2})
    kernel.launch(items, pointers((var, acc, grad)), scalars, 1)
    assert acc.tolist() == [0, 5, 9, 0]
    assert var.tolist() == [[0, 0], [-5, -5], [-9, -9], [0, 0]]


def test_a_sequence_acts_in_order_and_a_sum_at_once(backend: str) -> None:
    def rule(var: Any, grad: Any) -> Any:
        return (var + grad) * 2.0

    results: dict[str, list[float]] = {}
    for mode in ("sequence", "sum"):
        kernel = kernel_of(rule, backend, F, F, mode=mode)
        var, grad = torch.zeros(2), torch.tensor([1.0, 2.0, 3.0])
        items = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 1, 0]])
        starts, sources = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1])
        tables = (items, pointers((var, grad)), table(kernel, {}))
        kernel.launch(*tables, 1, starts, sources)
        results[mode] = var.tolist()
    assert results == {"sequence": [4.0, 10.0], "sum": [4.0, 8.0]}


@pytest.mark.parametrize(
    ("place", "wrong", "error", "part"),
    [
        (0, torch.zeros((1, 5)), TypeError, "int64 table 'items'"),
        (
            0,
            torch.zeros((1, 4), dtype=torch.int64),
            ValueError,
            r"shape (n, 5) for 'items'",
        ),
        (1, torch.zeros((1, 3), dtype=torch.int64), ValueError, "'pointers'"),
        (2, torch.zeros((1, 2)), TypeError, "float64 table 'scalars'"),
        (2, torch.zeros((2, 4), dtype=torch.float64)[:, ::2], TypeError, "contiguous"),
        (0, [1, 2], TypeError, "a list of 2 items"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    place: int, wrong: Any, error: type[Exception], part: str
) -> None:
    kernel = compile_rule(KernelKey(Rule.of(descent), (), (F, F)))
    one = torch.zeros(1)
    tables: list[Any] = [
        torch.tensor([[0, 0, 0, 1, 0]]), pointers((one, one)), table(kernel, {}),
    ]  # fmt: skip
    tables[place] = wrong
    with pytest.raises(error) as caught:
        kernel.bind(*tables)
    assert part in str(caught.value)


def test_row_modes_want_their_tables() -> None:
    kernel = compile_rule(KernelKey(Rule.of(descent), (), (F, F), "sum"))
    one = torch.zeros(1)
    tables = (torch.tensor([[0, 0, 0, 1, 0]]), pointers((one, one)), table(kernel, {}))
    with pytest.raises(ValueError, match="starts and sources for rows"):
        kernel.bind(*tables)
