"""Results go straight to memory where that changes nothing, scratch is used again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.codegen.bits import filled, same_bits
from thalweg.compiler import APPLY, Rule, interpret
from thalweg.compiler.blocks import BlockProgram
from thalweg.compiler.interpret import program_of
from thalweg.compiler.registers import Recipe, Scratch, copy

FLOAT = torch.float32


def recipe_of(rule: Any, *dtypes: torch.dtype) -> Recipe:
    return Recipe(program_of(Rule.of(rule), ()), dtypes)


def num_scratch(recipe: Recipe) -> int:
    return sum(isinstance(content, Scratch) for content in recipe.registers)


def adam(var: Any, m: Any, v: Any, grad: Any, *, a: Any, b: Any) -> tuple[Any, ...]:
    m_new = m + (grad - m) * a
    v_new = v + (grad * grad - v) * b
    return var - a * m_new / (torch.sqrt(v_new) + b), m_new, v_new


def swapped(var: Any, m: Any, v: Any, grad: Any) -> tuple[Any, ...]:
    return m + grad, v, var


def read_late(var: Any, m: Any, grad: Any) -> tuple[Any, ...]:
    m_new = m * grad
    return var + m_new * m, m_new


def twice(var: Any, m: Any, grad: Any) -> tuple[Any, ...]:
    new = var * m - grad
    return new, new


def constant(var: Any, m: Any, grad: Any, *, a: Any) -> tuple[Any, ...]:
    return torch.full_like(var, 0.1), a * 2


def chosen(var: Any, m: Any, grad: Any, *, a: Any) -> tuple[Any, ...]:
    larger = torch.where((var > m) & ~(grad >= a), var, torch.sign(m))
    return torch.maximum(larger, grad), torch.where(a > 0, m, torch.exp(grad))


def test_an_operation_is_one_call_and_a_result_no_copy() -> None:
    recipe = recipe_of(adam, *[FLOAT] * 4)
    assert len(recipe.calls) == 12
    assert num_scratch(recipe) == 2
    assert len(recipe.scalars) == 2


def test_halves_are_converted_when_read_and_written() -> None:
    half = torch.bfloat16
    recipe = recipe_of(adam, FLOAT, half, half, FLOAT)
    assert len(recipe.calls) == 12 + 4
    assert [call.function for call in recipe.calls].count(copy) == 4


@pytest.mark.parametrize("rule", [swapped, read_late, twice, constant, chosen])
@pytest.mark.parametrize("kinds", [(0,), (1,), (2, 0), (0, 2), (1, 2)])
def test_no_order_of_reads_and_writes_changes_a_bit(
    rule: Any, kinds: tuple[int, ...]
) -> None:
    known = (FLOAT, torch.float64, torch.bfloat16)
    program = program_of(Rule.of(rule), ())
    count = len(program.trace.rule.tensors)
    dtypes = tuple(known[kinds[i % len(kinds)]] for i in range(count))
    tensors = [filled(900, dtype, i) for i, dtype in enumerate(dtypes)]
    expected = interpret(Rule.of(rule), {}, tensors, {"a": 0.3})
    scalars = np.zeros((1, len(program.columns)))
    for name, number in {APPLY: 1.0, "a": 0.3}.items():
        if name in program.columns.index:
            scalars[0, program.columns.index[name]] = number
    pointers = np.array([[tensor.data_ptr() for tensor in tensors]])
    BlockProgram(program, dtypes).run(np.array([[0, 0, 0, 900, 0]]), pointers, scalars)
    for got, wanted in zip(tensors, expected, strict=False):
        assert same_bits(got, wanted)


def test_float64_becomes_a_half_by_way_of_float32() -> None:
    # Between two halves and a hair above: float32 loses the hair, the tie goes to even.
    wide = np.array([1 + 2.0**-8 + 2.0**-40])
    half = torch.empty(1, dtype=torch.bfloat16)
    copy(wide, half)
    assert half.item() == 1.0
