"""TensorFlow's ops of Adadelta."""

from __future__ import annotations

from typing import Any

from thalweg import rules
from thalweg.raw_ops.door import Door
from thalweg.raw_ops.row_door import RowDoor

__all__ = [
    "ResourceApplyAdadelta",
    "ResourceSparseApplyAdadelta",
]


_adadelta = Door("ResourceApplyAdadelta", rules.adadelta)
_sparse_adadelta = RowDoor("ResourceSparseApplyAdadelta", rules.adadelta)


@_adadelta.serves
def ResourceApplyAdadelta(
    *,
    var: Any,
    accum: Any,
    accum_update: Any,
    lr: Any,
    rho: Any,
    epsilon: Any,
    grad: Any,
    use_locking: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.adadelta` on a variable and its means.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        accum: Shape S. Mean of squared gradients. Written.
        accum_update: Shape S. Mean of squared steps. Written.
        lr: Number or 0-d tensor. Learning rate.
        rho: Number or 0-d tensor. Decay of the means.
        epsilon: Number or 0-d tensor.
        grad: Shape S.
        use_locking: Accepted; updates of one process never overlap.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.

    Example:
        >>> weight, accum = tw.Variable([1.0]), tw.Variable([0.0])
        >>> accum_update = tw.Variable([1.0])
        >>> tw.raw_ops.ResourceApplyAdadelta(var=weight.handle, accum=accum.handle,
        ...     accum_update=accum_update.handle, lr=0.5, rho=0.0, epsilon=0.0,
        ...     grad=torch.ones(1))
        >>> weight.item()
        0.5
    """


@_sparse_adadelta.serves
def ResourceSparseApplyAdadelta(
    *,
    var: Any,
    accum: Any,
    accum_update: Any,
    lr: Any,
    rho: Any,
    epsilon: Any,
    grad: Any,
    indices: Any,
    use_locking: bool = False,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Run `thalweg.rules.adadelta` on rows.

    Args:
        var: The variable, its handle, or a tensor; shape [M, …]. Written.
        accum: Shape [M, …]. Mean of squared gradients. Written.
        accum_update: Shape [M, …]. Mean of squared steps. Written.
        lr: Number or 0-d tensor. Learning rate.
        rho: Number or 0-d tensor. Decay of the means.
        epsilon: Number or 0-d tensor.
        grad: Shape [N, …].
        indices: Shape [N], int32 or int64, in [0, M).
        use_locking: Accepted; updates of one process never overlap.
        name: Accepted.
        check_indices: Whether indices are checked at once; see `check_deferred`.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number, or indices are no
            integers.
        ValueError: If shapes, dtypes or devices do not fit, or an index is out of
            range; nothing is written then.
    """
