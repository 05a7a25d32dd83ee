"""ASGD as torch has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from thalweg import rules
from thalweg.optim.formula import Formula, Slot
from thalweg.optim.groups import coupled
from thalweg.optim.optimizer import DropIn, parameters_of
from thalweg.optim.options import Extras
from thalweg.rules.moving_average import moving_average

__all__ = ["ASGD"]


class ASGD(DropIn, torch.optim.ASGD):
    """Gradient descent at a falling rate, with an average of the parameter.

    Formula: `thalweg.rules.decoupled_weight_decay`, `thalweg.rules.gradient_descent`,
    then a moving average in ``state["ax"]``. Rate and weight of the average are
    numbers of each parameter, under ``"eta"`` and ``"mu"``.

    Args:
        params: Parameters, groups, (name, parameter) pairs, or a module.
        lr: Length of the first step for a unit gradient, >= 0.
        lambd: Decoupled decay.
        alpha: Power with which the rate falls.
        t0: Step at which averaging begins.
        weight_decay: Weight of an L2 penalty, >= 0.
        foreach: Accepted; there is one way to run, which is faster.
        maximize: Whether to climb.
        differentiable: Must be False.
        capturable: Whether a GPU counts the steps, so that one can be captured.
        **extras: See `Extras`.

    Raises:
        ValueError: If a number is out of range.
        NotImplementedError: If ``differentiable``.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = ASGD([weight], lr=0.25, lambd=0.0)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> round(weight.item(), 4)
        0.75

    Source:
        Polyak and Juditsky, SIAM J. Control Optim. 30 (1992); `torch.optim.ASGD`.
    """

    columns = ("learning_rate", "lambd", "alpha", "t0", "weight_decay")
    counters: ClassVar[dict[str, float | str]] = {"step": 0.0, "eta": "lr", "mu": 1.0}

    def __init__(  # noqa: PLR0913 - torch's signature
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        self._take(extras)
        super().__init__(
            *(parameters_of(params), lr, lambd, alpha, t0, weight_decay, foreach),
            maximize=maximize,
            differentiable=differentiable,
            capturable=capturable,
        )

    @override
    def numbers(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        return (
            float(group["lr"]),
            float(group["lambd"]),
            float(group["alpha"]),
            float(group["t0"]),
            float(group["weight_decay"]),
        )

    @override
    def choices(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        return bool(group["maximize"]), coupled(group)

    @override
    def formula(self, choices: tuple[Any, ...]) -> Formula:
        maximize, decay = choices
        return Formula(
            *(averaged_descent, _scalars, ("lambd", "eta", "mu")),
            slots=(Slot("ax"),),
            maximize=maximize,
            decay=decay,
        )

    @override
    def next_counters(
        self, values: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        rate, step = values["learning_rate"], values["step"]
        fallen = (1 + values["lambd"] * rate * step) ** values["alpha"]
        weight = 1 / (step - values["t0"]).clip(1.0)
        return {"step": step, "eta": rate / fallen, "mu": weight}


def averaged_descent(
    var: Any, ax: Any, grad: Any, *, eta: float, lambd: float, mu: float
) -> Any:
    """Decay, step, and follow with an average.

    Args:
        var: Parameter.
        ax: Its average.
        grad: Gradient.
        eta: Step length.
        lambd: Decay.
        mu: Weight of the new value in the average.

    Returns:
        (var', ax').
    """
    decayed = rules.decoupled_weight_decay(var, grad, lr=eta, weight_decay=lambd)
    moved = rules.gradient_descent(decayed, grad, alpha=eta)
    return moved, moving_average(ax, moved, momentum=1 - mu)


def _scalars(group: Any, step: Any) -> Mapping[str, Any]:
    del step
    return {"eta": group.eta, "lambd": group.lambd, "mu": group.mu}
