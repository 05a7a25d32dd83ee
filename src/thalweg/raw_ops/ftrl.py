"""TensorFlow's ops that follow the regularized leader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg import rules
from thalweg.raw_ops.checks import (
    check_not_negative,
    check_not_positive,
    check_positive,
)
from thalweg.raw_ops.door import Door
from thalweg.raw_ops.row_door import RowDoor

__all__ = [
    "ResourceApplyFtrl",
    "ResourceApplyFtrlV2",
    "ResourceSparseApplyFtrl",
    "ResourceSparseApplyFtrlV2",
]


def _is_square_root(op: str, numbers: Mapping[str, float]) -> tuple[bool, ...]:
    """Whether the power of the accumulator is its root, which is faster."""
    del op
    return (numbers["lr_power"] == -0.5,)


def _examine_sparse(op: str, numbers: Mapping[str, float]) -> tuple[bool, ...]:
    """Refuse what TensorFlow's sparse ops refuse; its dense ones check nothing."""
    if numbers["multiply_linear_by_lr"]:
        check_not_negative(op, "lr", numbers["lr"])
    else:
        check_positive(op, "lr", numbers["lr"])
    for name in ("l1", "l2", "l2_shrinkage"):
        check_not_negative(op, name, numbers.get(name, 0.0))
    check_not_positive(op, "lr_power", numbers["lr_power"])
    return _is_square_root(op, numbers)


_ftrl = Door("ResourceApplyFtrl", rules.ftrl, _is_square_root)
_ftrl_v2 = Door("ResourceApplyFtrlV2", rules.ftrl_v2, _is_square_root)
_sparse_ftrl = RowDoor("ResourceSparseApplyFtrl", rules.ftrl, _examine_sparse)
_sparse_ftrl_v2 = RowDoor("ResourceSparseApplyFtrlV2", rules.ftrl_v2, _examine_sparse)


@_ftrl.serves
def ResourceApplyFtrl(
    *,
    var: Any,
    accum: Any,
    linear: Any,
    grad: Any,
    lr: Any,
    l1: Any,
    l2: Any,
    lr_power: Any,
    use_locking: bool = False,
    multiply_linear_by_lr: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.ftrl` on a variable and its slots.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        accum: Shape S. Sum of squared gradients. Written.
        linear: Shape S. Written.
        grad: Shape S.
        lr: Number or 0-d tensor. Learning rate.
        l1: Number or 0-d tensor. Strength of l1.
        l2: Number or 0-d tensor. Strength of l2.
        lr_power: Number or 0-d tensor. Usually −0.5, which is faster.
        use_locking: Accepted; updates of one process never overlap.
        multiply_linear_by_lr: Whether linear is kept multiplied by lr.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.

    Example:
        >>> weight, accum = tw.Variable([1.0]), tw.Variable([0.0])
        >>> linear = tw.Variable([0.0])
        >>> tw.raw_ops.ResourceApplyFtrl(var=weight.handle, accum=accum.handle,
        ...     linear=linear.handle, grad=torch.ones(1), lr=0.5, l1=0.5, l2=1.0,
        ...     lr_power=-0.5)
        >>> weight.item(), accum.item(), linear.item()
        (0.125, 1.0, -1.0)
    """


@_ftrl_v2.serves
def ResourceApplyFtrlV2(
    *,
    var: Any,
    accum: Any,
    linear: Any,
    grad: Any,
    lr: Any,
    l1: Any,
    l2: Any,
    l2_shrinkage: Any,
    lr_power: Any,
    use_locking: bool = False,
    multiply_linear_by_lr: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.ftrl_v2` on a variable and its slots.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        accum: Shape S. Sum of squared gradients. Written.
        linear: Shape S. Written.
        grad: Shape S.
        lr: Number or 0-d tensor. Learning rate.
        l1: Number or 0-d tensor. Strength of l1.
        l2: Number or 0-d tensor. Strength of l2.
        l2_shrinkage: Number or 0-d tensor. Penalty on the size of the variable.
        lr_power: Number or 0-d tensor. Usually −0.5, which is faster.
        use_locking: Accepted; updates of one process never overlap.
        multiply_linear_by_lr: Whether linear is kept multiplied by lr.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.
    """


@_sparse_ftrl.serves
def ResourceSparseApplyFtrl(
    *,
    var: Any,
    accum: Any,
    linear: Any,
    grad: Any,
    indices: Any,
    lr: Any,
    l1: Any,
    l2: Any,
    lr_power: Any,
    use_locking: bool = False,
    multiply_linear_by_lr: bool = False,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Run `thalweg.rules.ftrl` on rows.

    Args:
        var: The variable, its handle, or a tensor; shape [M, …]. Written.
        accum: Shape [M, …]. Sum of squared gradients. Written.
        linear: Shape [M, …]. Written.
        grad: Shape [N, …].
        indices: Shape [N], int32 or int64, in [0, M).
        lr: Number or 0-d tensor. Learning rate.
        l1: Number or 0-d tensor. Strength of l1.
        l2: Number or 0-d tensor. Strength of l2.
        lr_power: Number or 0-d tensor. Usually −0.5, which is faster.
        use_locking: Accepted; updates of one process never overlap.
        multiply_linear_by_lr: Whether linear is kept multiplied by lr.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number, or indices are no
            integers.
        ValueError: If shapes, dtypes or devices do not fit, or an index is out of
            range, lr is not positive (or zero with ``multiply_linear_by_lr``); nothing
            is written then.
    """


@_sparse_ftrl_v2.serves
def ResourceSparseApplyFtrlV2(
    *,
    var: Any,
    accum: Any,
    linear: Any,
    grad: Any,
    indices: Any,
    lr: Any,
    l1: Any,
    l2: Any,
    l2_shrinkage: Any,
    lr_power: Any,
    use_locking: bool = False,
    multiply_linear_by_lr: bool = False,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Run `thalweg.rules.ftrl_v2` on rows.

    Args:
        var: The variable, its handle, or a tensor; shape [M, …]. Written.
        accum: Shape [M, …]. Sum of squared gradients. Written.
        linear: Shape [M, …]. Written.
        grad: Shape [N, …].
        indices: Shape [N], int32 or int64, in [0, M).
        lr: Number or 0-d tensor. Learning rate.
        l1: Number or 0-d tensor. Strength of l1.
        l2: Number or 0-d tensor. Strength of l2.
        l2_shrinkage: Number or 0-d tensor. Penalty on the size of the variable.
        lr_power: Number or 0-d tensor. Usually −0.5, which is faster.
        use_locking: Accepted; updates of one process never overlap.
        multiply_linear_by_lr: Whether linear is kept multiplied by lr.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number, or indices are no
            integers.
        ValueError: If shapes, dtypes or devices do not fit, or an index is out of
            range, lr is not positive (or zero with ``multiply_linear_by_lr``); nothing
            is written then.
    """
