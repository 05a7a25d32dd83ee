"""NAdam as torch has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from thalweg import rules
from thalweg.optim.formula import Formula, Slot
from thalweg.optim.groups import adam_numbers, decoupled
from thalweg.optim.optimizer import DropIn, parameters_of
from thalweg.optim.options import Extras

__all__ = ["NAdam"]


class NAdam(DropIn, torch.optim.NAdam):
    """Adam with Nesterov momentum that warms up.

    Formula: `thalweg.rules.nadam`. The product of the momenta so far is a number of
    each parameter, under ``"mu_product"``.

    Args:
        params: Parameters, groups, (name, parameter) pairs, or a module.
        lr: Length of a typical step, >= 0.
        betas: Decay of the two moments, each in [0, 1).
        eps: >= 0.
        weight_decay: Weight of an L2 penalty, >= 0.
        momentum_decay: How fast the momentum warms up, >= 0.
        decoupled_weight_decay: Whether weight decay shrinks the parameter instead.
        foreach: Accepted; there is one way to run, which is faster.
        maximize: Whether to climb.
        capturable: Whether a GPU counts the steps, so that one can be captured.
        differentiable: Must be False.
        **extras: See `Extras`.

    Raises:
        ValueError: If a number is out of range.
        NotImplementedError: If ``differentiable``.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = NAdam([weight], lr=0.25)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> round(weight.item(), 4)
        0.7359

    Source:
        Dozat, ICLR 2016 workshop; `torch.optim.NAdam`.
    """

    columns = (
        *("learning_rate", "beta1", "beta2", "epsilon", "weight_decay"),
        "momentum_decay",
    )
    counters: ClassVar[dict[str, float | str]] = {"step": 0.0, "mu_product": 1.0}

    def __init__(  # noqa: PLR0913 - torch's signature
        self,
        params: Any,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        self._take(extras)
        super().__init__(
            *(parameters_of(params), lr, betas, eps, weight_decay, momentum_decay),
            decoupled_weight_decay=decoupled_weight_decay,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
        )

    @override
    def numbers(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        return (*adam_numbers(group), float(group["momentum_decay"]))

    @override
    def choices(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        return bool(group["maximize"]), decoupled(group)

    @override
    def formula(self, choices: tuple[Any, ...]) -> Formula:
        maximize, decay = choices
        hypers = ("learning_rate", "beta1", "beta2", "epsilon")
        return Formula(
            *(rules.nadam, _scalars, (*hypers, "momentum_decay", "mu_product")),
            slots=(Slot("exp_avg"), Slot("exp_avg_sq")),
            maximize=maximize,
            decay=decay,
        )

    @override
    def next_counters(
        self, values: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        step, beta1 = values["step"], values["beta1"]
        momentum = _momentum(beta1, values["momentum_decay"], step)
        return {"step": step, "mu_product": values["mu_product"] * momentum}


def _momentum(beta1: Any, decay: Any, step: Any) -> Any:
    return beta1 * (1 - 0.5 * 0.96 ** (step * decay))


def _scalars(group: Any, step: Any) -> Mapping[str, Any]:
    momentum = _momentum(group.beta1, group.momentum_decay, step)
    return {
        "lr": group.learning_rate,
        "beta1": group.beta1,
        "beta2": group.beta2,
        "beta2_power": group.beta2**step,
        "epsilon": group.epsilon,
        "momentum": momentum,
        "momentum_next": _momentum(group.beta1, group.momentum_decay, step + 1),
        "momentum_product": group.mu_product * momentum,
    }
