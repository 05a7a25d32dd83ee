"""SGD as torch has it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from thalweg import rules
from thalweg.optim.formula import Formula, Slot
from thalweg.optim.optimizer import DropIn, parameters_of
from thalweg.optim.options import Extras

__all__ = ["SGD"]


class SGD(DropIn, torch.optim.SGD):
    """Gradient descent, with or without momentum.

    Formula: `thalweg.rules.gradient_descent` or `thalweg.rules.momentum`.

    Args:
        params: Parameters, groups, (name, parameter) pairs, or a module.
        lr: Step length for a unit gradient, >= 0.
        momentum: Decay of the sum of gradients, >= 0; 0 keeps no state.
        dampening: What is taken off every gradient but the first before it is summed.
        weight_decay: Weight of an L2 penalty, >= 0.
        nesterov: Whether to look one step ahead.
        maximize: Whether to climb.
        foreach: Accepted; there is one way to run, which is faster.
        differentiable: Must be False.
        fused: Accepted, as ``foreach``.
        **extras: See `Extras`.

    Raises:
        ValueError: If a number is out of range.
        NotImplementedError: If ``differentiable``.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = SGD([weight], lr=0.25)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> weight.item()
        0.75

    Source:
        Sutskever et al., ICML 2013; `torch.optim.SGD`.
    """

    columns = ("learning_rate", "momentum", "dampening", "weight_decay")
    counts_in_state = False

    def __init__(  # noqa: PLR0913 - torch's signature
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        self._take(extras)
        super().__init__(
            *(parameters_of(params), lr, momentum, dampening, weight_decay, nesterov),
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )

    @override
    def numbers(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        return (
            float(group["lr"]),
            float(group["momentum"]),
            float(group["dampening"]),
            float(group["weight_decay"]),
        )

    @override
    def choices(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        has_momentum = group["momentum"] != 0
        return (
            has_momentum,
            has_momentum and group["dampening"] != 0,
            bool(group["nesterov"]),
            bool(group["maximize"]),
            "coupled" if group["weight_decay"] != 0 else "",
        )

    @override
    def formula(self, choices: tuple[Any, ...]) -> Formula:
        has_momentum, is_damped, nesterov, maximize, decay = choices
        if not has_momentum:
            return Formula(
                *(rules.gradient_descent, _descent_scalars, self.columns[:1]),
                maximize=maximize,
                decay=decay,
            )
        return Formula(
            damped_momentum if is_damped else rules.momentum,
            _momentum_scalars,
            self.columns[:-1],
            slots=(Slot("momentum_buffer"),),
            rule_flags=(("use_nesterov", nesterov),),
            maximize=maximize,
            decay=decay,
        )

    @override
    def is_built_ahead(self, group: Mapping[str, Any]) -> bool:
        # A buffer in a state dict says that the first gradient has been summed.
        return group["dampening"] == 0

    @override
    def next_counters(
        self, values: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        step = values["step"]
        if isinstance(step, np.ndarray):
            return _counted_once(len(step))  # only the first step differs
        return {"step": step**0}


@cache
def _counted_once(num_rows: int) -> Mapping[str, np.ndarray]:
    """The counters after any step: the same object, so that none is written again."""
    ones = np.ones(num_rows)
    ones.flags.writeable = False
    return {"step": ones}


def damped_momentum(
    var: Any,
    accum: Any,
    grad: Any,
    *,
    lr: float,
    momentum: float,
    gain: float,
    use_nesterov: bool,
) -> Any:
    """`thalweg.rules.momentum` of a part of the gradient.

    Args:
        var: Parameter.
        accum: Decaying sum of gradients.
        grad: Gradient.
        lr: Step length.
        momentum: Decay of the sum.
        gain: What is left of the gradient.
        use_nesterov: Look one step ahead.

    Returns:
        (var', accum').
    """
    numbers = {"lr": lr, "momentum": momentum}
    new = rules.momentum(var, accum, gain * grad, **numbers, use_nesterov=False)
    if not use_nesterov:
        return new
    ahead = grad + momentum * new[1]  # torch damps the gradient in the sum alone
    return rules.gradient_descent(var, ahead, alpha=lr), new[1]


def _descent_scalars(group: Any, step: Any) -> Mapping[str, Any]:
    del step
    return {"alpha": group.learning_rate}


def _momentum_scalars(group: Any, step: Any) -> Mapping[str, Any]:
    gain = torch.where(step == 1, 1.0, 1.0 - group.dampening)
    scalars = {"lr": group.learning_rate, "momentum": group.momentum}
    return {**scalars, "gain": gain}
