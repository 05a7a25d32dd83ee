"""GPU kernels under Triton's interpreter: the same bits as the reference column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.codegen import bits, triton_runs
from tests.codegen.bits import filled, same_bits, ulps
from tests.codegen.test_operations import BOUNDS, DTYPES, ELEMENTWISE, OPS, rule_for
from tests.codegen.test_same_bits import SCALARS, mixed, rule_of, trees
from tests.codegen.triton_runs import interpreted, run_dense, run_rows
from thalweg.compiler import KernelKey, Rule, TraceError, compile_rule, interpret
from thalweg.compiler.emit_triton import emit_triton
from thalweg.compiler.interpret import program_of

pytest.importorskip("triton", reason="needs Triton")

HYPER = {"lr": 0.1, "beta": 0.9}


@pytest.fixture(autouse=True)
def quiet_numpy() -> Iterator[None]:
    """Infinities and NaN are part of the tests."""
    with np.errstate(all="ignore"):
        yield


def momentum(var: Any, m: Any, grad: Any, *, lr: Any, beta: Any) -> tuple[Any, Any]:
    m_new = beta * m + (1 - beta) * grad
    return var - lr * m_new / (torch.sqrt(abs(m_new)) + 1e-8), m_new


def rowwise_adagrad(var: Any, accumulator: Any, grad: Any, *, lr: Any) -> Any:
    accumulator_new = accumulator + (grad * grad).mean(-1, keepdim=True)
    return var - lr * grad * torch.rsqrt(accumulator_new), accumulator_new


def trust(var: Any, m: Any, grad: Any, *, lr: Any) -> Any:
    """Two totals, the second of which needs the first; a norm, a mean, a maximum."""
    direction = m + grad / torch.linalg.vector_norm(grad)
    ratio = torch.linalg.vector_norm(var) / (direction.abs().mean() + direction.amax())
    return var - lr * ratio * direction, direction


def agree(new: list[Tensor], expected: tuple[Tensor, ...]) -> None:
    for got, wanted in zip(new, expected, strict=False):
        assert same_bits(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_operations_agree_with_the_reference(name: str, dtype: torch.dtype) -> None:
    key = KernelKey(rule_for(name), (), (dtype,) * 2)
    tensors = [filled(1101, dtype, i) for i in range(2)]
    new = run_dense(interpreted(key), tensors, {})[0]
    expected = interpret(key.rule, {}, tensors, {})[0]
    if OPS[name].is_exact:
        assert same_bits(new, expected)
        return
    is_normal = expected.isfinite() & (expected.abs() >= torch.finfo(dtype).tiny)
    is_normal &= new.isfinite()
    assert is_normal.sum() > 100
    assert ulps(new, expected)[is_normal].max() <= BOUNDS.get(name, 2)
    assert torch.equal(new.isnan(), expected.isnan())


@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
)
@given(st.lists(st.tuples(trees, trees), min_size=10, max_size=14))
def test_random_rules_have_the_reference_bits(pairs: list[tuple[Any, Any]]) -> None:
    for number, pair in enumerate(pairs):
        dtypes = ((DTYPES[number % 4],) * 3, mixed(number))[number % 2]
        key = KernelKey(rule_of(*pair), (), dtypes)
        tensors = [filled(1025, dtype, i) for i, dtype in enumerate(dtypes)]
        new = run_dense(interpreted(key), tensors, SCALARS)
        agree(new, interpret(key.rule, {}, tensors, SCALARS))


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 3072, 20_000])
def test_full_and_last_pieces_are_the_same_rule(count: int) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    key = KernelKey(Rule.of(momentum), (), dtypes)
    tensors = [filled(30_000, dtype, i)[:count] for i, dtype in enumerate(dtypes)]
    new = run_dense(interpreted(key), tensors, HYPER)
    agree(new, interpret(key.rule, {}, tensors, HYPER))


def test_a_piece_may_begin_anywhere() -> None:
    key = KernelKey(Rule.of(momentum), (), (torch.float32,) * 3)
    wide = [torch.randn(2500) for _ in range(3)]
    kernel = interpreted(key)
    items = torch.tensor([[0, 1, 3, 1024, 0], [0, 1100, 1100, 1024, 1]])
    pointers = torch.tensor([[tensor.data_ptr() for tensor in wide]])
    table = torch.zeros(2, len(kernel.columns), dtype=torch.float64)
    for row, lr in enumerate((0.1, 0.5)):
        for name, value in {"lr": lr, "beta": 0.9, "apply": 1.0}.items():
            table[row, kernel.columns.index[name]] = value
    before = [tensor.clone() for tensor in wide]
    kernel.launch(items, pointers, table)
    for start, skip, lr in ((1, 3, 0.1), (1100, 1100, 0.5)):
        old = [tensor[start : start + 1024] for tensor in before[:2]]
        gradient = before[2][skip : skip + 1024]
        expected = interpret(key.rule, {}, [*old, gradient], {"lr": lr, "beta": 0.9})
        agree([tensor[start : start + 1024] for tensor in wide[:2]], expected)
    assert torch.equal(wide[0][1025:1100], before[0][1025:1100])
    assert torch.equal(wide[2], before[2])


def test_nothing_is_written_where_apply_is_zero() -> None:
    key = KernelKey(Rule.of(momentum), (), (torch.float32,) * 3)
    tensors = [torch.randn(100) for _ in range(3)]
    agree(run_dense(interpreted(key), tensors, HYPER, apply=0.0), tuple(tensors))


@pytest.mark.parametrize("gradient", DTYPES)
@pytest.mark.parametrize("mode", ["sum", "sequence"])
@pytest.mark.parametrize("width", [16, 130])
def test_rows_have_the_bits_of_the_c_kernel(
    mode: Any, gradient: torch.dtype, width: int
) -> None:
    dtypes = (torch.float32, torch.bfloat16, gradient)
    key = KernelKey(Rule.of(momentum), (), dtypes, mode)
    indices = torch.randint(0, 20, (30,))
    tensors = [torch.randn(40, width), torch.randn(40, width).to(torch.bfloat16)]
    tensors.append(torch.randn(30, width).to(gradient))
    new = run_rows(interpreted(key), tensors, indices, HYPER)
    kernel = compile_rule(key)
    expected = bits.run_rows(kernel, tensors, indices, HYPER, compiled=False)
    agree(new, tuple(expected))


@pytest.mark.parametrize("mode", ["sum", "sequence"])
@pytest.mark.parametrize("width", [7, 300])
def test_rows_with_row_values_have_the_same_bits(mode: Any, width: int) -> None:
    dtypes = (torch.float32, torch.float32, torch.bfloat16)
    key = KernelKey(Rule.of(rowwise_adagrad), (), dtypes, mode, ("row",))
    indices = torch.randint(0, 9, (20,))
    tensors = [torch.randn(12, width), torch.rand(12, 1)]
    tensors.append(torch.randn(20, width).to(torch.bfloat16))
    new = run_rows(interpreted(key), tensors, indices, {"lr": 0.1})
    kernel = compile_rule(key)
    expected = bits.run_rows(kernel, tensors, indices, {"lr": 0.1}, compiled=False)
    agree(new, tuple(expected))


@pytest.mark.parametrize("shape", [(70, 64), (3, 17_000), (1, 1), (5, 257)])
def test_reductions_over_rows_have_one_order(shape: tuple[int, int]) -> None:
    key = KernelKey(
        Rule.of(rowwise_adagrad), (), (torch.float32,) * 3, layouts=("row",)
    )
    tensors = [torch.randn(shape), torch.rand(shape[0], 1), torch.randn(shape)]
    new = run_dense(interpreted(key), tensors, {"lr": 0.1}, width=shape[1])
    agree(new, interpret(key.rule, {}, tensors, {"lr": 0.1}, ("row",)))


@pytest.mark.parametrize("count", [1, 300, 16_384, 50_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_reductions_over_variables_have_one_order(
    count: int, dtype: torch.dtype
) -> None:
    key = KernelKey(Rule.of(trust), (), (dtype,) * 3)
    tensors = [torch.randn(count).to(dtype) for _ in range(3)]
    new = run_dense(interpreted(key), tensors, {"lr": 0.1})
    agree(new, interpret(key.rule, {}, tensors, {"lr": 0.1}))


def test_totals_can_be_joined_between_passes() -> None:
    key = KernelKey(Rule.of(trust), (), (torch.float32,) * 3)
    kernel = interpreted(key)
    assert [[kind for _, kind in totals] for totals in kernel.totals] == [
        ["sum", "sum"],
        ["sum", "max"],
    ]
    tensors = [torch.randn(2, 600) for _ in range(3)]
    items = torch.tensor([[0, 0, 0, 600, 0], [0, 600, 600, 600, 1]])
    pointers = torch.tensor([[tensor.data_ptr() for tensor in tensors]])
    table = torch.zeros(2, len(kernel.columns), dtype=torch.float64)
    seen: list[int] = []
    kernel.launch(items, pointers, table, between=seen.append)
    assert seen == [0, 1]
    column = kernel.columns.index[kernel.totals[0][0][0]]
    assert torch.allclose(table[:, column], (tensors[2].double() ** 2).sum(1))


def test_a_scalar_slot_is_kept_in_the_table_meanwhile() -> None:
    def scheduled(var: Any, cache: Any, grad: Any, *, decay: Any) -> Any:
        cache_new = cache * decay
        return var - cache_new * grad, cache_new

    dtypes = (torch.float32, torch.bfloat16, torch.float32)
    key = KernelKey(Rule.of(scheduled), (), dtypes, layouts=("scalar",))
    cache = torch.tensor([0.7], dtype=torch.bfloat16)
    tensors = [torch.randn(2000), cache, torch.randn(2000)]
    new = run_dense(interpreted(key), tensors, {"decay": 0.9})
    agree(new, interpret(key.rule, {}, tensors, {"decay": 0.9}, ("scalar",)))
    assert new[1].item() == torch.tensor(0.7).bfloat16().mul(0.9).bfloat16().item()
    still = run_dense(interpreted(key), tensors, {"decay": 0.9}, apply=0.0)
    agree(still, tuple(tensors))


def test_outputs_that_do_not_vary_and_scalars_that_are_masks() -> None:
    def reset(var: Any, m: Any, grad: Any, *, lr: Any) -> Any:
        return torch.where(lr > 0, var - lr * grad, var), torch.full_like(m, -0.0)

    key = KernelKey(Rule.of(reset), (), (torch.float32,) * 3)
    tensors = [torch.randn(50) for _ in range(3)]
    for lr in (0.5, -1.0):
        new = run_dense(interpreted(key), tensors, {"lr": lr})
        agree(new, interpret(key.rule, {}, tensors, {"lr": lr}))


MASKS: dict[str, Any] = {
    "and": lambda grad, lr, row: (lr > 0.25) & (grad > 0),
    "or": lambda grad, lr, row: (grad > 0) | (lr > 0.25),
    "xor": lambda grad, lr, row: (lr > 0.25) ^ (grad > 0),
    "not": lambda grad, lr, row: ~(lr > 0.25) & (grad > 0),
    "tests": lambda grad, lr, row: torch.isnan(lr) | (grad > 0) & torch.isfinite(lr),
    "numbers": lambda grad, lr, row: (lr > 0.25) & (lr < 0.75) & (grad > 0),
    "rows": lambda grad, lr, row: (row > 0) ^ (lr > 0.25) ^ (grad > 0),
    "totals": lambda grad, lr, row: (grad.mean() > 0) ^ (lr > 0.25) ^ (grad > 0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("joined", MASKS.values(), ids=MASKS)
def test_a_mask_of_numbers_meets_one_of_elements(
    joined: Any, dtype: torch.dtype
) -> None:
    def chosen(var: Any, grad: Any, *, lr: Any) -> Any:
        row = grad.sum(dim=-1, keepdim=True)
        return torch.where(joined(grad, lr, row), var - lr * grad, grad)

    key = KernelKey(Rule.of(chosen), (), (dtype,) * 2)
    kernel = interpreted(key)
    tensors = [torch.randn(6, 50).to(dtype) for _ in range(2)]
    for lr in (0.125, 0.5):
        new = run_dense(kernel, tensors, {"lr": lr}, width=50)
        agree(new, interpret(key.rule, {}, tensors, {"lr": lr}))


def test_rows_of_a_rule_that_reduces_variables_are_refused() -> None:
    program = program_of(Rule.of(trust), ())
    with pytest.raises(TraceError, match='sparse_update="exact"'):
        emit_triton(program, (torch.float32,) * 3, "sum")


def test_tables_are_checked() -> None:
    kernel = interpreted(KernelKey(Rule.of(momentum), (), (torch.float32,) * 3, "sum"))
    items = torch.zeros(1, 5, dtype=torch.int64)
    pointers = torch.zeros(1, 3, dtype=torch.int64)
    table = torch.zeros(1, len(kernel.columns), dtype=torch.float64)
    with pytest.raises(TypeError, match="int64 table 'items'"):
        kernel.launch(items.int(), pointers, table)
    with pytest.raises(TypeError, match="contiguous table 'scalars'"):
        kernel.launch(items, pointers, table.repeat(2, 2)[:, ::2])
    with pytest.raises(ValueError, match=r"shape \(n, 3\) for 'pointers'"):
        kernel.launch(items, pointers[:, :2].contiguous(), table)
    with pytest.raises(ValueError, match="starts and sources"):
        kernel.launch(items, pointers, table)


def test_an_interpreter_that_does_not_work_is_a_reason_to_skip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = "TypeError: only 0-dimensional arrays"
    monkeypatch.setattr(triton_runs, "_problem_of_interpreter", lambda: problem)
    key = KernelKey(Rule.of(momentum), (), (torch.float32,) * 3)
    with pytest.raises(pytest.skip.Exception, match=f"NumPy .*: {problem}"):
        interpreted(key)
