"""TensorFlow's ops of RMSProp, plain and centered."""

from __future__ import annotations

from typing import Any

from thalweg import rules
from thalweg.raw_ops.door import Door
from thalweg.raw_ops.row_door import RowDoor

__all__ = [
    "ResourceApplyRMSProp",
    "ResourceApplyCenteredRMSProp",
    "ResourceSparseApplyRMSProp",
    "ResourceSparseApplyCenteredRMSProp",
]


_rms_prop = Door("ResourceApplyRMSProp", rules.rms_prop)
_centered_rms_prop = Door("ResourceApplyCenteredRMSProp", rules.centered_rms_prop)
_sparse_rms_prop = RowDoor("ResourceSparseApplyRMSProp", rules.rms_prop_of_rows)
_sparse_centered_rms_prop = RowDoor(
    "ResourceSparseApplyCenteredRMSProp", rules.centered_rms_prop_of_rows
)


@_rms_prop.serves
def ResourceApplyRMSProp(
    *,
    var: Any,
    ms: Any,
    mom: Any,
    lr: Any,
    rho: Any,
    momentum: Any,
    epsilon: Any,
    grad: Any,
    use_locking: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.rms_prop` on a variable and its slots.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        ms: Shape S. Mean of squared gradients. Written.
        mom: Shape S. Decaying sum of steps. Written.
        lr: Number or 0-d tensor. Learning rate.
        rho: Number or 0-d tensor. Decay of the means.
        momentum: Number or 0-d tensor.
        epsilon: Number or 0-d tensor.
        grad: Shape S.
        use_locking: Accepted; updates of one process never overlap.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.

    Example:
        >>> weight, ms, mom = tw.Variable([1.0]), tw.Variable([0.0]), tw.Variable([0.0])
        >>> tw.raw_ops.ResourceApplyRMSProp(var=weight.handle, ms=ms.handle,
        ...     mom=mom.handle, lr=0.5, rho=0.0, momentum=0.0, epsilon=0.0,
        ...     grad=torch.ones(1))
        >>> weight.item()
        0.5
    """


@_centered_rms_prop.serves
def ResourceApplyCenteredRMSProp(
    *,
    var: Any,
    mg: Any,
    ms: Any,
    mom: Any,
    lr: Any,
    rho: Any,
    momentum: Any,
    epsilon: Any,
    grad: Any,
    use_locking: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.centered_rms_prop` on a variable and its slots.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        mg: Shape S. Mean of gradients. Written.
        ms: Shape S. Mean of squared gradients. Written.
        mom: Shape S. Decaying sum of steps. Written.
        lr: Number or 0-d tensor. Learning rate.
        rho: Number or 0-d tensor. Decay of the means.
        momentum: Number or 0-d tensor.
        epsilon: Number or 0-d tensor.
        grad: Shape S.
        use_locking: Accepted; updates of one process never overlap.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.
    """


@_sparse_rms_prop.serves
def ResourceSparseApplyRMSProp(
    *,
    var: Any,
    ms: Any,
    mom: Any,
    lr: Any,
    rho: Any,
    momentum: Any,
    epsilon: Any,
    grad: Any,
    indices: Any,
    use_locking: bool = False,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Run `thalweg.rules.rms_prop_of_rows` on rows.

    Args:
        var: The variable, its handle, or a tensor; shape [M, …]. Written.
        ms: Shape [M, …]. Mean of squared gradients. Written.
        mom: Shape [M, …]. Decaying sum of steps. Written.
        lr: Number or 0-d tensor. Learning rate.
        rho: Number or 0-d tensor. Decay of the means.
        momentum: Number or 0-d tensor.
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


@_sparse_centered_rms_prop.serves
def ResourceSparseApplyCenteredRMSProp(
    *,
    var: Any,
    mg: Any,
    ms: Any,
    mom: Any,
    lr: Any,
    rho: Any,
    momentum: Any,
    epsilon: Any,
    grad: Any,
    indices: Any,
    use_locking: bool = False,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Run `thalweg.rules.centered_rms_prop_of_rows` on rows.

    Args:
        var: The variable, its handle, or a tensor; shape [M, …]. Written.
        mg: Shape [M, …]. Mean of gradients. Written.
        ms: Shape [M, …]. Mean of squared gradients. Written.
        mom: Shape [M, …]. Decaying sum of steps. Written.
        lr: Number or 0-d tensor. Learning rate.
        rho: Number or 0-d tensor. Decay of the means.
        momentum: Number or 0-d tensor.
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
