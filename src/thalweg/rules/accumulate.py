"""The sum of gradients over the micro-steps of a cycle, and its mean at the end."""

from torch import Tensor

__all__ = ["accumulate", "begin_sum"]


def accumulate(
    accumulator: Tensor, grad: Tensor, *, scale: float, divisor: float
) -> Tensor:
    """Add a gradient to those that wait to be applied together.

        accumulator' = (accumulator + scale · grad) / divisor

    Args:
        accumulator: Any shape S, floating point. The sum so far. Unit L/U.
        grad: Shape S. Unit L/U.
        scale: Scalar. What the gradient is multiplied by, to undo a loss scale.
        divisor: Scalar > 0. For the last gradient of a cycle how many they are, which
            makes the sum a mean; 1 for the others.

    Returns:
        accumulator', of shape S.

    Example:
        >>> accumulate(torch.tensor(1.0), torch.tensor(4.0), scale=0.5, divisor=2.0)
        tensor(1.5000)

    Source:
        Keras 3, the ``gradient_accumulation_steps`` argument of every optimizer.
    """
    return (accumulator + scale * grad) / divisor


def begin_sum(
    accumulator: Tensor, grad: Tensor, *, scale: float, divisor: float
) -> Tensor:
    """Put the first gradient of a cycle where the sum will be.

        accumulator' = scale · grad / divisor

    Args:
        accumulator: Any shape S, floating point. Replaced, were it NaN. Unit L/U.
        grad: Shape S. Unit L/U.
        scale: As for `accumulate`.
        divisor: As for `accumulate`.

    Returns:
        accumulator', of shape S.

    Example:
        >>> begin_sum(torch.tensor(1.0), torch.tensor(4.0), scale=0.5, divisor=1.0)
        tensor(2.)

    Source:
        As `accumulate`.
    """
    del accumulator
    return scale * grad / divisor
