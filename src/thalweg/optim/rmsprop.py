"""RMSprop as torch has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from thalweg import rules
from thalweg.optim.formula import Formula, Slot
from thalweg.optim.groups import coupled
from thalweg.optim.optimizer import DropIn, parameters_of
from thalweg.optim.options import Extras

__all__ = ["RMSprop"]


class RMSprop(DropIn, torch.optim.RMSprop):
    """Gradients divided by the root of their mean square.

    Formula: `thalweg.rules.rms_prop_without_momentum`, with momentum
    `thalweg.rules.rms_prop_then_momentum`; or the centered form of either.

    Args:
        params: Parameters, groups, (name, parameter) pairs, or a module.
        lr: Length of a typical step, >= 0.
        alpha: Decay of the mean square, >= 0.
        eps: >= 0, outside the root.
        weight_decay: Weight of an L2 penalty, >= 0.
        momentum: Decay of the sum of scaled gradients, >= 0.
        centered: Whether the mean gradient is taken off first.
        capturable: Whether a GPU counts the steps, so that one can be captured.
        foreach: Accepted; there is one way to run, which is faster.
        maximize: Whether to climb.
        differentiable: Must be False.
        **extras: See `Extras`.

    Raises:
        ValueError: If a number is out of range.
        NotImplementedError: If ``differentiable``.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = RMSprop([weight], lr=0.25, alpha=0.75)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> round(weight.item(), 4)
        0.5

    Source:
        Hinton, lecture 6e, 2012; Graves, 2013, arXiv:1308.0850; `torch.optim.RMSprop`.
    """

    columns = ("learning_rate", "rho", "epsilon", "momentum", "weight_decay")

    def __init__(  # noqa: PLR0913 - torch's signature
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        self._take(extras)
        super().__init__(
            *(parameters_of(params), lr, alpha, eps, weight_decay, momentum, centered),
            capturable=capturable,
            foreach=foreach,
            maximize=maximize,
            differentiable=differentiable,
        )

    @override
    def numbers(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        return (
            float(group["lr"]),
            float(group["alpha"]),
            float(group["eps"]),
            float(group["momentum"]),
            float(group["weight_decay"]),
        )

    @override
    def choices(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        return (
            bool(group["centered"]),
            group["momentum"] > 0,
            bool(group["maximize"]),
            coupled(group),
        )

    @override
    def formula(self, choices: tuple[Any, ...]) -> Formula:
        centered, has_momentum, maximize, decay = choices
        rule = {
            (False, False): rules.rms_prop_without_momentum,
            (True, False): rules.centered_rms_prop_without_momentum,
            (False, True): rules.rms_prop_then_momentum,
            (True, True): rules.centered_rms_prop_then_momentum,
        }[centered, has_momentum]
        buffer = (Slot("momentum_buffer"),) if has_momentum else ()
        mean = (Slot("grad_avg"),) if centered else ()
        return Formula(
            *(rule, _scalars, self.columns[:-1]),
            slots=(Slot("square_avg"), *buffer, *mean),
            maximize=maximize,
            decay=decay,
        )


def _scalars(group: Any, step: Any) -> Mapping[str, Any]:
    del step
    return {
        "lr": group.learning_rate,
        "rho": group.rho,
        "epsilon": group.epsilon,
        "momentum": group.momentum,
    }
