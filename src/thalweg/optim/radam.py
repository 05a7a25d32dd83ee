"""RAdam as torch has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from thalweg.optim.formula import Formula, Slot
from thalweg.optim.groups import adam_numbers, decoupled, forgotten
from thalweg.optim.optimizer import DropIn, parameters_of
from thalweg.optim.options import Extras
from thalweg.rules.radam import radam

__all__ = ["RAdam"]


class RAdam(DropIn, torch.optim.RAdam):
    """Adam that trusts its second moment only when enough gradients are in it.

    Formula: `thalweg.rules.radam.radam`.

    Args:
        params: Parameters, groups, (name, parameter) pairs, or a module.
        lr: Length of a typical step, >= 0.
        betas: Decay of the two moments, each in [0, 1).
        eps: >= 0.
        weight_decay: Weight of an L2 penalty, >= 0.
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
        >>> optimizer = RAdam([weight], lr=0.25)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> round(weight.item(), 4)
        0.75

    Source:
        Liu et al., ICLR 2020, arXiv:1908.03265; `torch.optim.RAdam`.
    """

    columns = ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay")

    def __init__(  # noqa: PLR0913 - torch's signature
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
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
            *(parameters_of(params), lr, betas, eps, weight_decay),
            decoupled_weight_decay=decoupled_weight_decay,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
        )

    @override
    def numbers(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        return adam_numbers(group)

    @override
    def choices(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        return bool(group["maximize"]), decoupled(group), forgotten(group)

    @override
    def formula(self, choices: tuple[Any, ...]) -> Formula:
        maximize, decay, forgets = choices
        return Formula(
            *(radam, _scalars, self.columns[:-1]),
            slots=(Slot("exp_avg"), Slot("exp_avg_sq")),
            maximize=maximize,
            decay=decay,
            forgets=forgets,
        )


def _scalars(group: Any, step: Any) -> Mapping[str, Any]:
    return {
        "lr": group.learning_rate,
        "beta1": group.beta1,
        "beta2": group.beta2,
        "beta1_power": group.beta1**step,
        "beta2_power": group.beta2**step,
        "global_step": step,
        "epsilon": group.epsilon,
    }
