"""Rprop: every element has a step length of its own, led by signs alone."""

import torch
from torch import Tensor

__all__ = ["rprop"]


def rprop(
    var: Tensor,
    prev: Tensor,
    step_size: Tensor,
    grad: Tensor,
    *,
    shrink: float,
    grow: float,
    smallest: float,
    largest: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lengthen steps while the gradient keeps its sign, shorten them when it turns.

        s          = sign(grad · prev)
        step_size' = min(max(step_size · (grow | 1 | shrink), smallest), largest)
                                                            for s > 0 | s = 0 | s < 0
        prev'      = grad, or 0 where s < 0
        var'       = var − sign(prev') · step_size'

    Args:
        var: Any shape S, floating point. Unit U.
        prev: Shape S. The gradient of the last step, 0 after a turn. Unit L/U.
        step_size: Shape S. Length of the last step. Unit U.
        grad: Shape S. dLoss/dvar. Unit L/U.
        shrink: Scalar in (0, 1). Factor after a turn.
        grow: Scalar > 1. Factor without one.
        smallest: Scalar. Bound of step_size. Unit U.
        largest: Scalar. Bound of step_size. Unit U.

    Returns:
        (var', prev', step_size'), all of shape S.

    Sparse:
        Rows without a gradient keep their step lengths and do not move.

    Example:
        >>> one = torch.tensor(1.0)
        >>> rprop(one, one, one, one, shrink=0.5, grow=2.0, smallest=0.0, largest=50.0)
        (tensor(-1.), tensor(1.), tensor(2.))

    Source:
        Riedmiller and Braun, "A direct adaptive method for faster backpropagation
        learning", ICNN 1993; torch.optim.Rprop.
    """
    agreement = torch.sign(grad * prev)
    factor = torch.where(agreement > 0, grow, 1.0)
    factor = torch.where(agreement < 0, shrink, factor)
    size_new = torch.clamp(step_size * factor, smallest, largest)
    kept = torch.where(agreement < 0, 0.0, grad)
    return var - torch.sign(kept) * size_new, kept, size_new
