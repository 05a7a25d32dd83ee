"""RMSProp, as TensorFlow's ops state it, and as Keras does without momentum.

They differ in where epsilon stands: TensorFlow adds it inside the root, Keras without
momentum outside. TensorFlow's sparse ops weigh old and new mean where its dense ones
add a part of their difference, which cancels if rho is small.
"""

import torch
from torch import Tensor

__all__ = [
    "centered_rms_prop",
    "centered_rms_prop_of_rows",
    "centered_rms_prop_without_momentum",
    "rms_prop",
    "rms_prop_of_rows",
    "rms_prop_without_momentum",
]


def rms_prop(
    var: Tensor,
    ms: Tensor,
    mom: Tensor,
    grad: Tensor,
    *,
    lr: float,
    rho: float,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Divide by the root of the mean square, and accumulate steps.

        ms'  = ms + (grad² − ms) · (1 − rho)
        mom' = momentum · mom + lr · grad / √(ms' + epsilon)
        var' = var − mom'

    Args:
        var: Any shape S, floating point. Unit U.
        ms: Shape S. Mean of squared gradients. Unit (L/U)².
        mom: Shape S. Decaying sum of steps. Unit U.
        grad: Shape S. dLoss/dvar. Unit L/U.
        lr: Scalar. Length of a typical step. Unit U.
        rho: Scalar in [0, 1]. Decay of ms.
        momentum: Scalar in [0, 1]. Decay of mom.
        epsilon: Scalar >= 0, inside the root. Unit (L/U)².

    Returns:
        (var', ms', mom'), all of shape S.

    Sparse:
        Rows without a gradient keep ms and mom and do not move.

    Example:
        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> rms_prop(one, zero, one, 2 * one, lr=0.5, rho=0.0, momentum=0.25,
        ...     epsilon=0.0)
        (tensor(0.2500), tensor(4.), tensor(0.7500))

    Source:
        Hinton, "Neural Networks for Machine Learning", lecture 6e, 2012; TensorFlow,
        ResourceApplyRMSProp.
    """
    ms_new = ms + (grad * grad - ms) * (1 - rho)
    var_new, mom_new = _moved(var, mom, grad, ms_new + epsilon, lr, momentum)
    return var_new, ms_new, mom_new


def rms_prop_of_rows(
    var: Tensor,
    ms: Tensor,
    mom: Tensor,
    grad: Tensor,
    *,
    lr: float,
    rho: float,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`rms_prop` with the mean as TensorFlow's sparse op rounds it.

        ms'  = rho · ms + (1 − rho) · grad²
        mom' = momentum · mom + lr · grad / √(ms' + epsilon)
        var' = var − mom'

    Args:
        var: Any shape S, floating point. Unit U.
        ms: Shape S. Mean of squared gradients. Unit (L/U)².
        mom: Shape S. Decaying sum of steps. Unit U.
        grad: Shape S. dLoss/dvar. Unit L/U.
        lr: Scalar. Length of a typical step. Unit U.
        rho: Scalar in [0, 1]. Decay of ms.
        momentum: Scalar in [0, 1]. Decay of mom.
        epsilon: Scalar >= 0, inside the root. Unit (L/U)².

    Returns:
        (var', ms', mom'), all of shape S.

    Sparse:
        Rows without a gradient keep ms and mom and do not move.

    Example:
        >>> large, one = torch.tensor(1e8), torch.tensor(1.0)
        >>> numbers = {"lr": 0.5, "rho": 0.0, "momentum": 0.0, "epsilon": 0.0}
        >>> rms_prop_of_rows(one, large, 0 * one, one, **numbers)
        (tensor(0.5000), tensor(1.), tensor(0.5000))

    Source:
        TensorFlow, ResourceSparseApplyRMSProp.
    """
    ms_new = rho * ms + (1 - rho) * (grad * grad)
    var_new, mom_new = _moved(var, mom, grad, ms_new + epsilon, lr, momentum)
    return var_new, ms_new, mom_new


def centered_rms_prop(
    var: Tensor,
    ms: Tensor,
    mom: Tensor,
    mg: Tensor,
    grad: Tensor,
    *,
    lr: float,
    rho: float,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divide by the root of the variance, and accumulate steps.

        ms'  = ms + (grad² − ms) · (1 − rho)
        mg'  = mg + (grad − mg) · (1 − rho)
        mom' = momentum · mom + lr · grad / √(ms' − mg'² + epsilon)
        var' = var − mom'

    Args:
        var: Any shape S, floating point. Unit U.
        ms: Shape S. Mean of squared gradients. Unit (L/U)².
        mom: Shape S. Decaying sum of steps. Unit U.
        mg: Shape S. Mean of gradients. Unit L/U.
        grad: Shape S. dLoss/dvar. Unit L/U.
        lr: Scalar. Length of a typical step. Unit U.
        rho: Scalar in [0, 1]. Decay of ms and mg.
        momentum: Scalar in [0, 1]. Decay of mom.
        epsilon: Scalar >= 0, inside the root. Unit (L/U)².

    Returns:
        (var', ms', mom', mg'), all of shape S.

    Sparse:
        Rows without a gradient keep ms, mom and mg and do not move.

    Example:
        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> new = centered_rms_prop(one, zero, zero, zero, 2 * one, lr=0.5, rho=0.5,
        ...     momentum=0.0, epsilon=0.0)
        >>> [value.item() for value in new]
        [0.0, 2.0, 1.0, 1.0]

    Source:
        Graves, "Generating Sequences With Recurrent Neural Networks", 2013,
        arXiv:1308.0850, equations 38-45; TensorFlow, ResourceApplyCenteredRMSProp.
    """
    ms_new = ms + (grad * grad - ms) * (1 - rho)
    mg_new = mg + (grad - mg) * (1 - rho)
    spread = ms_new - mg_new * mg_new + epsilon
    var_new, mom_new = _moved(var, mom, grad, spread, lr, momentum)
    return var_new, ms_new, mom_new, mg_new


def centered_rms_prop_of_rows(
    var: Tensor,
    ms: Tensor,
    mom: Tensor,
    mg: Tensor,
    grad: Tensor,
    *,
    lr: float,
    rho: float,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`centered_rms_prop` with the means as TensorFlow's sparse op rounds them.

        ms'  = rho · ms + (1 − rho) · grad²
        mg'  = rho · mg + (1 − rho) · grad
        mom' = momentum · mom + lr · grad / √(ms' + epsilon − mg'²)
        var' = var − mom'

    Args:
        var: Any shape S, floating point. Unit U.
        ms: Shape S. Mean of squared gradients. Unit (L/U)².
        mom: Shape S. Decaying sum of steps. Unit U.
        mg: Shape S. Mean of gradients. Unit L/U.
        grad: Shape S. dLoss/dvar. Unit L/U.
        lr: Scalar. Length of a typical step. Unit U.
        rho: Scalar in [0, 1]. Decay of ms and mg.
        momentum: Scalar in [0, 1]. Decay of mom.
        epsilon: Scalar >= 0, inside the root. Unit (L/U)².

    Returns:
        (var', ms', mom', mg'), all of shape S.

    Sparse:
        Rows without a gradient keep ms, mom and mg and do not move.

    Example:
        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> new = centered_rms_prop_of_rows(one, zero, zero, zero, 2 * one, lr=0.5,
        ...     rho=0.5, momentum=0.0, epsilon=0.0)
        >>> [value.item() for value in new]
        [0.0, 2.0, 1.0, 1.0]

    Source:
        TensorFlow, ResourceSparseApplyCenteredRMSProp.
    """
    ms_new = rho * ms + (1 - rho) * (grad * grad)
    mg_new = rho * mg + (1 - rho) * grad
    spread = ms_new + epsilon - mg_new * mg_new
    var_new, mom_new = _moved(var, mom, grad, spread, lr, momentum)
    return var_new, ms_new, mom_new, mg_new


def _moved(
    var: Tensor, mom: Tensor, grad: Tensor, spread: Tensor, lr: float, momentum: float
) -> tuple[Tensor, Tensor]:
    """A step divided by the root of the spread, added to those before: var', mom'."""
    mom_new = momentum * mom + lr * grad / torch.sqrt(spread)
    return var - mom_new, mom_new


def rms_prop_without_momentum(
    var: Tensor, rms: Tensor, grad: Tensor, *, lr: float, rho: float, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Divide by the root of the mean square, plus epsilon.

        rms' = rho · rms + (1 − rho) · grad²
        var' = var − lr · grad / (√rms' + epsilon)

    Args:
        var: Any shape S, floating point. Unit U.
        rms: Shape S. Mean of squared gradients. Unit (L/U)².
        grad: Shape S. dLoss/dvar. Unit L/U.
        lr: Scalar. Length of a typical step. Unit U.
        rho: Scalar in [0, 1]. Decay of rms.
        epsilon: Scalar >= 0, outside the root. Unit L/U.

    Returns:
        (var', rms'), both of shape S.

    Sparse:
        Rows without a gradient keep rms and do not move.

    Example:
        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> rms_prop_without_momentum(one, zero, 2 * one, lr=0.5, rho=0.75, epsilon=0.0)
        (tensor(0.), tensor(1.))

    Source:
        Hinton, lecture 6e, 2012; Keras 2.6, RMSprop with momentum 0.
    """
    rms_new = rho * rms + (1 - rho) * (grad * grad)
    return var - lr * grad / (torch.sqrt(rms_new) + epsilon), rms_new


def centered_rms_prop_without_momentum(
    var: Tensor,
    rms: Tensor,
    mg: Tensor,
    grad: Tensor,
    *,
    lr: float,
    rho: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Divide by the root of the variance, plus epsilon.

        rms' = rho · rms + (1 − rho) · grad²
        mg'  = rho · mg + (1 − rho) · grad
        var' = var − lr · grad / (√(rms' − mg'²) + epsilon)

    Args:
        var: Any shape S, floating point. Unit U.
        rms: Shape S. Mean of squared gradients. Unit (L/U)².
        mg: Shape S. Mean of gradients. Unit L/U.
        grad: Shape S. dLoss/dvar. Unit L/U.
        lr: Scalar. Length of a typical step. Unit U.
        rho: Scalar in [0, 1]. Decay of rms and mg.
        epsilon: Scalar >= 0, outside the root. Unit L/U.

    Returns:
        (var', rms', mg'), all of shape S.

    Sparse:
        Rows without a gradient keep rms and mg and do not move.

    Example:
        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> centered_rms_prop_without_momentum(one, zero, zero, 2 * one, lr=0.25,
        ...     rho=0.5, epsilon=0.0)
        (tensor(0.5000), tensor(2.), tensor(1.))

    Source:
        Graves, 2013, arXiv:1308.0850; Keras 2.6, RMSprop with momentum 0, centered.
    """
    rms_new = rho * rms + (1 - rho) * (grad * grad)
    mg_new = rho * mg + (1 - rho) * grad
    spread = torch.sqrt(rms_new - mg_new * mg_new)
    return var - lr * grad / (spread + epsilon), rms_new, mg_new
