"""NumPy's functions give what the reference column gives, bit for bit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from tests.codegen.bits import filled, same_bits
from thalweg.compiler import array_ops as module
from thalweg.compiler.array_ops import PIECE, array_ops, fused_op, shared_op
from thalweg.compiler.op_table import OPS, Op

FLOATS = (torch.float32, torch.float64)


def evaluated(op: Op, operands: list[np.ndarray], length: int) -> torch.Tensor:
    kind = (
        np.bool_
        if op.gives_mask
        else next(
            o.dtype for o in reversed(operands) if op.gives_mask or o.dtype != np.bool_
        )
    )
    out = np.empty(length, kind)
    first, *others = array_ops(op)
    with np.errstate(all="ignore"):
        first(*operands, out)
        for function in others:
            function(out, out)
    return torch.from_numpy(out)


def agree(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b) if a.dtype == torch.bool else same_bits(a, b)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", sorted(OPS))
def test_every_operation_is_its_reference(name: str, dtype: torch.dtype) -> None:
    op, length = OPS[name], 1003
    given = [filled(length, dtype, place) for place in range(len(op.masks))]
    given = [g > 0 if m else g for g, m in zip(given, op.masks, strict=True)]
    # Each operand may also be a number, which has no dimension here.
    for is_number in itertools.product((False, True), repeat=len(given)):
        tensors = [g[5:6] if n else g for g, n in zip(given, is_number, strict=True)]
        arrays = [t.numpy() for t in tensors]
        arrays = [
            a.reshape(()) if n else a for a, n in zip(arrays, is_number, strict=True)
        ]
        wanted = op.reference(*tensors).expand(length).contiguous()
        assert agree(evaluated(op, arrays, length), wanted)


@pytest.mark.parametrize("name", ["where", "sign", "maximum", "rsqrt", "exp", "mul"])
def test_the_result_may_replace_an_operand(name: str) -> None:
    op, length = OPS[name], 1003
    given = [filled(length, torch.float32, place) for place in range(len(op.masks))]
    given = [g > 0 if m else g for g, m in zip(given, op.masks, strict=True)]
    wanted = op.reference(*given)
    arrays = [g.numpy() for g in given]
    first, *others = array_ops(op)
    with np.errstate(all="ignore"):
        first(*arrays, arrays[-1])
        for function in others:
            function(arrays[-1], arrays[-1])
    assert same_bits(given[-1], wanted)


def test_long_arrays_go_piece_by_piece() -> None:
    values = torch.linspace(-3, 3, 2 * PIECE + 5)
    wanted = OPS["tanh"].reference(values)
    assert same_bits(evaluated(OPS["tanh"], [values.numpy()], len(values)), wanted)


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_another_choice_of_zeros_is_noticed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_zero(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(a == b, a, np.maximum(a, b))

    assert not module._takes_second_zero(first_zero)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(module, "_takes_second_zero", lambda _: False)
    array_ops.cache_clear()
    try:
        given = [filled(1003, torch.float32, place) for place in range(2)]
        wanted = OPS[name].reference(*given)
        found = evaluated(OPS[name], [g.numpy() for g in given], 1003)
        assert same_bits(found, wanted)
    finally:
        array_ops.cache_clear()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("ufunc", [np.add, np.subtract, np.multiply])
@pytest.mark.parametrize("length", [1, 7, 1003, 2 * PIECE + 5])
def test_threads_of_torch_give_the_same_bits(
    ufunc: np.ufunc, dtype: torch.dtype, length: int
) -> None:
    a, b = (filled(max(length, 400), dtype, place)[-length:] for place in range(2))
    function = shared_op(ufunc)
    assert function is not None
    out = torch.empty(length, dtype=dtype)
    for operands in ([a, b], [a, b.numpy()[:1].reshape(())]):
        with np.errstate(all="ignore"):
            wanted = ufunc(*map(np.asarray, operands))
        function(*operands, out)
        assert same_bits(out, torch.from_numpy(wanted))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("ufunc", [np.add, np.subtract])
@pytest.mark.parametrize("length", [1, 7, 1003, 2 * PIECE + 5])
@pytest.mark.parametrize("number", [0.1, -3e-5, 0.0, 1e30, float("inf"), float("nan")])
def test_a_sum_with_a_product_is_rounded_twice(
    ufunc: np.ufunc, dtype: torch.dtype, length: int, number: float
) -> None:
    function = fused_op(ufunc)
    if function is None:
        pytest.skip("torch rounds once here")
    a, x = (filled(max(length, 400), dtype, place)[-length:] for place in range(2))
    y = np.asarray(number, a.numpy().dtype)
    with np.errstate(all="ignore"):
        wanted = torch.from_numpy(ufunc(a.numpy(), x.numpy() * y))
    function(a, x, y, a)
    assert same_bits(a, wanted)


def test_an_operation_that_rounds_once_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def once(a: torch.Tensor, x: torch.Tensor, one: torch.Tensor, value: float) -> Any:
        assert one.item() == 1
        return (a.double() + value * x.double()).to(a.dtype)

    assert module._rounds_twice(torch.addcdiv) == (fused_op(np.add) is not None)
    assert not module._rounds_twice(once)
    monkeypatch.setattr(module, "_rounds_twice", lambda _: False)
    assert fused_op(np.add) is None


def test_what_torch_rounds_otherwise_is_not_shared() -> None:
    assert shared_op(np.sqrt) is None
    assert fused_op(np.multiply) is None
