"""RAdam: Adam that trusts its second moment only when enough gradients are in it."""

import math
from typing import cast

import torch
from torch import Tensor

__all__ = ["radam"]


def radam(
    var: Tensor,
    m: Tensor,
    v: Tensor,
    grad: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    beta1_power: float,
    beta2_power: float,
    global_step: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale by the second moment with a rectified rate, or not at all at first.

        m'   = m + (grad − m) · (1 − beta1)
        v'   = v + (grad² − v) · (1 − beta2)
        n    = 2 / (1 − beta2) − 1
        t    = n − 2 · global_step · beta2_power / (1 − beta2_power)
        r    = √((t − 4) (t − 2) n / ((n − 4) (n − 2) t))
        u    = r · √(1 − beta2_power) / (√v' + epsilon) if t > 5, else 1
        var' = var − lr / (1 − beta1_power) · m' · u

    Args:
        var: Any shape S, floating point. Unit U.
        m: Shape S. First moment, the mean of gradients. Unit L/U.
        v: Shape S. Second moment, the mean of squared gradients. Unit (L/U)².
        grad: Shape S. dLoss/dvar. Unit L/U.
        lr: Scalar. Length of a typical step. Unit U.
        beta1: Scalar in [0, 1). Decay of m.
        beta2: Scalar in [0, 1). Decay of v.
        beta1_power: Scalar beta1ᵗ, where t counts this step too.
        beta2_power: Scalar beta2ᵗ.
        global_step: Scalar. Number of this step, counted from 1.
        epsilon: Scalar >= 0. Unit L/U.

    Returns:
        (var', m', v'), all of shape S.

    Sparse:
        Rows without a gradient keep their moments and do not move.

    Example:
        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> radam(one, zero, zero, one, lr=0.25, beta1=0.5, beta2=0.75,
        ...     beta1_power=0.0, beta2_power=0.0, global_step=100 * one, epsilon=0.0)
        (tensor(0.7500), tensor(0.5000), tensor(0.2500))

    Source:
        Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR
        2020, arXiv:1908.03265; torch.optim.RAdam.
    """
    m_new = m + (grad - m) * (1 - beta1)
    v_new = v + (grad * grad - v) * (1 - beta2)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * global_step * beta2_power / (1 - beta2_power)
    trust = (length - 4) * (length - 2) * longest
    rate = math.sqrt(trust / ((longest - 4) * (longest - 2) * length))
    rate = rate * math.sqrt(1 - beta2_power)
    scaled = rate / (torch.sqrt(v_new) + epsilon)
    is_long = cast("Tensor", length > 5)
    gain = torch.where(is_long, scaled, 1.0)
    return var - lr / (1 - beta1_power) * (m_new * gain), m_new, v_new
