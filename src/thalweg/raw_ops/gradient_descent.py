"""TensorFlow's ops of gradient descent without slots."""

from __future__ import annotations

from typing import Any

from thalweg import rules
from thalweg.raw_ops.checks import has_l1
from thalweg.raw_ops.door import Door
from thalweg.raw_ops.row_door import RowDoor

__all__ = [
    "ResourceApplyGradientDescent",
    "ResourceApplyProximalGradientDescent",
    "ResourceSparseApplyProximalGradientDescent",
]


_gradient_descent = Door("ResourceApplyGradientDescent", rules.gradient_descent)
_proximal_gradient_descent = Door(
    "ResourceApplyProximalGradientDescent", rules.proximal_gradient_descent, has_l1
)
_sparse_proximal_gradient_descent = RowDoor(
    "ResourceSparseApplyProximalGradientDescent",
    rules.proximal_gradient_descent,
    has_l1,
)


@_gradient_descent.serves
def ResourceApplyGradientDescent(
    *,
    var: Any,
    alpha: Any = 1.0,
    delta: Any,
    use_locking: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.gradient_descent` on a variable.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        alpha: Number or 0-d tensor. TensorFlow has no default here.
        delta: Shape S. The gradient.
        use_locking: Accepted; updates of one process never overlap.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.

    Example:
        >>> weight = tw.Variable([1.0])
        >>> tw.raw_ops.ResourceApplyGradientDescent(
        ...     var=weight.handle, alpha=0.5, delta=torch.ones(1))
        >>> weight.item()
        0.5
    """


@_proximal_gradient_descent.serves
def ResourceApplyProximalGradientDescent(
    *,
    var: Any,
    alpha: Any,
    l1: Any,
    l2: Any,
    delta: Any,
    use_locking: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.proximal_gradient_descent` on a variable.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        alpha: Number or 0-d tensor. Step length.
        l1: Number or 0-d tensor. Strength of l1; read if positive.
        l2: Number or 0-d tensor. Strength of l2.
        delta: Shape S. The gradient.
        use_locking: Accepted; updates of one process never overlap.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.

    Example:
        >>> weight = tw.Variable([1.0])
        >>> tw.raw_ops.ResourceApplyProximalGradientDescent(
        ...     var=weight.handle, alpha=0.5, l1=0.5, l2=0.0, delta=torch.ones(1))
        >>> weight.item()
        0.25
    """


@_sparse_proximal_gradient_descent.serves
def ResourceSparseApplyProximalGradientDescent(
    *,
    var: Any,
    alpha: Any,
    l1: Any,
    l2: Any,
    grad: Any,
    indices: Any,
    use_locking: bool = False,
    name: str | None = None,
    check_indices: bool | None = None,
) -> None:
    """Run `thalweg.rules.proximal_gradient_descent` on rows.

    Args:
        var: The variable, its handle, or a tensor; shape [M, …]. Written.
        alpha: Number or 0-d tensor. Step length.
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
            range; nothing is written then.
    """
