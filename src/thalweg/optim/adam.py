"""Adam and AdamW as torch has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from thalweg import rules
from thalweg.optim.formula import Formula, Slot
from thalweg.optim.groups import adam_numbers, decoupled, forgotten
from thalweg.optim.optimizer import DropIn, parameters_of
from thalweg.optim.options import Extras

__all__ = ["Adam", "AdamW", "plain_adam_scalars"]

_MOMENTS = (Slot("exp_avg"), Slot("exp_avg_sq"))
_LARGEST = Slot("max_exp_avg_sq")


class _Adam(DropIn):
    """What Adam and AdamW have in common."""

    columns = ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay")

    @override
    def numbers(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        return adam_numbers(group)

    @override
    def choices(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        maximize, decay = bool(group["maximize"]), decoupled(group)
        return bool(group["amsgrad"]), maximize, decay, forgotten(group)

    @override
    def formula(self, choices: tuple[Any, ...]) -> Formula:
        amsgrad, maximize, decay, forgets = choices
        return Formula(
            rule=rules.adam_with_amsgrad if amsgrad else rules.adam,
            scalars_of=_scalars,
            columns=self.columns[:-1],
            slots=(*_MOMENTS, _LARGEST) if amsgrad else _MOMENTS,
            rule_flags=() if amsgrad else (("use_nesterov", False),),
            maximize=maximize,
            decay=decay,
            forgets=(*forgets, False) if amsgrad else forgets,
        )


class Adam(_Adam, torch.optim.Adam):
    """Adaptive moment estimation with torch's epsilon.

    Formula: `thalweg.rules.adam` or `thalweg.rules.adam_with_amsgrad`, whose epsilon
    stands outside the bias correction; torch's stands inside, and is
    eps · √(1 − β₂ᵗ) there.

    Args:
        params: Parameters, groups, (name, parameter) pairs, or a module.
        lr: Length of a typical step, >= 0.
        betas: Decay of the two moments, each in [0, 1).
        eps: >= 0.
        weight_decay: Weight of an L2 penalty, >= 0.
        amsgrad: Whether to divide by the largest second moment so far.
        foreach: Accepted; there is one way to run, which is faster.
        maximize: Whether to climb.
        capturable: Whether a GPU counts the steps, so that one can be captured.
        differentiable: Must be False.
        fused: Accepted, as ``foreach``.
        decoupled_weight_decay: Whether weight decay shrinks the parameter instead.
        **extras: See `Extras`.

    Raises:
        ValueError: If a number is out of range.
        NotImplementedError: If ``differentiable``.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = Adam([weight], lr=0.1)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> round(weight.item(), 4)
        0.9

    Source:
        Kingma and Ba, ICLR 2015; `torch.optim.Adam`.
    """

    def __init__(  # noqa: PLR0913 - torch's signature
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        self._take(extras)
        super().__init__(
            *(parameters_of(params), lr, betas, eps, weight_decay, amsgrad),
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )


class AdamW(_Adam, torch.optim.AdamW):
    """Adam with decoupled weight decay.

    Formula: `thalweg.rules.decoupled_weight_decay`, then that of `Adam`, in one pass.

    Args:
        params: Parameters, groups, (name, parameter) pairs, or a module.
        lr: Length of a typical step, >= 0.
        betas: Decay of the two moments, each in [0, 1).
        eps: >= 0.
        weight_decay: Share of a parameter that a step of rate 1 removes, >= 0.
        amsgrad: Whether to divide by the largest second moment so far.
        maximize: Whether to climb.
        foreach: Accepted; there is one way to run, which is faster.
        capturable: Whether a GPU counts the steps, so that one can be captured.
        differentiable: Must be False.
        fused: Accepted, as ``foreach``.
        **extras: See `Extras`.

    Raises:
        ValueError: If a number is out of range.
        NotImplementedError: If ``differentiable``.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = AdamW([weight], lr=0.5, weight_decay=0.5)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> round(weight.item(), 4)
        0.25

    Source:
        Loshchilov and Hutter, ICLR 2019; `torch.optim.AdamW`.
    """

    def __init__(  # noqa: PLR0913 - torch's signature
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        self._take(extras)
        super().__init__(
            *(parameters_of(params), lr, betas, eps, weight_decay, amsgrad),
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )


def plain_adam_scalars(group: Any, step: Any) -> Mapping[str, Any]:
    """The scalars of a rule of Adam, by the names of the group's numbers.

    Args:
        group: The group's numbers as attributes.
        step: Number of the step, counted from 1.
    """
    return {
        "beta1_power": group.beta1**step,
        "beta2_power": group.beta2**step,
        "lr": group.learning_rate,
        "beta1": group.beta1,
        "beta2": group.beta2,
        "epsilon": group.epsilon,
    }


def _scalars(group: Any, step: Any) -> Mapping[str, Any]:
    """The same, with torch's epsilon, which stands inside the bias correction."""
    scalars = plain_adam_scalars(group, step)
    root = (1 - scalars["beta2_power"]) ** 0.5
    return {**scalars, "epsilon": group.epsilon * root}
