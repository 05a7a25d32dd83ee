"""Lion, in the style of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor
from typing_extensions import override

from thalweg import rules
from thalweg.optim.formula import Formula, Slot
from thalweg.optim.groups import check_not_negative, decoupled
from thalweg.optim.optimizer import DropIn, parameters_of
from thalweg.optim.options import Extras

__all__ = ["Lion"]


class Lion(DropIn):
    """Steps of one length, in the direction of the sign of a mean.

    Formula: `thalweg.rules.lion`, after `thalweg.rules.decoupled_weight_decay`.

    Args:
        params: Parameters, groups, (name, parameter) pairs, or a module.
        lr: Length of every step, >= 0.
        betas: Weight of the mean in the direction, and its decay, each in [0, 1).
        weight_decay: Share of a parameter that a step of rate 1 removes, >= 0.
        maximize: Whether to climb.
        **extras: See `Extras`.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = Lion([weight], lr=0.25)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> round(weight.item(), 4)
        0.75

    Source:
        Chen et al., NeurIPS 2023, arXiv:2302.06675.
    """

    columns = ("learning_rate", "beta1", "beta2", "weight_decay")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        self._take(extras)
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        check_not_negative(defaults)
        super().__init__(parameters_of(params), {**defaults, "maximize": maximize})

    @override
    def numbers(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        rate, decay = float(group["lr"]), float(group["weight_decay"])
        return rate, float(beta1), float(beta2), decay

    @override
    def choices(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        return bool(group["maximize"]), decoupled(group)

    @override
    def formula(self, choices: tuple[Any, ...]) -> Formula:
        maximize, decay = choices
        return Formula(
            *(rules.lion, _scalars, self.columns[:-1]),
            slots=(Slot("exp_avg"),),
            maximize=maximize,
            decay=decay,
        )


def _scalars(group: Any, step: Any) -> Mapping[str, Any]:
    del step
    return {"lr": group.learning_rate, "beta1": group.beta1, "beta2": group.beta2}
