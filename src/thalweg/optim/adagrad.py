"""Adagrad as torch has it, and its form with one number a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from thalweg import rules
from thalweg.optim.formula import Formula, Slot
from thalweg.optim.groups import check_not_negative, coupled
from thalweg.optim.optimizer import DropIn, parameters_of
from thalweg.optim.options import Extras

__all__ = ["Adagrad", "RowWiseAdagrad"]


class _Adagrad(DropIn):
    """What both forms have in common."""

    columns = ("learning_rate", "lr_decay", "epsilon", "weight_decay")

    @override
    def numbers(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        return (
            float(group["lr"]),
            float(group["lr_decay"]),
            float(group["eps"]),
            float(group["weight_decay"]),
        )

    @override
    def choices(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        return bool(group["maximize"]), coupled(group)


class Adagrad(_Adagrad, torch.optim.Adagrad):
    """Steps that shrink with the sum of squared gradients.

    Formula: `thalweg.rules.adagrad_v2`.

    Args:
        params: Parameters, groups, (name, parameter) pairs, or a module.
        lr: Length of the first step, >= 0.
        lr_decay: How fast the rate falls with the step, >= 0.
        weight_decay: Weight of an L2 penalty, >= 0.
        initial_accumulator_value: First value of the sum, >= 0.
        eps: >= 0.
        foreach: Accepted; there is one way to run, which is faster.
        maximize: Whether to climb.
        differentiable: Must be False.
        fused: Accepted, as ``foreach``.
        **extras: See `Extras`.

    Raises:
        ValueError: If a number is out of range.
        NotImplementedError: If ``differentiable``.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = Adagrad([weight], lr=0.5, initial_accumulator_value=3.0)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> round(weight.item(), 4)
        0.75

    Source:
        Duchi, Hazan and Singer, JMLR 12, 2011; `torch.optim.Adagrad`.
    """

    def __init__(  # noqa: PLR0913 - torch's signature
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        self._take(extras)
        super().__init__(
            *(parameters_of(params), lr, lr_decay, weight_decay),
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            foreach=foreach,
            maximize=maximize,
            differentiable=differentiable,
            fused=fused,
        )
        self._convert_state()

    def _convert_state(self) -> None:
        """Give sums and counts that torch made the dtype they shall have."""
        for parameter, state in self.state.items():
            dtype = self._options.dtype_of("sum", parameter.dtype)
            state["sum"] = state["sum"].to(dtype)
            state["step"] = state["step"].double()

    @override
    def formula(self, choices: tuple[Any, ...]) -> Formula:
        maximize, decay = choices
        return Formula(
            *(rules.adagrad_v2, _scalars, self.columns[:-1]),
            slots=(Slot("sum", "initial_accumulator_value"),),
            rule_flags=(("update_slots", True),),
            maximize=maximize,
            decay=decay,
        )


class RowWiseAdagrad(_Adagrad):
    """Adagrad with one number for each row, for large embedding tables.

    Formula: `thalweg.rules.row_wise_adagrad`. For a vector a row is an element.

    Args:
        params: Parameters, groups, (name, parameter) pairs, or a module.
        lr: Length of the first step, >= 0.
        lr_decay: How fast the rate falls with the step, >= 0.
        weight_decay: Weight of an L2 penalty, >= 0.
        initial_accumulator_value: First value of the sum, >= 0.
        eps: >= 0.
        maximize: Whether to climb.
        **extras: See `Extras`.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> table = torch.nn.Parameter(torch.ones(1, 2))
        >>> optimizer = RowWiseAdagrad([table], lr=0.5, initial_accumulator_value=2.0)
        >>> table.grad = torch.tensor([[2.0, 0.0]])
        >>> optimizer.step()
        >>> table.tolist()
        [[0.5, 1.0]]

    Source:
        Gupta, Raghuraman, et al., 2020, arXiv:2006.05623; FBGEMM, row-wise Adagrad.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        self._take(extras)
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
        }
        check_not_negative(defaults)
        super().__init__(parameters_of(params), {**defaults, "maximize": maximize})

    @override
    def formula(self, choices: tuple[Any, ...]) -> Formula:
        maximize, decay = choices
        return Formula(
            *(rules.row_wise_adagrad, _scalars, self.columns[:-1]),
            slots=(Slot("sum", "initial_accumulator_value", "row"),),
            maximize=maximize,
            decay=decay,
        )

    @override
    def shape_flags(self, shape: torch.Size) -> tuple[tuple[str, bool], ...]:
        return ("is_vector", len(shape) < 2), ("is_matrix", len(shape) == 2)


def _scalars(group: Any, step: Any) -> Mapping[str, Any]:
    rate = group.learning_rate / (1 + (step - 1) * group.lr_decay)
    return {"lr": rate, "epsilon": group.epsilon}
