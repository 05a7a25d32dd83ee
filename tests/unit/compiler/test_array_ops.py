"""NumPy's functions give what the reference column gives, bit for bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.codegen.bits import filled, same_bits
from thalweg.compiler import array_ops as module
from thalweg.compiler.array_ops import PIECE, array_ops
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
