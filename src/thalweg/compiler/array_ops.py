"""How NumPy computes an operation into memory that is there already.

The fallback without a compiler evaluates rules by these functions: each takes arrays
of the compute type, or masks, and writes its last argument. NumPy's arithmetic and
roots are the processor's, so an exact operation gives the bits of the other columns of
`op_table`; one that is not listed here is evaluated by its reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.compiler.op_table import Op

__all__ = ["PIECE", "Array", "array_ops", "fused_op", "shared_op", "tensor_over"]

Array = np.ndarray[Any, Any]
ArrayOp = Callable[..., object]
TensorOp = Callable[..., Tensor]

PIECE = 32768
"""Elements that torch still handles without starting threads of its own."""

_FLOATS = np.dtype(np.float32), np.dtype(np.float64)

_LISTED: dict[str, tuple[ArrayOp, ...]] = {
    "add": (np.add,),
    "sub": (np.subtract,),
    "mul": (np.multiply,),
    "div": (np.divide,),
    "neg": (np.negative,),
    "abs": (np.absolute,),
    "square": (np.square,),
    "sqrt": (np.sqrt,),
    "rsqrt": (np.sqrt, np.reciprocal),
    "reciprocal": (np.reciprocal,),
    "floor": (np.floor,),
    "ceil": (np.ceil,),
    "lt": (np.less,),
    "le": (np.less_equal,),
    "gt": (np.greater,),
    "ge": (np.greater_equal,),
    "eq": (np.equal,),
    "ne": (np.not_equal,),
    "isfinite": (np.isfinite,),
    "isnan": (np.isnan,),
    "isinf": (np.isinf,),
    "logical_and": (np.logical_and,),
    "logical_or": (np.logical_or,),
    "logical_xor": (np.logical_xor,),
    "logical_not": (np.logical_not,),
}


# What torch rounds as the processor does and shares among its threads.
_SHARED: dict[ArrayOp, TensorOp] = {
    np.add: torch.add,
    np.subtract: torch.sub,
    np.multiply: torch.mul,
}
_SIGNS: dict[ArrayOp, float] = {np.add: 1.0, np.subtract: -1.0}


@cache
def array_ops(op: Op) -> tuple[ArrayOp, ...]:
    """Functions to call in turn: the first on the operands, others on its result.

    Args:
        op: A row of the op table.

    Returns:
        Functions whose last argument is written; it may be one of the operands.

    Example:
        >>> from thalweg.compiler.op_table import OPS
        >>> x = np.array([4.0, 0.25])
        >>> for function in array_ops(OPS["rsqrt"]):
        ...     _ = function(x, x)
        >>> x.tolist()
        [0.5, 2.0]
    """
    if op.name == "fill":
        return (_fill,)
    if op.name == "sign":
        return (_sign,)
    if op.name == "where":
        return (_where,)
    if op.name in ("maximum", "minimum"):
        ufunc = np.maximum if op.name == "maximum" else np.minimum
        return (_extreme(ufunc) if _takes_second_zero(ufunc) else _by_reference(op),)
    return _LISTED.get(op.name) or (_by_reference(op),)


def shared_op(function: ArrayOp) -> ArrayOp | None:
    """The same operation over tensors, shared by torch's threads.

    Args:
        function: One that `array_ops` gives.

    Returns:
        A function of tensors, or of arrays of one number where it reads; None where
        torch might round otherwise.

    Example:
        >>> x = torch.tensor([1.0, 2.0])
        >>> _ = shared_op(np.add)(x, np.float32(0.5), x)
        >>> x.tolist()
        [1.5, 2.5]
    """
    operation = _SHARED.get(function)
    if operation is None:
        return None

    def evaluate(a: Array | Tensor, b: Array | Tensor, out: Tensor) -> None:
        operation(_operand(a), _operand(b), out=out)

    return evaluate


def fused_op(function: ArrayOp) -> ArrayOp | None:
    """A sum with a product, in one pass over tensors that torch's threads share.

    Args:
        function: `np.add` or `np.subtract`.

    Returns:
        A function of a, x, a number y, and the result a ± x · y, rounded twice as by
        two operations; None where that cannot be had.

    Example:
        >>> a, x = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
        >>> fused_op(np.subtract)(a, x, 0.5, a)
        >>> a.tolist()
        [-0.5, 0.0]
    """
    sign = _SIGNS.get(function)
    if sign is None or not _rounds_twice(torch.addcdiv):
        return None
    ones = {dtype: _one(dtype) for dtype in (torch.float32, torch.float64)}

    def evaluate(a: Array | Tensor, x: Tensor, y: Array, out: Tensor) -> None:
        one, number = ones[out.dtype], sign * float(y)
        torch.addcdiv(_operand(a), x, one, value=number, out=out)

    return evaluate


def _one(dtype: torch.dtype) -> Tensor:
    # A division by 1 parts product and sum, which torch else rounds only once.
    return tensor_over(np.ones(1)).to(dtype)


@cache
def _rounds_twice(operation: TensorOp) -> bool:
    """Whether it gives the bits of two operations: torch's compiler has its say."""
    return all(
        _gives_the_bits(operation, numbers[:length], numbers[-length:])
        for numbers in map(_numbers_of_all_sizes, _FLOATS)
        for length in (*range(1, 65), len(numbers))
    )


def _gives_the_bits(operation: TensorOp, a: Array, x: Array) -> bool:
    for number in (0.1, -3.7e-9, 1e30):
        y = a.dtype.type(number)
        with np.errstate(all="ignore"):
            wanted = tensor_over(a + x * y)
        tensors = tensor_over(a), tensor_over(x), _one(wanted.dtype)
        found = operation(*tensors, value=float(y))
        bits = getattr(torch, f"int{8 * a.itemsize}")
        if not torch.equal(found.view(bits), wanted.view(bits)):
            return False
    return True


def _numbers_of_all_sizes(kind: np.dtype[Any]) -> Array:
    """Numbers of many magnitudes, zeros of both signs, and the ends of the range."""
    steps = np.arange(4099.0)
    numbers = (np.modf(steps * 0.618033988749895)[0] - 0.5) * 10.0 ** (steps % 7 - 3)
    numbers[::97], numbers[1::101] = 0.0, -0.0
    numbers[2::103], numbers[3::107] = np.finfo(kind).tiny / 3, np.finfo(kind).max
    return numbers.astype(kind)


def _fill(value: Array, out: Array) -> None:
    np.copyto(out, value)


def _sign(x: Array, out: Array) -> None:
    # np.sign(NaN) is NaN.
    zero = x.dtype.type(0)
    np.subtract(x > zero, x < zero, out=out, dtype=out.dtype)


def _where(condition: Array, a: Array, b: Array, out: Array) -> None:
    """Choose by the bits, which takes a sixth of the time of `np.where`."""
    if condition.ndim == 0:
        np.copyto(out, a if condition else b)
        return
    kind = np.dtype(f"i{out.itemsize}")
    chosen = np.negative(condition, dtype=kind)
    a_bits, b_bits = a.view(kind), b.view(kind)
    np.bitwise_and(chosen, np.bitwise_xor(a_bits, b_bits), chosen)
    np.bitwise_xor(b_bits, chosen, out.view(kind))


def _extreme(ufunc: np.ufunc) -> ArrayOp:
    def evaluate(a: Array, b: Array, out: Array) -> None:
        ufunc(a, b, out=out)

    return evaluate


def _takes_second_zero(ufunc: np.ufunc) -> bool:
    """Whether of two zeros it gives the second, as the op table says.

    NumPy leaves that to the processor. Long and short arrays are asked, because ends
    are not handled as vectors are.
    """
    return all(
        np.array_equal(np.signbit(ufunc(first, second)), np.signbit(second))
        for dtype in _FLOATS
        for first, second in _pairs_of_zeros(dtype)
    )


def _pairs_of_zeros(dtype: np.dtype[Any]) -> Iterator[tuple[Array, Array]]:
    zeros = np.tile(np.array([0.0, -0.0], dtype), 64)
    numbers = zeros[:1].reshape(()), zeros[1:2].reshape(())
    for length in range(1, len(zeros)):
        first, second = zeros[:length], zeros[1 : length + 1]
        yield first, second
        for number in numbers:
            yield number, second
            yield first, np.broadcast_to(number, length)


def _by_reference(op: Op) -> ArrayOp:
    """The reference column, piece by piece."""

    def evaluate(*arrays: Array) -> None:
        *operands, out = arrays
        for start in range(0, len(out), PIECE):
            stop = start + PIECE
            parts = [a[start:stop] if a.ndim else a for a in operands]
            result = op.reference(*map(_operand, parts))
            np.copyto(out[start:stop], result.numpy())

    return evaluate


def _operand(array: Array | Tensor) -> Tensor:
    # Operands have at least one dimension: torch computes otherwise with numbers.
    return array if isinstance(array, Tensor) else tensor_over(array.reshape(-1))


def tensor_over(array: Array) -> Tensor:
    """A tensor over the memory of an array."""
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]
