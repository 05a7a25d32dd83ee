"""Rprop as torch has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from thalweg.optim.formula import Formula, Slot
from thalweg.optim.optimizer import DropIn, parameters_of
from thalweg.optim.options import Extras
from thalweg.rules.rprop import rprop

__all__ = ["Rprop"]


class Rprop(DropIn, torch.optim.Rprop):
    """Every element has a step length of its own, led by signs alone.

    Formula: `thalweg.rules.rprop.rprop`.

    Args:
        params: Parameters, groups, (name, parameter) pairs, or a module.
        lr: Length of the first step, >= 0.
        etas: Factors of the length after a turn and without one.
        step_sizes: Bounds of the length.
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
        >>> optimizer = Rprop([weight], lr=0.25)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> round(weight.item(), 4)
        0.75

    Source:
        Riedmiller and Braun, ICNN 1993; `torch.optim.Rprop`.
    """

    columns = ("shrink", "grow", "smallest", "largest")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        self._take(extras)
        super().__init__(
            *(parameters_of(params), lr, etas, step_sizes),
            capturable=capturable,
            foreach=foreach,
            maximize=maximize,
            differentiable=differentiable,
        )

    @override
    def numbers(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        return tuple(map(float, (*group["etas"], *group["step_sizes"])))

    @override
    def choices(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        return (bool(group["maximize"]),)

    @override
    def formula(self, choices: tuple[Any, ...]) -> Formula:
        return Formula(
            *(rprop, _scalars, self.columns),
            slots=(Slot("prev"), Slot("step_size", "lr")),
            maximize=choices[0],
        )


def _scalars(group: Any, step: Any) -> Mapping[str, Any]:
    del step
    return {
        "shrink": group.shrink,
        "grow": group.grow,
        "smallest": group.smallest,
        "largest": group.largest,
    }
