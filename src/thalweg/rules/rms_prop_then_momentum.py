"""RMSProp with momentum as torch has it: of divided gradients."""

from typing import Any

from torch import Tensor

from thalweg.rules.momentum import momentum as momentum_rule
from thalweg.rules.rms_prop import (
    centered_rms_prop_without_momentum,
    rms_prop_without_momentum,
)

__all__ = ["centered_rms_prop_then_momentum", "rms_prop_then_momentum"]


def rms_prop_then_momentum(
    var: Tensor,
    rms: Tensor,
    mom: Tensor,
    grad: Tensor,
    *,
    lr: float,
    rho: float,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Divide by the root of the mean square plus epsilon, and accumulate the quotients.

        rms' = rho · rms + (1 − rho) · grad²
        mom' = momentum · mom + grad / (√rms' + epsilon)
        var' = var − lr · mom'

    Equal to `rms_prop_without_momentum` at momentum 0. Unlike in `rms_prop`, epsilon
    stands outside the root, and a change of ``lr`` acts on all of mom at once.

    Args:
        var: Any shape S, floating point. Unit U.
        rms: Shape S. Mean of squared gradients. Unit (L/U)².
        mom: Shape S. Decaying sum of divided gradients. Unit 1.
        grad: Shape S. dLoss/dvar. Unit L/U.
        lr: Scalar. Length of a typical step. Unit U.
        rho: Scalar in [0, 1]. Decay of rms.
        momentum: Scalar in [0, 1]. Decay of mom.
        epsilon: Scalar >= 0, outside the root. Unit L/U.

    Returns:
        (var', rms', mom'), all of shape S.

    Sparse:
        Rows without a gradient keep rms and mom and do not move.

    Example:
        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> rms_prop_then_momentum(one, zero, one, 2 * one, lr=0.5, rho=0.75,
        ...     momentum=0.25, epsilon=1.0)
        (tensor(0.3750), tensor(1.), tensor(1.2500))

    Source:
        Hinton, lecture 6e, 2012; torch.optim.RMSprop with momentum.
    """
    # From 0 and at rate −1 a step ends at the divided gradient itself.
    origin: Any = 0.0
    divided, rms_new = rms_prop_without_momentum(
        origin, rms, grad, lr=-1.0, rho=rho, epsilon=epsilon
    )
    var_new, mom_new = momentum_rule(
        var, mom, divided, lr=lr, momentum=momentum, use_nesterov=False
    )
    return var_new, rms_new, mom_new


def centered_rms_prop_then_momentum(
    var: Tensor,
    rms: Tensor,
    mom: Tensor,
    mg: Tensor,
    grad: Tensor,
    *,
    lr: float,
    rho: float,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divide by the root of the variance plus epsilon, and accumulate the quotients.

        rms' = rho · rms + (1 − rho) · grad²
        mg'  = rho · mg + (1 − rho) · grad
        mom' = momentum · mom + grad / (√(rms' − mg'²) + epsilon)
        var' = var − lr · mom'

    Args:
        var: Any shape S, floating point. Unit U.
        rms: Shape S. Mean of squared gradients. Unit (L/U)².
        mom: Shape S. Decaying sum of divided gradients. Unit 1.
        mg: Shape S. Mean of gradients. Unit L/U.
        grad: Shape S. dLoss/dvar. Unit L/U.
        lr: Scalar. Length of a typical step. Unit U.
        rho: Scalar in [0, 1]. Decay of rms and mg.
        momentum: Scalar in [0, 1]. Decay of mom.
        epsilon: Scalar >= 0, outside the root. Unit L/U.

    Returns:
        (var', rms', mom', mg'), all of shape S.

    Sparse:
        Rows without a gradient keep rms, mom and mg and do not move.

    Example:
        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> new = centered_rms_prop_then_momentum(one, zero, one, zero, 2 * one,
        ...     lr=0.5, rho=0.5, momentum=0.25, epsilon=1.0)
        >>> [value.item() for value in new]
        [0.375, 2.0, 1.25, 1.0]

    Source:
        Graves, 2013, arXiv:1308.0850; torch.optim.RMSprop with momentum, centered.
    """
    origin: Any = 0.0
    divided, rms_new, mg_new = centered_rms_prop_without_momentum(
        origin, rms, mg, grad, lr=-1.0, rho=rho, epsilon=epsilon
    )
    var_new, mom_new = momentum_rule(
        var, mom, divided, lr=lr, momentum=momentum, use_nesterov=False
    )
    return var_new, rms_new, mom_new, mg_new
