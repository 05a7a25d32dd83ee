"""Adadelta as torch has it."""

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

__all__ = ["Adadelta"]


class Adadelta(DropIn, torch.optim.Adadelta):
    """Steps in the unit of the parameter, without a learning rate of its own.

    Formula: `thalweg.rules.adadelta`.

    Args:
        params: Parameters, groups, (name, parameter) pairs, or a module.
        lr: Factor of every step, >= 0.
        rho: Decay of both means, in [0, 1].
        eps: >= 0.
        weight_decay: Weight of an L2 penalty, >= 0.
        foreach: Accepted; there is one way to run, which is faster.
        capturable: Whether a GPU counts the steps, so that one can be captured.
        maximize: Whether to climb.
        differentiable: Must be False.
        **extras: See `Extras`.

    Raises:
        ValueError: If a number is out of range.
        NotImplementedError: If ``differentiable``.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = Adadelta([weight], eps=0.25)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> round(weight.item(), 4)
        0.1548

    Source:
        Zeiler, 2012, arXiv:1212.5701; `torch.optim.Adadelta`.
    """

    columns = ("learning_rate", "rho", "epsilon", "weight_decay")

    def __init__(  # noqa: PLR0913 - torch's signature
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        self._take(extras)
        super().__init__(
            *(parameters_of(params), lr, rho, eps, weight_decay, foreach),
            capturable=capturable,
            maximize=maximize,
            differentiable=differentiable,
        )

    @override
    def numbers(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        return (
            float(group["lr"]),
            float(group["rho"]),
            float(group["eps"]),
            float(group["weight_decay"]),
        )

    @override
    def choices(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        return bool(group["maximize"]), coupled(group)

    @override
    def formula(self, choices: tuple[Any, ...]) -> Formula:
        maximize, decay = choices
        return Formula(
            *(rules.adadelta, _scalars, self.columns[:-1]),
            slots=(Slot("square_avg"), Slot("acc_delta")),
            maximize=maximize,
            decay=decay,
        )


def _scalars(group: Any, step: Any) -> Mapping[str, Any]:
    del step
    rate, epsilon = group.learning_rate, group.epsilon
    return {"lr": rate, "rho": group.rho, "epsilon": epsilon}
