"""The gradient of an L2 penalty, composed in front of another rule."""

from torch import Tensor

__all__ = ["l2_penalty"]


def l2_penalty(grad: Tensor, var: Tensor, *, weight_decay: float) -> Tensor:
    """Add the gradient of weight_decay / 2 · ‖var‖² to another gradient.

        grad' = grad + weight_decay · var

    Args:
        grad: Any shape S, floating point. Unit L/U.
        var: Shape S. Unit U.
        weight_decay: Scalar >= 0. Unit L/U².

    Returns:
        grad', of shape S.

    Sparse:
        Only the indexed rows are penalised.

    Example:
        >>> l2_penalty(torch.tensor(1.0), torch.tensor(2.0), weight_decay=0.5)
        tensor(2.)

    Source:
        Hoerl and Kennard, "Ridge Regression", Technometrics 12 (1970); torch.optim,
        the ``weight_decay`` argument of every optimizer but AdamW.
    """
    return grad + weight_decay * var
