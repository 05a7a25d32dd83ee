"""TensorFlow's ops of Adagrad."""

from __future__ import annotations

from typing import Any

from thalweg import rules
from thalweg.raw_ops.door import Door
from thalweg.raw_ops.row_door import RowDoor

__all__ = [
    "ResourceApplyAdagrad",
    "ResourceApplyAdagradV2",
    "ResourceSparseApplyAdagrad",
    "ResourceSparseApplyAdagradV2",
]


_adagrad = Door("ResourceApplyAdagrad", rules.adagrad)
_adagrad_v2 = Door("ResourceApplyAdagradV2", rules.adagrad_v2)
_sparse_adagrad = RowDoor("ResourceSparseApplyAdagrad", rules.adagrad)
_sparse_adagrad_v2 = RowDoor("ResourceSparseApplyAdagradV2", rules.adagrad_v2)


@_adagrad.serves
def ResourceApplyAdagrad(
    *,
    var: Any,
    accum: Any,
    lr: Any,
    grad: Any,
    use_locking: bool = False,
    update_slots: bool = True,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.adagrad` on a variable and its accumulator.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        accum: Shape S. Written.
        lr: Number or 0-d tensor. Learning rate.
        grad: Shape S.
        use_locking: Accepted; updates of one process never overlap.
        update_slots: Whether to add to the accumulator.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.

    Example:
        >>> weight, accum = tw.Variable([1.0]), tw.Variable([3.0])
        >>> tw.raw_ops.ResourceApplyAdagrad(
        ...     var=weight.handle, accum=accum.handle, lr=0.5, grad=torch.ones(1))
        >>> weight.item(), accum.item()
        (0.75, 4.0)
    """


@_adagrad_v2.serves
def ResourceApplyAdagradV2(
    *,
    var: Any,
    accum: Any,
    lr: Any,
    epsilon: Any,
    grad: Any,
    use_locking: bool = False,
    update_slots: bool = True,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.adagrad_v2` on a variable and its accumulator.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        accum: Shape S. Written.
        lr: Number or 0-d tensor. Learning rate.
        epsilon: Number or 0-d tensor.
        grad: Shape S.
        use_locking: Accepted; updates of one process never overlap.
        update_slots: Whether to add to the accumulator.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.
    """


@_sparse_adagrad.serves
def ResourceSparseApplyAdagrad(
    *,
    var: Any,
    accum: Any,
    lr: Any,
    grad: Any,
    indices: Any,
    use_locking: bool = False,
    update_slots: bool = True,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Run `thalweg.rules.adagrad` on rows.

    Args:
        var: The variable, its handle, or a tensor; shape [M, …]. Written.
        accum: Shape [M, …]. Written.
        lr: Number or 0-d tensor. Learning rate.
        grad: Shape [N, …].
        indices: Shape [N], int32 or int64, in [0, M).
        use_locking: Accepted; updates of one process never overlap.
        update_slots: Whether to add to the accumulator.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number, or indices are no
            integers.
        ValueError: If shapes, dtypes or devices do not fit, or an index is out of
            range; nothing is written then.
    """


@_sparse_adagrad_v2.serves
def ResourceSparseApplyAdagradV2(
    *,
    var: Any,
    accum: Any,
    lr: Any,
    epsilon: Any,
    grad: Any,
    indices: Any,
    use_locking: bool = False,
    update_slots: bool = True,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Run `thalweg.rules.adagrad_v2` on rows.

    Args:
        var: The variable, its handle, or a tensor; shape [M, …]. Written.
        accum: Shape [M, …]. Written.
        lr: Number or 0-d tensor. Learning rate.
        epsilon: Number or 0-d tensor.
        grad: Shape [N, …].
        indices: Shape [N], int32 or int64, in [0, M).
        use_locking: Accepted; updates of one process never overlap.
        update_slots: Whether to add to the accumulator.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number, or indices are no
            integers.
        ValueError: If shapes, dtypes or devices do not fit, or an index is out of
            range; nothing is written then.
    """
