"""C = interpreter, bit for bit, for random rules of the exact operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.codegen.bits import filled, run_dense, run_rows, same_bits
from thalweg.compiler import Kernel, KernelKey, Rule, compile_rules

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ROW_DTYPES = (torch.float32, torch.bfloat16)
COUNTS = (1003, 1003, 17_003, 17_003)
"""Elements of one rule after the other: memory is fetched ahead in long pieces."""
SCALARS = {"a": 0.1, "b": -1.75, "zero": 0.0}
LEAVES = ("var", "slot", "grad", "a", "b", "zero", 0.3, 2, -0.0, 1e-30)
UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": lambda x: -x,
    "abs": abs,
    "square": torch.square,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "sign": torch.sign,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "cube": lambda x: x**3,
    "relu": torch.relu,
    "clamp": lambda x: x.clamp(-0.5, 2.0),
    "finite": lambda x: torch.where(torch.isfinite(x), x, 7.0),
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "less": lambda x, y: torch.where(x < y, x, y * 2),
    "mask": lambda x, y: (x >= y) * x,
    "both": lambda x, y: torch.where((x > 0) & ~(y > x), y, x),
    "lerp": lambda x, y: torch.lerp(x, y, 0.25),
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=0.5),
    "addcdiv": lambda x, y: torch.addcdiv(x, y, x, value=-2),
    "alpha": lambda x, y: torch.add(x, y, alpha=3),
}
OPERATORS = ("neg", "abs", "cube", "add", "sub", "mul", "div", "less", "mask")

trees = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(sorted(UNARY)), inner),
        st.tuples(st.sampled_from(sorted(BINARY)), inner, inner),
    ),
    max_leaves=8,
)
NAMES = ("var", "slot", "grad", *SCALARS)


def evaluate(tree: Any, values: dict[str, Any]) -> Any:
    """Build the expression of a tree on proxies or numbers."""
    if not isinstance(tree, tuple):
        return values[tree] if isinstance(tree, str) else tree
    operands = [evaluate(part, values) for part in tree[1:]]
    is_traced = [isinstance(operand, torch.fx.Proxy) for operand in operands]
    if not any(is_traced) or tree[0] not in OPERATORS:
        # torch's functions want tensors where the operators take numbers too.
        for place, known in enumerate(is_traced):
            if not known:
                operands[place] = torch.full_like(values["var"], operands[place])
    function: Any = UNARY.get(tree[0]) or BINARY[tree[0]]
    return function(*operands)


def rule_of(first: Any, second: Any) -> Rule:
    """A rule whose two results are random expressions."""
    both = (first, second)  # in a tuple: a bare number from outside is refused

    def random_rule(
        var: Any, slot: Any, grad: Any, *, a: Any, b: Any, zero: Any
    ) -> tuple[Any, Any]:
        values = {"var": var, "slot": slot, "grad": grad, "a": a, "b": b, "zero": zero}
        return evaluate(both[0], values), evaluate(both[1], values)

    return Rule.of(random_rule)


@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # shrinking would compile for minutes
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
)
@given(st.lists(st.tuples(trees, trees), min_size=10, max_size=14))
def test_random_rules_have_the_interpreters_bits(pairs: list[tuple[Any, Any]]) -> None:
    rules = [rule_of(*pair) for pair in pairs]
    keys = [
        KernelKey(rule, (), dtypes)
        for number, rule in enumerate(rules)
        for dtypes in ((DTYPES[number % 4],) * 3, mixed(number))
    ]
    for count, key, kernel in zip(
        cycle(COUNTS), keys, compile_rules(keys), strict=False
    ):
        tensors = [filled(count, dtype, i) for i, dtype in enumerate(key.dtypes)]
        new = run_dense(kernel, tensors, SCALARS, compiled=True)
        expected = run_dense(kernel, tensors, SCALARS, compiled=False)
        for got, wanted in zip(new, expected, strict=True):
            assert same_bits(got, wanted), kernel.source


@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
)
@given(st.lists(st.tuples(trees, trees, st.integers(1, 70)), min_size=8, max_size=9))
def test_random_rules_do_to_rows_what_they_do_to_all(
    drawn: list[tuple[Any, Any, int]],
) -> None:
    modes: list[Any] = ["sum", "sequence"]
    keys: list[KernelKey] = []
    for number, (first, second, _) in enumerate(drawn):
        rule, dtype = rule_of(first, second), ROW_DTYPES[number % 2]
        # The sum of a row's gradients is rounded once, where it is stored.
        keys.append(KernelKey(rule, (), (dtype, dtype, torch.float32)))
        keys += [KernelKey(rule, (), (dtype,) * 3, mode) for mode in modes]
    kernels = compile_rules(keys)
    for number, (*_, width) in enumerate(drawn):
        dense, *rows = kernels[3 * number : 3 * number + 3]
        generator = torch.Generator().manual_seed(number)
        indices = torch.randint(40, (90,), generator=generator)
        dtype = ROW_DTYPES[number % 2]
        tensors = [
            filled(count * width, dtype, shift).reshape(count, width)
            for shift, count in enumerate((50, 50, 90))
        ]
        for kernel in rows:
            new = run_rows(kernel, tensors, indices, SCALARS, compiled=True)
            expected = run_rows(kernel, tensors, indices, SCALARS, compiled=False)
            whole = one_after_the_other(dense, tensors, indices, kernel.key.mode)
            for got, wanted, other in zip(new[:2], expected[:2], whole, strict=True):
                assert same_bits(got, wanted), kernel.source
                assert same_bits(got, other), kernel.source


def one_after_the_other(
    dense: Kernel, tensors: Sequence[Tensor], indices: Tensor, mode: str
) -> list[Tensor]:
    """What updates of the touched rows alone, as if they were all, come to."""
    turns: list[dict[int, Tensor]] = [{}]
    for index, value in zip(indices.tolist(), tensors[-1].float(), strict=True):
        if mode == "sum":
            known = turns[0].get(index)
            turns[0][index] = value if known is None else known + value
            continue
        turn = sum(index in earlier for earlier in turns)
        if turn == len(turns):
            turns.append({})
        turns[turn][index] = value
    held = [tensor.clone() for tensor in tensors[:-1]]
    for turn in turns:
        rows = torch.tensor(list(turn))
        given = [*(tensor[rows] for tensor in held), torch.stack(list(turn.values()))]
        new = run_dense(dense, given, SCALARS, compiled=True)
        for tensor, value in zip(held, new, strict=False):
            tensor[rows] = value
    return held


def mixed(number: int) -> tuple[torch.dtype, ...]:
    """Another combination of storage types for each number."""
    return tuple(DTYPES[(number // 4**place + place) % 4] for place in range(3))


def momentum(var: Any, m: Any, grad: Any, *, lr: Any, beta: Any) -> tuple[Any, Any]:
    m_new = beta * m + (1 - beta) * grad
    return var - lr * m_new / (torch.sqrt(abs(m_new)) + 1e-8), m_new


HYPER = {"lr": 0.1, "beta": 0.9}


@pytest.mark.parametrize("count", [16_383, 16_384, 16_385, 16_447, 16_448, 32_767])
def test_pieces_just_long_enough_to_fetch_ahead(count: int) -> None:
    keys = [KernelKey(Rule.of(momentum), (), (dtype,) * 3) for dtype in DTYPES]
    for kernel in compile_rules(keys):
        tensors = [filled(count, dtype, i) for i, dtype in enumerate(kernel.key.dtypes)]
        new = run_dense(kernel, tensors, HYPER, compiled=True)
        expected = run_dense(kernel, tensors, HYPER, compiled=False)
        for got, wanted in zip(new, expected, strict=True):
            assert same_bits(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slot", DTYPES)
def test_threads_do_not_change_a_bit(dtype: torch.dtype, slot: torch.dtype) -> None:
    keys = [KernelKey(Rule.of(momentum), (), (a, b, a)) for a in DTYPES for b in DTYPES]
    kernels = dict(zip(keys, compile_rules(keys), strict=True))
    kernel = kernels[KernelKey(Rule.of(momentum), (), (dtype, slot, dtype))]
    tensors = [filled(100_003, d, i) for i, d in enumerate(kernel.key.dtypes)]
    one = run_dense(kernel, tensors, HYPER, compiled=True, num_threads=1)
    two = run_dense(kernel, tensors, HYPER, compiled=True, num_threads=2)
    expected = run_dense(kernel, tensors, HYPER, compiled=False)
    for a, b, c in zip(one, two, expected, strict=True):
        assert same_bits(a, b)
        assert same_bits(a, c)


@pytest.mark.parametrize("mode", ["sum", "sequence"])
@pytest.mark.parametrize("gradient", DTYPES)
def test_rows_have_the_interpreters_bits(mode: Any, gradient: torch.dtype) -> None:
    modes: list[Any] = ["sum", "sequence"]
    keys = [
        KernelKey(Rule.of(momentum), (), (torch.float32, torch.bfloat16, g), m)
        for g in DTYPES
        for m in modes
    ]
    kernels = dict(zip(keys, compile_rules(keys), strict=True))
    dtypes = (torch.float32, torch.bfloat16, gradient)
    kernel = kernels[KernelKey(Rule.of(momentum), (), dtypes, mode)]
    indices = torch.randint(0, 300, (2000,))
    var, m = torch.randn(500, 24), torch.randn(500, 24).to(torch.bfloat16)
    tensors = [var, m, torch.randn(2000, 24).to(gradient)]
    one = run_rows(kernel, tensors, indices, HYPER, compiled=True)
    two = run_rows(kernel, tensors, indices, HYPER, compiled=True, num_threads=2)
    expected = run_rows(kernel, tensors, indices, HYPER, compiled=False)
    for a, b, c in zip(one, two, expected, strict=True):
        assert same_bits(a, b)
        assert same_bits(a, c)


def test_unique_rows_are_the_dense_update_of_those_rows() -> None:
    dtypes = (torch.float32,) * 3
    rule = Rule.of(momentum)
    keys = [KernelKey(rule, (), dtypes), KernelKey(rule, (), dtypes, "sum")]
    dense, rows = compile_rules(keys)
    indices = torch.randperm(50)[:20]
    var, m, grad = (torch.randn(50, 7) for _ in range(3))
    sparse = run_rows(
        rows, [var, m, grad[indices].contiguous()], indices, HYPER, compiled=True
    )
    full = run_dense(dense, [var, m, grad], HYPER, compiled=True)
    for new, whole, old in zip(sparse[:2], full[:2], (var, m), strict=True):
        assert same_bits(new[indices], whole[indices])
        untouched = torch.ones(50, dtype=torch.bool)
        untouched[indices] = False
        assert same_bits(new[untouched], old[untouched])
