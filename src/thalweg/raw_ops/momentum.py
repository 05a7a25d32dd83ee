"""TensorFlow's ops of gradient descent with momentum."""

from __future__ import annotations

from typing import Any

from thalweg import rules
from thalweg.raw_ops.door import Door
from thalweg.raw_ops.row_door import RowDoor

__all__ = [
    "ResourceApplyMomentum",
    "ResourceApplyKerasMomentum",
    "ResourceSparseApplyMomentum",
    "ResourceSparseApplyKerasMomentum",
]


_momentum = Door("ResourceApplyMomentum", rules.momentum)
_keras_momentum = Door("ResourceApplyKerasMomentum", rules.keras_momentum)
_sparse_momentum = RowDoor("ResourceSparseApplyMomentum", rules.momentum)
_sparse_keras_momentum = RowDoor(
    "ResourceSparseApplyKerasMomentum", rules.keras_momentum
)


@_momentum.serves
def ResourceApplyMomentum(
    *,
    var: Any,
    accum: Any,
    lr: Any,
    grad: Any,
    momentum: Any,
    use_locking: bool = False,
    use_nesterov: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.momentum` on a variable and its accumulator.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        accum: Shape S. Written.
        lr: Number or 0-d tensor. Learning rate.
        grad: Shape S.
        momentum: Number or 0-d tensor.
        use_locking: Accepted; updates of one process never overlap.
        use_nesterov: Whether to look one step ahead.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.

    Example:
        >>> weight, accum = tw.Variable([1.0]), tw.Variable([1.0])
        >>> tw.raw_ops.ResourceApplyMomentum(var=weight.handle, accum=accum.handle,
        ...     lr=0.5, grad=torch.ones(1), momentum=0.5)
        >>> weight.item(), accum.item()
        (0.25, 1.5)
    """


@_keras_momentum.serves
def ResourceApplyKerasMomentum(
    *,
    var: Any,
    accum: Any,
    lr: Any,
    grad: Any,
    momentum: Any,
    use_locking: bool = False,
    use_nesterov: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.keras_momentum` on a variable and its accumulator.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        accum: Shape S. Written.
        lr: Number or 0-d tensor. Learning rate.
        grad: Shape S.
        momentum: Number or 0-d tensor.
        use_locking: Accepted; updates of one process never overlap.
        use_nesterov: Whether to look one step ahead.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.
    """


@_sparse_momentum.serves
def ResourceSparseApplyMomentum(
    *,
    var: Any,
    accum: Any,
    lr: Any,
    grad: Any,
    indices: Any,
    momentum: Any,
    use_locking: bool = False,
    use_nesterov: bool = False,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Run `thalweg.rules.momentum` on rows.

    Args:
        var: The variable, its handle, or a tensor; shape [M, …]. Written.
        accum: Shape [M, …]. Written.
        lr: Number or 0-d tensor. Learning rate.
        grad: Shape [N, …].
        indices: Shape [N], int32 or int64, in [0, M).
        momentum: Number or 0-d tensor.
        use_locking: Accepted; updates of one process never overlap.
        use_nesterov: Whether to look one step ahead.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number, or indices are no
            integers.
        ValueError: If shapes, dtypes or devices do not fit, or an index is out of
            range; nothing is written then.

    Example:
        >>> table, accum = tw.Variable(torch.ones(3, 1)), tw.Variable(torch.zeros(3, 1))
        >>> tw.raw_ops.ResourceSparseApplyMomentum(var=table.handle, accum=accum.handle,
        ...     lr=0.5, grad=torch.ones(1, 1), indices=torch.tensor([2]), momentum=0.5)
        >>> table.flatten().tolist()
        [1.0, 1.0, 0.5]
    """


@_sparse_keras_momentum.serves
def ResourceSparseApplyKerasMomentum(
    *,
    var: Any,
    accum: Any,
    lr: Any,
    grad: Any,
    indices: Any,
    momentum: Any,
    use_locking: bool = False,
    use_nesterov: bool = False,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Run `thalweg.rules.keras_momentum` on rows.

    Args:
        var: The variable, its handle, or a tensor; shape [M, …]. Written.
        accum: Shape [M, …]. Written.
        lr: Number or 0-d tensor. Learning rate.
        grad: Shape [N, …].
        indices: Shape [N], int32 or int64, in [0, M).
        momentum: Number or 0-d tensor.
        use_locking: Accepted; updates of one process never overlap.
        use_nesterov: Whether to look one step ahead.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number, or indices are no
            integers.
        ValueError: If shapes, dtypes or devices do not fit, or an index is out of
            range; nothing is written then.
    """
