"""TensorFlow's ops of Adam, AMSGrad and AdaMax."""

from __future__ import annotations

from typing import Any

from thalweg import rules
from thalweg.raw_ops.door import Door

__all__ = [
    "ResourceApplyAdam",
    "ResourceApplyAdamWithAmsgrad",
    "ResourceApplyAdaMax",
]


_adam = Door("ResourceApplyAdam", rules.adam)
_adam_with_amsgrad = Door("ResourceApplyAdamWithAmsgrad", rules.adam_with_amsgrad)
_ada_max = Door("ResourceApplyAdaMax", rules.ada_max)


@_adam.serves
def ResourceApplyAdam(
    *,
    var: Any,
    m: Any,
    v: Any,
    beta1_power: Any,
    beta2_power: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    grad: Any,
    use_locking: bool = False,
    use_nesterov: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.adam` on a variable and its moments.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        m: Shape S. First moment. Written.
        v: Shape S. Second moment. Written.
        beta1_power: Number or 0-d tensor.
        beta2_power: Number or 0-d tensor.
        lr: Number or 0-d tensor. Learning rate.
        beta1: Number or 0-d tensor.
        beta2: Number or 0-d tensor.
        epsilon: Number or 0-d tensor.
        grad: Shape S.
        use_locking: Accepted; updates of one process never overlap.
        use_nesterov: Whether to look one step ahead.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.

    Example:
        >>> weight, m, v = tw.Variable([1.0]), tw.Variable([0.0]), tw.Variable([0.0])
        >>> tw.raw_ops.ResourceApplyAdam(var=weight.handle, m=m.handle, v=v.handle,
        ...     beta1_power=0.5, beta2_power=0.75, lr=0.25, beta1=0.5, beta2=0.75,
        ...     epsilon=0.0, grad=torch.ones(1))
        >>> weight.item(), m.item(), v.item()
        (0.75, 0.5, 0.25)
    """


@_adam_with_amsgrad.serves
def ResourceApplyAdamWithAmsgrad(
    *,
    var: Any,
    m: Any,
    v: Any,
    vhat: Any,
    beta1_power: Any,
    beta2_power: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    grad: Any,
    use_locking: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.adam_with_amsgrad` on a variable and its moments.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        m: Shape S. First moment. Written.
        v: Shape S. Second moment. Written.
        vhat: Shape S. Largest second moment. Written.
        beta1_power: Number or 0-d tensor.
        beta2_power: Number or 0-d tensor.
        lr: Number or 0-d tensor. Learning rate.
        beta1: Number or 0-d tensor.
        beta2: Number or 0-d tensor.
        epsilon: Number or 0-d tensor.
        grad: Shape S.
        use_locking: Accepted; updates of one process never overlap.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.
    """


@_ada_max.serves
def ResourceApplyAdaMax(
    *,
    var: Any,
    m: Any,
    v: Any,
    beta1_power: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    grad: Any,
    use_locking: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.ada_max` on a variable, its moment and its maximum.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        m: Shape S. First moment. Written.
        v: Shape S. Decaying maximum. Written.
        beta1_power: Number or 0-d tensor.
        lr: Number or 0-d tensor. Learning rate.
        beta1: Number or 0-d tensor.
        beta2: Number or 0-d tensor.
        epsilon: Number or 0-d tensor.
        grad: Shape S.
        use_locking: Accepted; updates of one process never overlap.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.
    """
