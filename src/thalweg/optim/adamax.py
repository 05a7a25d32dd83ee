"""Adamax as torch has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from thalweg import rules
from thalweg.optim.formula import Formula, Slot
from thalweg.optim.groups import adam_numbers, coupled, forgotten
from thalweg.optim.optimizer import DropIn, parameters_of
from thalweg.optim.options import Extras

__all__ = ["Adamax"]


class Adamax(DropIn, torch.optim.Adamax):
    """Adam with the largest gradient in place of the second moment.

    Formula: `thalweg.rules.ada_max_with_floor`.

    Args:
        params: Parameters, groups, (name, parameter) pairs, or a module.
        lr: Length of the longest step, >= 0.
        betas: Decay of the first moment and of the maximum, each in [0, 1).
        eps: >= 0, added to every gradient's size.
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
        >>> optimizer = Adamax([weight], lr=0.25)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> round(weight.item(), 4)
        0.75

    Source:
        Kingma and Ba, ICLR 2015, section 7.1; `torch.optim.Adamax`.
    """

    columns = ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay")

    def __init__(  # noqa: PLR0913 - torch's signature
        self,
        params: Any,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        self._take(extras)
        super().__init__(
            *(parameters_of(params), lr, betas, eps, weight_decay, foreach),
            maximize=maximize,
            differentiable=differentiable,
            capturable=capturable,
        )

    @override
    def numbers(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        return adam_numbers(group)

    @override
    def choices(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        return bool(group["maximize"]), coupled(group), forgotten(group)

    @override
    def formula(self, choices: tuple[Any, ...]) -> Formula:
        maximize, decay, forgets = choices
        return Formula(
            *(rules.ada_max_with_floor, _scalars, self.columns[:-1]),
            slots=(Slot("exp_avg"), Slot("exp_inf")),
            maximize=maximize,
            decay=decay,
            forgets=(forgets[0], False),
        )


def _scalars(group: Any, step: Any) -> Mapping[str, Any]:
    return {
        "beta1_power": group.beta1**step,
        "lr": group.learning_rate,
        "beta1": group.beta1,
        "beta2": group.beta2,
        "epsilon": group.epsilon,
    }
