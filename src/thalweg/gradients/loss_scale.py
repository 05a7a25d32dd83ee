"""Loss scaling: gradients of half precision are kept away from zero, and undone.

A loss is multiplied by a large number before its gradients are taken, so that small
ones are not rounded to zero, and the gradients are divided by it before they are used.
The number grows while gradients are finite and shrinks when they are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from thalweg.errors import message
from thalweg.state import IndexedSlices, Trackable, Variable

__all__ = ["NOT_SCALED", "DynamicLossScale", "Scaling", "scaled", "times"]


@dataclass(frozen=True)
class Scaling:
    """How the gradients of a step come.

    Attributes:
        factor: What they are multiplied by to undo the loss scale; a float64 tensor of
            shape () where the device keeps the scale.
        unscales: Whether they are; what was of a scaled loss, also by 1.
        skips: Whether a gradient with an inf or NaN leaves the step out.
    """

    factor: float | torch.Tensor = 1.0
    unscales: bool = False
    skips: bool = False


NOT_SCALED = Scaling()


class DynamicLossScale(Trackable):
    """A loss scale that follows what the gradients bear.

    It is halved, though never below 1, by gradients that are not finite, and doubled
    after so many steps in a row with finite ones, as long as the double is finite.

    Args:
        initial_scale: The scale of the first step, at least 1.
        growth_steps: Finite steps in a row before it is doubled.

    Attributes:
        current_loss_scale: The scale, a float32 `Variable` of shape ().
        dynamic_counter: Finite steps since it last changed, an int64 `Variable`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> scale = DynamicLossScale(initial_scale=8.0, growth_steps=2)
        >>> for is_finite in (False, True, True, True):
        ...     scale.update(is_finite)
        ...     print(float(scale.current_loss_scale), int(scale.dynamic_counter))
        4.0 0
        4.0 1
        8.0 0
        8.0 1

    Source:
        Micikevicius et al., "Mixed Precision Training", ICLR 2018; Keras 2.6,
        ``LossScaleOptimizer``.
    """

    multiplier = 2.0

    def __init__(self, initial_scale: float, growth_steps: int) -> None:
        where = "DynamicLossScale"
        if not 1 <= float(initial_scale) < float("inf"):
            _refuse(where, "a finite initial_scale >= 1", initial_scale)
        is_count = isinstance(growth_steps, int) and not isinstance(growth_steps, bool)
        if not is_count or growth_steps < 1:
            _refuse(where, "a whole number of growth_steps >= 1", growth_steps)
        self.initial_scale = float(initial_scale)
        self.growth_steps = growth_steps
        start = torch.tensor(self.initial_scale, dtype=torch.float32)
        self.current_loss_scale = Variable(start, trainable=False, name="loss_scale")
        count = torch.zeros((), dtype=torch.int64)
        self.dynamic_counter = Variable(count, trainable=False, name="dynamic_counter")

    @property
    def is_on_host(self) -> bool:
        """Whether reading the scale waits for nothing."""
        return self.current_loss_scale.is_cpu

    @torch.no_grad()
    def update(
        self, is_finite: bool | torch.Tensor, counts: torch.Tensor | None = None
    ) -> None:
        """Take note of a step.

        Args:
            is_finite: Whether its gradients were; the same on every rank. Of a bool of
                shape () on a device the scale follows there, and nothing waits.
            counts: Shape (), bool, on that device: whether there was a step at all; a
                check has refused it if not. There was if None.
        """
        held: list[Variable] = [self.current_loss_scale, self.dynamic_counter]
        if isinstance(is_finite, torch.Tensor):
            for variable in held:
                if variable.device != is_finite.device:
                    variable.data = variable.detach().to(is_finite.device)
        scale, counter = (variable.detach() for variable in held)
        is_good = torch.as_tensor(is_finite)
        grown = scale * self.multiplier
        grown = torch.where(torch.isfinite(grown), grown, scale)
        shrunk = torch.clamp_min(scale / self.multiplier, 1.0)
        is_due = counter + 1 >= self.growth_steps
        changed = torch.where(is_good, grown, shrunk)
        keeps = is_good & ~is_due
        scale_after = torch.where(keeps, scale, changed)
        count_after = torch.where(keeps, counter + 1, 0)
        if counts is not None:
            scale_after = torch.where(counts, scale_after, scale)
            count_after = torch.where(counts, count_after, counter)
        held[0].copy_(scale_after)
        held[1].copy_(count_after)


def scaled(gradients: Sequence[Any], factor: float | torch.Tensor) -> list[Any]:
    """Multiply gradients by a number, in new tensors.

    Args:
        gradients: Tensors, `IndexedSlices` or None.
        factor: The number; a tensor of shape () where the device keeps it.

    Returns:
        New gradients of the same dtypes; None stays None.

    Example:
        >>> scaled([torch.tensor([4.0]), None], 0.5)
        [tensor([2.]), None]
    """
    return [_scaled(gradient, factor) for gradient in gradients]


def _scaled(gradient: Any, factor: float | torch.Tensor) -> Any:
    if gradient is None:
        return None
    if isinstance(gradient, IndexedSlices):
        return gradient.with_values(times(gradient.values, factor))
    return times(gradient, factor)


def times(value: torch.Tensor, factor: float | torch.Tensor) -> torch.Tensor:
    """A tensor times a number, in its own dtype.

    Args:
        value: The tensor.
        factor: The number. A tensor of shape () need not fit the dtype: half precision
            has no room for many a loss scale.

    Returns:
        The product, rounded once.
    """
    if not isinstance(factor, torch.Tensor):
        return value * factor
    wide = torch.promote_types(value.dtype, torch.float32)
    own = factor.to(device=value.device, dtype=wide)
    return (value.to(wide) * own).to(value.dtype)


def _refuse(where: str, expected: str, got: object) -> None:
    raise ValueError(message(where, expected, repr(got), "Pass one."))
