"""TensorFlow's ops that compare the signs of gradient and momentum."""

from __future__ import annotations

from typing import Any

from thalweg import rules
from thalweg.raw_ops.door import Door

__all__ = [
    "ResourceApplyAddSign",
    "ResourceApplyPowerSign",
]


_add_sign = Door("ResourceApplyAddSign", rules.add_sign)
_power_sign = Door("ResourceApplyPowerSign", rules.power_sign)


@_add_sign.serves
def ResourceApplyAddSign(
    *,
    var: Any,
    m: Any,
    lr: Any,
    alpha: Any,
    sign_decay: Any,
    beta: Any,
    grad: Any,
    use_locking: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.add_sign` on a variable and its moment.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        m: Shape S. First moment. Written.
        lr: Number or 0-d tensor. Learning rate.
        alpha: Number or 0-d tensor.
        sign_decay: Number or 0-d tensor.
        beta: Number or 0-d tensor. Decay of m.
        grad: Shape S.
        use_locking: Accepted; updates of one process never overlap.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.

    Example:
        >>> weight, m = tw.Variable([1.0]), tw.Variable([0.0])
        >>> tw.raw_ops.ResourceApplyAddSign(var=weight.handle, m=m.handle, lr=0.25,
        ...     alpha=1.0, sign_decay=0.5, beta=0.5, grad=torch.ones(1))
        >>> weight.item()
        0.625
    """


@_power_sign.serves
def ResourceApplyPowerSign(
    *,
    var: Any,
    m: Any,
    lr: Any,
    logbase: Any,
    sign_decay: Any,
    beta: Any,
    grad: Any,
    use_locking: bool = False,
    name: str | None = None,
) -> None:
    """Run `thalweg.rules.power_sign` on a variable and its moment.

    Args:
        var: The variable, its handle, or a tensor; any shape S. Written.
        m: Shape S. First moment. Written.
        lr: Number or 0-d tensor. Learning rate.
        logbase: Number or 0-d tensor.
        sign_decay: Number or 0-d tensor.
        beta: Number or 0-d tensor. Decay of m.
        grad: Shape S.
        use_locking: Accepted; updates of one process never overlap.
        name: Accepted.

    Raises:
        TypeError: If a resource is no tensor or a scalar no number.
        ValueError: If shapes, dtypes or devices do not fit; nothing is written then.
    """
