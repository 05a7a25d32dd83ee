"""Without a compiler: blocks, threads and kept tables change no bit."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from tests.codegen.bits import filled, same_bits
from thalweg.compiler import APPLY, Rule, blocks, frames, interpret
from thalweg.compiler.blocks import (
    BLOCK,
    BlockLaunch,
    BlockProgram,
    treats_elements_alike,
)
from thalweg.compiler.interpret import program_of

HYPER = {"lr": 0.1, "beta": 0.9}


def rule(var: Any, m: Any, grad: Any, *, lr: Any, beta: Any) -> tuple[Any, Any]:
    m_new = beta * m + (1 - beta) * grad
    return var - lr * m_new / (torch.sqrt(torch.square(m_new)) + 1e-8), m_new


def scalar_row(program: Any, **numbers: float) -> np.ndarray:
    columns = program.columns
    known = {APPLY: 1.0, **HYPER, **numbers}
    return np.array([[known.get(name, 0.0) for name in columns.names]])


class Tables:
    """Items, pointers and scalars over some tensors."""

    def __init__(self, program: Any, tensors: list[list[torch.Tensor]]) -> None:
        items = [[i, 0, 0, own[0].numel(), 0] for i, own in enumerate(tensors)]
        self.items = np.array(items)
        self.pointers = np.array([[t.data_ptr() for t in own] for own in tensors])
        self.scalars = scalar_row(program)
        self.launch: BlockLaunch | None = None

    def run(self, program: BlockProgram) -> None:
        if self.launch is None:
            self.launch = program.bind(self.items, self.pointers, self.scalars)
        self.launch()


@pytest.fixture
def program() -> Any:
    return program_of(Rule.of(rule), ())


def tensors_of(count: int, dtypes: tuple[torch.dtype, ...]) -> list[torch.Tensor]:
    return [filled(count, dtype, i) for i, dtype in enumerate(dtypes)]


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32,) * 3,
        (torch.float64, torch.float32, torch.float16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("count", [0, 1, 1003, 4 * BLOCK + 7])
def test_blocks_and_threads_give_the_oracles_bits(
    program: Any, dtypes: tuple[torch.dtype, ...], count: int
) -> None:
    tensors = tensors_of(max(count, 400), dtypes)
    tensors = [tensor[:count].clone() for tensor in tensors]
    expected = interpret(Rule.of(rule), {}, tensors, HYPER)
    Tables(program, [tensors]).run(BlockProgram(program, dtypes))
    for got, wanted in zip(tensors, expected, strict=False):
        assert same_bits(got, wanted)


def sums(var: Any, m: Any, grad: Any, *, lr: Any, beta: Any) -> tuple[Any, Any]:
    m_new = beta * m + (1 - beta) * grad
    return var - lr * m_new, m_new


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", [BLOCK, 4 * BLOCK, 3 * BLOCK + 5])
def test_what_torch_shares_has_the_oracles_bits_in_blocks_of_any_length(
    dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "SHARED_BLOCK", block)
    program, dtypes = program_of(Rule.of(sums), ()), (dtype,) * 3
    work = [tensors_of(count, dtypes) for count in (500, 5 * BLOCK + 9, 4 * BLOCK)]
    expected = [interpret(Rule.of(sums), {}, own, HYPER) for own in work]
    found = BlockProgram(program, dtypes)
    for _ in range(2):
        tables = Tables(program, work)
        tables.run(found)
        for own, wanted in zip(work, expected, strict=True):
            assert all(map(same_bits, own, wanted))
        expected = [interpret(Rule.of(sums), {}, own, HYPER) for own in work]


def test_long_tensors_alone_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    program, dtypes = program_of(Rule.of(sums), ()), (torch.float32,) * 3
    work = [tensors_of(count, dtypes) for count in (BLOCK - 1, 4 * BLOCK)]
    tables, found = Tables(program, work), BlockProgram(program, dtypes)
    launch = found.bind(tables.items, tables.pointers, tables.scalars)
    assert [length for _, _, length, _ in launch._own.pieces] == [BLOCK - 1]
    assert [length for _, _, length, _ in launch._shared.pieces] == [4 * BLOCK]
    monkeypatch.setattr(blocks, "SHARED_BLOCK", BLOCK)
    launch._cut()
    assert [length for _, _, length, _ in launch._shared.pieces] == [BLOCK] * 4


def test_a_rule_with_roots_leaves_nothing_to_torch(program: Any) -> None:
    dtypes = (torch.float32,) * 3
    found, tensors = BlockProgram(program, dtypes), tensors_of(4 * BLOCK, dtypes)
    tables = Tables(program, [tensors])
    launch = found.bind(tables.items, tables.pointers, tables.scalars)
    assert not launch._shared.pieces
    assert len(launch._own.pieces) == 4


def test_pieces_that_come_again_follow_what_changes(program: Any) -> None:
    dtypes = (torch.float32,) * 3
    work = [tensors_of(count, dtypes) for count in (700, 1003, BLOCK + 5)]
    for compiled in (program, program_of(Rule.of(sums), ())):
        tables, found = Tables(compiled, work), BlockProgram(compiled, dtypes)
        tables.scalars = np.repeat(tables.scalars, 2, axis=0)
        tables.items[1, 4] = 1
        rule_of = rule if compiled is program else sums
        # The same, other numbers, rows that differ, one that does not apply, moved.
        for step, (first, second) in enumerate(
            [(0.1, 0.1)] * 4 + [(0.2, 0.2)] * 3 + [(0.2, 0.3), (0.3, None), (0.1, 0.1)]
        ):
            given = first, second, first
            tables.scalars[:] = [
                scalar_row(compiled, lr=lr or 0.0, **{APPLY: float(lr is not None)})[0]
                for lr in (first, second)
            ]
            expected = [
                own
                if lr is None
                else interpret(Rule.of(rule_of), {}, own, {**HYPER, "lr": lr})
                for own, lr in zip(work, given, strict=True)
            ]
            tables.run(found)
            for own, wanted in zip(work, expected, strict=True):
                assert all(map(same_bits, own, wanted)), step
            if step % 3 == 2:
                work[1][-1] = work[1][-1].clone()
                tables.pointers[1, -1] = work[1][-1].data_ptr()


def test_numpy_warns_as_before_when_a_pass_is_over(program: Any) -> None:
    dtypes = (torch.float32,) * 3
    tensors = [torch.full((500,), torch.inf) for _ in dtypes]
    tables, found = Tables(program, [tensors]), BlockProgram(program, dtypes)
    with np.errstate(invalid="raise"):
        for _ in range(3):
            tables.run(found)  # inf - inf
        with pytest.raises(FloatingPointError):
            np.subtract(np.inf, np.inf)


def test_tensors_that_moved_are_found(program: Any) -> None:
    dtypes = (torch.float32,) * 3
    found = BlockProgram(program, dtypes)
    first, second = (tensors_of(500, dtypes) for _ in range(2))
    tables = Tables(program, [first])
    tables.run(found)
    before = [tensor.clone() for tensor in first]
    expected = interpret(Rule.of(rule), {}, second, HYPER)
    tables.pointers[:] = [[tensor.data_ptr() for tensor in second]]
    tables.run(found)
    assert all(map(same_bits, first, before))
    assert all(map(same_bits, second, expected))


def test_other_scalars_and_other_items_are_seen(program: Any) -> None:
    dtypes = (torch.float32,) * 3
    found = BlockProgram(program, dtypes)
    tensors = tensors_of(600, dtypes)
    tables = Tables(program, [tensors])
    tables.run(found)
    tables.scalars[:] = scalar_row(program, lr=0.5)
    expected = interpret(Rule.of(rule), {}, tensors, {**HYPER, "lr": 0.5})
    tables.items[0, 3] = 400
    kept = [tensor[400:].clone() for tensor in tensors]
    tables.run(found)
    for got, wanted, rest in zip(tensors, expected, kept, strict=False):
        assert same_bits(got[:400], wanted[:400])
        assert same_bits(got[400:], rest)


def test_nothing_changes_where_nothing_applies(program: Any) -> None:
    tensors = tensors_of(500, (torch.float32,) * 3)
    before = [tensor.clone() for tensor in tensors]
    tables = Tables(program, [tensors])
    tables.scalars[:] = scalar_row(program, **{APPLY: 0.0})
    tables.run(BlockProgram(program, (torch.float32,) * 3))
    assert all(map(same_bits, tensors, before))


def test_a_gradient_may_be_the_slot(program: Any) -> None:
    var, m = tensors_of(500, (torch.float32,) * 2)
    expected = interpret(Rule.of(rule), {}, (var, m, m), HYPER)
    found = BlockProgram(program, (torch.float32,) * 3)
    tables = Tables(program, [[var, m, m]])
    tables.run(found)
    assert all(map(same_bits, (var, m), expected))
    expected = interpret(Rule.of(rule), {}, (var, m, m), HYPER)
    tables.run(found)
    assert all(map(same_bits, (var, m), expected))


def test_threads_may_run_one_program_at_once(program: Any) -> None:
    dtypes = (torch.float32,) * 3
    found = BlockProgram(program, dtypes)
    work = [tensors_of(3000, dtypes) for _ in range(4)]
    expected = [interpret(Rule.of(rule), {}, own, HYPER) for own in work]
    tables = [Tables(program, [own]) for own in work]
    threads = [threading.Thread(target=own.run, args=(found,)) for own in tables]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own, wanted in zip(work, expected, strict=True):
        assert all(map(same_bits, own, wanted))


def test_what_a_thread_raises_is_raised(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes = (torch.float32,) * 3
    found = BlockProgram(program, dtypes)
    tensors = [torch.ones(4 * BLOCK) for _ in dtypes]
    tables = Tables(program, [tensors])

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(frames._Frame, "set_numbers", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        tables.run(found)


def test_rules_that_know_rows_are_left_to_the_interpreter() -> None:
    def normed(var: Any, grad: Any) -> Any:
        return var - grad / torch.linalg.vector_norm(grad, dim=-1, keepdim=True)

    def plain(var: Any, grad: Any) -> Any:
        return var - grad

    assert treats_elements_alike(program_of(Rule.of(plain), ()))
    assert not treats_elements_alike(program_of(Rule.of(normed), ()))
