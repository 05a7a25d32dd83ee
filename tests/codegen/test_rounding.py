"""Stochastic rounding gives the same bits on every path through the compiler."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.codegen import triton_runs
from tests.codegen.bits import filled, run_dense, run_rows, same_bits, scalar_table
from tests.codegen.test_same_bits import evaluate, trees
from thalweg.compiler import Kernel, KernelKey, Rule, compile_rule, compile_rules
from thalweg.compiler import kernel_source as source_of
from thalweg.compiler.rounding import FIRST_INDEX, ROUNDING_KEY, STEP

HALF, FLOAT, DOUBLE = torch.bfloat16, torch.float32, torch.float64
# The index of an element passes 2**32 in the midst of a tensor.
NUMBERS = {ROUNDING_KEY: 4_000_000_001, FIRST_INDEX: 2**32 - 500, STEP: 3}
SCALARS = {"lr": 0.1, "beta": 0.9, **NUMBERS}
OTHERS = {"a": 0.1, "b": -1.75, "zero": 0.0}
DTYPES = [(HALF,) * 3, (HALF, FLOAT, HALF), (FLOAT, HALF, FLOAT), (HALF, DOUBLE, FLOAT)]


def momentum(
    var: Any, m: Any, grad: Any, *, lr: Any, beta: Any, step: Any
) -> tuple[Any, Any]:
    m_new = beta * m + (1 - beta) * grad
    return var - lr * m_new / (torch.sqrt(abs(m_new)) + 1e-8 * step), m_new


def centred(var: Any, m: Any, grad: Any, *, lr: Any, beta: Any, step: Any) -> Any:
    mean = torch.mean(grad, -1, keepdim=True)
    return var - lr * (grad - mean), beta * m + step * torch.amax(abs(grad)) * grad


def key_of(rule: Any, dtypes: Sequence[torch.dtype], mode: Any = "dense") -> KernelKey:
    names = [n for n, d in zip(("var", "m"), dtypes, strict=False) if d == HALF]
    return KernelKey(Rule.of(rule), (), tuple(dtypes), mode, rounding=tuple(names))


def assert_same(some: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    for one, other in zip(some, others, strict=True):
        assert same_bits(one, other)


@pytest.fixture(scope="module", autouse=True)
def kernels() -> dict[KernelKey, Kernel]:
    """All kernels of this module, built at once."""
    modes: list[Any] = ["dense", "sum", "sequence"]
    keys = [key_of(momentum, dtypes, mode) for dtypes in DTYPES for mode in modes]
    keys.append(key_of(centred, DTYPES[0]))
    return dict(zip(keys, compile_rules(keys), strict=True))


@pytest.mark.parametrize("dtypes", DTYPES)
def test_threads_and_the_interpreter_give_the_same_bits(dtypes: Any) -> None:
    kernel = compile_rule(key_of(momentum, dtypes))
    tensors = [filled(100_003, dtype, i) for i, dtype in enumerate(dtypes)]
    one = run_dense(kernel, tensors, SCALARS, compiled=True, num_threads=1)
    assert_same(one, run_dense(kernel, tensors, SCALARS, compiled=True, num_threads=2))
    assert_same(one, run_dense(kernel, tensors, SCALARS, compiled=False))
    plain = compile_rule(KernelKey(Rule.of(momentum), (), dtypes))
    nearest = run_dense(plain, tensors, SCALARS, compiled=True)
    for old, new, dtype in zip(nearest[:2], one[:2], dtypes[:2], strict=True):
        assert same_bits(old, new) == (dtype != HALF)


@pytest.mark.parametrize("mode", ["sum", "sequence"])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_rows_have_the_interpreters_bits(dtypes: Any, mode: Any) -> None:
    kernel = compile_rule(key_of(momentum, dtypes, mode))
    indices = torch.randint(0, 100, (300,))
    shapes = (200, 24), (200, 24), (300, 24)
    tensors = [torch.randn(s).to(d) for s, d in zip(shapes, dtypes, strict=True)]
    one = run_rows(kernel, tensors, indices, SCALARS, compiled=True)
    two = run_rows(kernel, tensors, indices, SCALARS, compiled=True, num_threads=2)
    assert_same(one, two)
    assert_same(one, run_rows(kernel, tensors, indices, SCALARS, compiled=False))


@pytest.mark.parametrize("mode", ["sum", "sequence"])
def test_rows_are_the_dense_update_of_those_rows(mode: Any) -> None:
    dense, rows = (
        compile_rule(key_of(momentum, DTYPES[0], m)) for m in ("dense", mode)
    )
    var, m, grad = (torch.randn(50, 7).to(HALF) for _ in range(3))
    indices = torch.randperm(50)[:20]
    given_rows = [var, m, grad[indices].contiguous()]
    sparse = run_rows(rows, given_rows, indices, SCALARS, compiled=True)
    full = run_dense(dense, [var, m, grad], SCALARS, compiled=True)
    for new, whole in zip(sparse[:2], full[:2], strict=True):
        assert same_bits(new[indices], whole[indices])


@pytest.mark.parametrize("compiled", [True, False])
def test_pieces_and_shards_have_the_bits_of_the_whole(compiled: bool) -> None:
    kernel = compile_rule(key_of(momentum, DTYPES[0]))
    tensors = [filled(70_001, HALF, i) for i in range(3)]
    whole = run_dense(kernel, tensors, SCALARS, compiled=compiled)
    cuts = [0, 1, 63, 501, 65_600, 70_001]
    shards = [
        run_dense(
            kernel,
            [tensor[start:stop].clone() for tensor in tensors],
            {**SCALARS, FIRST_INDEX: NUMBERS[FIRST_INDEX] + start},
            compiled=compiled,
        )
        for start, stop in pairwise(cuts)
    ]
    assert_same(whole, [torch.cat(parts) for parts in zip(*shards, strict=True)])
    items = [[0, a, a, b - a, 0] for a, b in pairwise(cuts)]
    copies = [tensor.clone() for tensor in tensors]
    tables = (
        torch.tensor(items),
        torch.tensor([[copy.data_ptr() for copy in copies]]),
        scalar_table(kernel, SCALARS, 70_001),
    )
    if compiled:
        kernel.launch(*tables, num_threads=2)
    else:
        kernel.bind_interpreter(tables)(None)
    assert_same(whole, copies)


def test_rules_that_know_rows_round_their_elements_alike() -> None:
    kernel = compile_rule(key_of(centred, DTYPES[0]))
    tensors = [torch.randn(3000, 23).to(HALF) for _ in range(3)]
    runs = [
        run_dense(kernel, tensors, SCALARS, compiled=c, num_threads=n, width=23)
        for c, n in ((True, 1), (True, 2), (False, 1))
    ]
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


@settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
)
@given(st.lists(st.tuples(trees, trees), min_size=8, max_size=10))
def test_random_rules_have_the_interpreters_bits(pairs: list[Any]) -> None:
    keys = [key_of(rule_of(pair), DTYPES[i % 4]) for i, pair in enumerate(pairs)]
    for key, kernel in zip(keys, compile_rules(keys), strict=True):
        tensors = [filled(1003, dtype, i) for i, dtype in enumerate(key.dtypes)]
        numbers = {**OTHERS, **NUMBERS}
        new = run_dense(kernel, tensors, numbers, compiled=True)
        assert_same(new, run_dense(kernel, tensors, numbers, compiled=False))


def rule_of(pair: Any) -> Any:
    """A function whose two results are random expressions."""

    def random_rule(
        var: Any, m: Any, grad: Any, *, a: Any, b: Any, zero: Any, step: Any
    ) -> tuple[Any, Any]:
        values = {"var": var, "slot": m, "grad": grad, "a": a, "b": b, "zero": zero}
        return evaluate(pair[0], values), evaluate(pair[1], values)

    return random_rule


@pytest.mark.parametrize("dtypes", DTYPES)
def test_a_gpu_kernel_has_the_bits_of_c(dtypes: Any) -> None:
    key = key_of(momentum, dtypes)
    tensors = [filled(1003, dtype, i) for i, dtype in enumerate(dtypes)]
    expected = run_dense(compile_rule(key), tensors, SCALARS, compiled=True)
    with np.errstate(all="ignore"):
        found = triton_runs.run_dense(triton_runs.interpreted(key), tensors, SCALARS)
    assert_same(found, expected)


@pytest.mark.parametrize("mode", ["sum", "sequence"])
def test_rows_of_a_gpu_kernel_have_the_bits_of_c(mode: Any) -> None:
    key = key_of(momentum, DTYPES[0], mode)
    tensors = [torch.randn(n, 24).to(HALF) for n in (12, 12, 30)]
    indices = torch.randint(0, 8, (30,))
    expected = run_rows(compile_rule(key), tensors, indices, SCALARS, compiled=True)
    kernel = triton_runs.interpreted(key)
    assert_same(triton_runs.run_rows(kernel, tensors, indices, SCALARS), expected)


def test_a_gpu_kernel_that_knows_rows_has_the_bits_of_c() -> None:
    key = key_of(centred, DTYPES[0])
    tensors = [torch.randn(5, 300).to(HALF) for _ in range(3)]
    compiled = compile_rule(key)
    expected = run_dense(compiled, tensors, SCALARS, compiled=True, width=300)
    kernel = triton_runs.interpreted(key)
    found = triton_runs.run_dense(kernel, tensors, SCALARS, width=300)
    assert_same(found, expected)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_reader_sees_what_is_rounded_by_chance(device: str) -> None:
    text = source_of(key_of(momentum, DTYPES[2]), device)
    assert "rounded stochastically: m\n" in text or "stochastically: m */" in text
    assert "m_key" in text
    assert "var_key" not in text
    plain = source_of(KernelKey(Rule.of(momentum), (), DTYPES[2]), device)
    for word in ("stochastic", "origin", "_key"):
        assert word not in plain
