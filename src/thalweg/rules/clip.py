"""What clipping reads and changes, as rules that are composed with others."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["clip_by_value", "clip_scale", "squared_norm"]


def clip_by_value(grad: Tensor, *, clipvalue: float) -> Tensor:
    """Bring every element of a gradient into [−clipvalue, clipvalue].

        grad' = min(max(grad, −clipvalue), clipvalue)

    Args:
        grad: Any shape S, floating point. Unit L/U.
        clipvalue: Scalar >= 0. Unit L/U.

    Returns:
        grad', of shape S.

    Example:
        >>> clip_by_value(torch.tensor([-3.0, 0.5]), clipvalue=1.0)
        tensor([-1.0000,  0.5000])

    Source:
        Keras 2.6, the ``clipvalue`` argument of every optimizer.
    """
    return torch.clamp(grad, -clipvalue, clipvalue)


def squared_norm(
    var: Tensor, total: Tensor, grad: Tensor, *, clipvalue: float, is_clipped: bool
) -> tuple[Tensor, Tensor]:
    """Add up the squares of a gradient, clipped by value first if asked for.

        total' = Σ grad²

    The variable is not read and stays as it is. The sum is taken in float64 over the
    whole variable, in one order, so that it has the same bits for any thread count.

    Args:
        var: Any shape S.
        total: Shape (). Replaced.
        grad: Shape S. Unit L/U.
        clipvalue: Scalar >= 0; ignored unless ``is_clipped``.
        is_clipped: Whether the gradient is clipped by value.

    Returns:
        (var, total').

    Example:
        >>> zero = torch.tensor(0.0)
        >>> squared_norm(zero, zero, torch.tensor([3.0, 4.0]), clipvalue=0.0,
        ...     is_clipped=False)[1]
        tensor(25.)

    Source:
        Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural
        networks", ICML 2013: the norm that gradients are clipped by.
    """
    del total
    if is_clipped:
        grad = clip_by_value(grad, clipvalue=clipvalue)
    return var, torch.sum(grad * grad)


def clip_scale(
    var: Tensor,
    grad: Tensor,
    *,
    unscale: float,
    clipnorm: float,
    global_clipnorm: float,
    is_own: bool,
    is_common: bool,
) -> Tensor:
    """What each gradient is multiplied by: unscaled, clipped alone, then with all.

        norm = ‖grad‖ · unscale
        own = clipnorm / max(norm, clipnorm)
        common = global_clipnorm / max(√Σ (norm · own)², global_clipnorm)
        scale = own · common · unscale

    A norm of all that is infinite gives NaN, as in TensorFlow. Norms of 0 are left
    alone, even where the largest norm is 0.

    Args:
        var: Shape (gradients,). Replaced.
        grad: Shape (gradients,): the squared norms.
        unscale: What gradients are multiplied by before they are clipped.
        clipnorm: Largest norm of each gradient, if ``is_own``.
        global_clipnorm: Largest norm of all of them together, if ``is_common``.
        is_own: Whether each gradient is clipped.
        is_common: Whether all of them together are.

    Returns:
        Factors of the shape of ``var``.

    Example:
        >>> clip_scale(torch.zeros(2), torch.tensor([9.0, 16.0]), unscale=1.0,
        ...     clipnorm=0.0, global_clipnorm=2.5, is_own=False, is_common=True)
        tensor([0.5000, 0.5000])

    Source:
        Keras 2.6, ``clipnorm`` and ``global_clipnorm`` of every optimizer; Pascanu,
        Mikolov and Bengio, ICML 2013.
    """
    scale = torch.ones_like(var)
    squared = grad * (unscale * unscale)
    if is_own:
        own = torch.sqrt(squared)
        scale = torch.where(own <= clipnorm, 1.0, clipnorm / own)
    if is_common:
        norm = torch.sqrt(torch.sum(squared * scale * scale))
        common = torch.where(norm <= global_clipnorm, 1.0, global_clipnorm / norm)
        scale = scale * torch.where(torch.isfinite(norm), common, math.nan)
    return scale * unscale
