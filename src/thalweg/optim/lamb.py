"""LAMB, in the style of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor
from typing_extensions import override

from thalweg import rules
from thalweg.optim.adam import plain_adam_scalars
from thalweg.optim.formula import Formula, Slot
from thalweg.optim.groups import adam_numbers, check_not_negative, decoupled, forgotten
from thalweg.optim.optimizer import DropIn, parameters_of
from thalweg.optim.options import Extras

__all__ = ["LAMB"]


class LAMB(DropIn):
    """Adam's direction, scaled to the norm of the whole parameter.

    Formula: `thalweg.rules.lamb`, after `thalweg.rules.decoupled_weight_decay`. The
    norms need every row of the whole parameter: sparse gradients are taken as dense,
    and the ranks of a sharded one exchange two numbers for each parameter in a step.

    Args:
        params: Parameters, groups, (name, parameter) pairs, or a module.
        lr: Length of a step as a share of the parameter's norm, >= 0.
        betas: Decay of the two moments, each in [0, 1).
        eps: >= 0, inside the bias correction.
        weight_decay: Share of a parameter that a step of rate 1 removes, >= 0.
        maximize: Whether to climb.
        **extras: See `Extras`.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.full((2,), 2.0))
        >>> optimizer = LAMB([weight], lr=0.25)
        >>> weight.grad = torch.ones(2)
        >>> optimizer.step()
        >>> [round(x, 4) for x in weight.tolist()]
        [1.5, 1.5]

    Source:
        You et al., ICLR 2020, arXiv:1904.00962; Keras 3, ``Lamb``.
    """

    columns = ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay")
    needs_all_rows = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        self._take(extras)
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        check_not_negative(numbers)
        super().__init__(parameters_of(params), {**numbers, "maximize": maximize})

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
            *(rules.lamb, plain_adam_scalars, self.columns[:-1]),
            slots=(Slot("exp_avg"), Slot("exp_avg_sq")),
            maximize=maximize,
            decay=decay,
            forgets=forgets,
        )
