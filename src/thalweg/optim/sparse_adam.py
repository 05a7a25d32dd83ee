"""SparseAdam as torch has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from thalweg import rules
from thalweg.optim.adam import plain_adam_scalars
from thalweg.optim.formula import Formula, Slot
from thalweg.optim.optimizer import DropIn, parameters_of
from thalweg.optim.options import Extras

__all__ = ["SparseAdam"]


class SparseAdam(DropIn, torch.optim.SparseAdam):
    """Adam for the rows that a sparse gradient names.

    Formula: `thalweg.rules.adam`, whose epsilon is the one meant here. Dense gradients
    are taken, too; they name all rows.

    Args:
        params: Parameters, groups, (name, parameter) pairs, or a module.
        lr: Length of a typical step, > 0.
        betas: Decay of the two moments, each in [0, 1).
        eps: > 0, outside the bias correction.
        maximize: Whether to climb.
        **extras: See `Extras`.

    Raises:
        ValueError: If a number is out of range, or a parameter is sparse or complex.

    Example:
        >>> table = torch.nn.Embedding(3, 1, sparse=True)
        >>> _ = torch.nn.init.ones_(table.weight)
        >>> optimizer = SparseAdam(table.parameters(), lr=0.25)
        >>> table(torch.tensor([1])).sum().backward()
        >>> optimizer.step()
        >>> [round(x, 4) for x in table.weight.flatten().tolist()]
        [1.0, 0.75, 1.0]

    Source:
        Kingma and Ba, ICLR 2015; `torch.optim.SparseAdam`.
    """

    columns = ("learning_rate", "beta1", "beta2", "epsilon")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        self._take(extras)
        super().__init__(parameters_of(params), lr, betas, eps, maximize)

    @override
    def numbers(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        return float(group["lr"]), float(beta1), float(beta2), float(group["eps"])

    @override
    def choices(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        return (bool(group.get("maximize", False)),)

    @override
    def formula(self, choices: tuple[Any, ...]) -> Formula:
        return Formula(
            *(rules.adam, plain_adam_scalars, self.columns),
            slots=(Slot("exp_avg"), Slot("exp_avg_sq")),
            rule_flags=(("use_nesterov", False),),
            maximize=choices[0],
        )
