"""AdaMax whose epsilon stands inside the maximum."""

import torch
from torch import Tensor

__all__ = ["ada_max_with_floor"]


def ada_max_with_floor(
    var: Tensor,
    m: Tensor,
    v: Tensor,
    grad: Tensor,
    *,
    beta1_power: float,
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Step along the first moment, scaled by a decaying maximum that is never 0.

        m'   = m + (grad − m) · (1 − beta1)
        v'   = max(beta2 · v, |grad| + epsilon)
        var' = var − lr / (1 − beta1_power) · m' / v'

    Unlike in `ada_max`, epsilon decays with the maximum instead of being added to it.

    Args:
        var: Any shape S, floating point. Unit U.
        m: Shape S. First moment, the mean of gradients. Unit L/U.
        v: Shape S. Decaying maximum of |grad| + epsilon. Unit L/U.
        grad: Shape S. dLoss/dvar. Unit L/U.
        beta1_power: Scalar beta1ᵗ, where t counts this step too.
        lr: Scalar. Length of the longest step. Unit U.
        beta1: Scalar in [0, 1). Decay of m.
        beta2: Scalar in [0, 1). Decay of v.
        epsilon: Scalar > 0. Unit L/U.

    Returns:
        (var', m', v'), all of shape S.

    Sparse:
        Rows without a gradient keep m and v and do not move.

    Example:
        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> ada_max_with_floor(one, zero, zero, one, beta1_power=0.5, lr=0.25,
        ...     beta1=0.5, beta2=0.5, epsilon=1.0)
        (tensor(0.8750), tensor(0.5000), tensor(2.))

    Source:
        Kingma and Ba, ICLR 2015, section 7.1; torch.optim.Adamax.
    """
    m_new = m + (grad - m) * (1 - beta1)
    v_new = torch.maximum(beta2 * v, torch.abs(grad) + epsilon)
    return var - lr / (1 - beta1_power) * (m_new / v_new), m_new, v_new
