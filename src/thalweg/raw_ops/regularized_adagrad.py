"""TensorFlow's ops of Adagrad with l1 and l2: proximal, and by dual averaging."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg import rules
from thalweg.raw_ops.checks import check_not_negative, check_positive, has_l1
from thalweg.raw_ops.door import Door
from thalweg.raw_ops.row_door import RowDoor

__all__ = [
    "ResourceApplyProximalAdagrad",
    "ResourceApplyAdagradDA",
    "ResourceSparseApplyProximalAdagrad",
    "ResourceSparseApplyAdagradDA",
]


def _examine_proximal(op: str, numbers: Mapping[str, float]) -> tuple[bool, ...]:
    check_positive(op, "lr", numbers["lr"])
    check_not_negative(op, "l1", numbers["l1"])
    check_not_negative(op, "l2", numbers["l2"])
    return has_l1(op, numbers)


_proximal_adagrad = Door(
    "ResourceApplyProximalAdagrad", rules.proximal_adagrad, _examine_proximal
)
_adagrad_da = Door("ResourceApplyAdagradDA", rules.adagrad_da, has_l1)
_sparse_proximal_adagrad = RowDoor(
    "ResourceSparseApplyProximalAdagrad", rules.proximal_adagrad, _examine_proximal
)
_sparse_adagrad_da = RowDoor("ResourceSparseApplyAdagradDA", rules.adagrad_da, has_l1)


@_proximal_adagrad.serves
def ResourceApplyProximalAdagrad(
    *,
    var: Any,
    accum: Any,
    lr: Any,
    l1: Any,
    l2: Any,
    grad: Any,
    use_locking: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.proximal_adagrad` on a variable and its accumulator.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        accum: Shape S. Written.
        lr: Number or 0-d tensor. Learning rate.
        l1: Number or 0-d tensor. Strength of l1; read if positive.
        l2: Number or 0-d tensor. Strength of l2.
        grad: Shape S.
        use_locking: Accepted; updates of one process never overlap.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit, lr is not positive, l1 is
            negative, or l2 is negative; nothing is written then.

    Example:
        >>> weight, accum = tw.Variable([1.0]), tw.Variable([3.0])
        >>> tw.raw_ops.ResourceApplyProximalAdagrad(var=weight.handle,
        ...     accum=accum.handle, lr=0.5, l1=1.0, l2=0.0, grad=torch.ones(1))
        >>> weight.item(), accum.item()
        (0.5, 4.0)
    """


@_adagrad_da.serves
def ResourceApplyAdagradDA(
    *,
    var: Any,
    gradient_accumulator: Any,
    gradient_squared_accumulator: Any,
    grad: Any,
    lr: Any,
    l1: Any,
    l2: Any,
    global_step: Any,
    use_locking: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.adagrad_da` on a variable and its sums.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        gradient_accumulator: Shape S. Sum of gradients. Written.
        gradient_squared_accumulator: Shape S. Sum of squared gradients. Written.
        grad: Shape S.
        lr: Number or 0-d tensor. Learning rate.
        l1: Number or 0-d tensor. Strength of l1; read if positive.
        l2: Number or 0-d tensor. Strength of l2.
        global_step: Integer or 0-d tensor. Number of this step.
        use_locking: Accepted; updates of one process never overlap.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.
    """


@_sparse_proximal_adagrad.serves
def ResourceSparseApplyProximalAdagrad(
    *,
    var: Any,
    accum: Any,
    lr: Any,
    l1: Any,
    l2: Any,
    grad: Any,
    indices: Any,
    use_locking: bool = False,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Run `thalweg.rules.proximal_adagrad` on rows.

    Args:
        var: The variable, its handle, or a tensor; shape [M, …]. Written.
        accum: Shape [M, …]. Written.
        lr: Number or 0-d tensor. Learning rate.
        l1: Number or 0-d tensor. Strength of l1; read if positive.
        l2: Number or 0-d tensor. Strength of l2.
        grad: Shape [N, …].
        indices: Shape [N], int32 or int64, in [0, M).
        use_locking: Accepted; updates of one process never overlap.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number, or indices are no
            integers.
        ValueError: If shapes, dtypes or devices do not fit, or an index is out of
            range, lr is not positive, l1 is negative, or l2 is negative; nothing is
            written then.
    """


@_sparse_adagrad_da.serves
def ResourceSparseApplyAdagradDA(
    *,
    var: Any,
    gradient_accumulator: Any,
    gradient_squared_accumulator: Any,
    grad: Any,
    indices: Any,
    lr: Any,
    l1: Any,
    l2: Any,
    global_step: Any,
    use_locking: bool = False,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Run `thalweg.rules.adagrad_da` on rows.

    Args:
        var: The variable, its handle, or a tensor; shape [M, …]. Written.
        gradient_accumulator: Shape [M, …]. Sum of gradients. Written.
        gradient_squared_accumulator: Shape [M, …]. Sum of squared gradients. Written.
        grad: Shape [N, …].
        indices: Shape [N], int32 or int64, in [0, M).
        lr: Number or 0-d tensor. Learning rate.
        l1: Number or 0-d tensor. Strength of l1; read if positive.
        l2: Number or 0-d tensor. Strength of l2.
        global_step: Integer or 0-d tensor. Number of this step.
        use_locking: Accepted; updates of one process never overlap.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number, or indices are no
            integers.
        ValueError: If shapes, dtypes or devices do not fit, or an index is out of
            range; nothing is written then.
    """
