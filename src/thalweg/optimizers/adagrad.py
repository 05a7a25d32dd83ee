"""Adagrad, with an accumulator for each element or for each row."""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import override

from thalweg import rules
from thalweg.optimizers.declarations import Hyper, Slot
from thalweg.optimizers.optimizer import Optimizer

__all__ = ["Adagrad", "RowWiseAdagrad"]


class Adagrad(Optimizer):
    """Steps that shrink with the sum of squared gradients.

    Formula: `thalweg.rules.adagrad_v2`.

    Args:
        learning_rate: Length of the first step, >= 0. Unit U.
        initial_accumulator_value: First value of the accumulator, >= 0. Unit (L/U)².
        epsilon: >= 0. Unit L/U.

    Sparse:
        All three policies agree: a zero gradient changes nothing.

    Example:
        >>> weight = tw.Variable([1.0])
        >>> optimizer = tw.optimizers.Adagrad(0.5, initial_accumulator_value=3.0)
        >>> _ = optimizer.apply_gradients([(torch.ones(1), weight)])
        >>> round(weight.item(), 4)
        0.75

    Source:
        Duchi, Hazan and Singer, JMLR 12, 2011; Keras 2.6, ``Adagrad``.
    """

    _positional_options = ("name",)
    _counts_from_old_weights = True
    learning_rate: Hyper = Hyper(default=0.001, low=0.0)
    initial_accumulator_value: Hyper = Hyper(default=0.1, low=0.0)
    epsilon: Hyper = Hyper(default=1e-7, low=0.0, takes_none=True)
    accumulator = Slot(initial="initial_accumulator_value")
    update = staticmethod(rules.adagrad_v2)

    @override
    def rule_flags(self) -> dict[str, bool]:
        return {"update_slots": True}

    @override
    def scalars(self, step: Any) -> dict[str, Any]:
        del step
        return {"lr": self.learning_rate, "epsilon": self.epsilon}


class RowWiseAdagrad(Optimizer):
    """Adagrad with one accumulator for each row, for large embedding tables.

    Formula: `thalweg.rules.row_wise_adagrad`. The slot has one number for each entry of
    the first axis. For a vector a row is an element, which is `Adagrad`.

    Args:
        learning_rate: Length of the first step, >= 0. Unit U.
        initial_accumulator_value: First value of the accumulator, >= 0. Unit (L/U)².
        epsilon: >= 0. Unit L/U.

    Sparse:
        All three policies agree: a zero gradient changes nothing.

    Example:
        >>> table = tw.Variable([[1.0, 1.0]])
        >>> optimizer = tw.optimizers.RowWiseAdagrad(0.5, initial_accumulator_value=2.0)
        >>> _ = optimizer.apply_gradients([(torch.tensor([[2.0, 0.0]]), table)])
        >>> [round(x, 4) for x in table.flatten().tolist()]
        [0.5, 1.0]

    Source:
        Gupta, Raghuraman, et al., 2020, arXiv:2006.05623; FBGEMM, row-wise Adagrad.
    """

    learning_rate: Hyper = Hyper(default=0.001, low=0.0)
    initial_accumulator_value: Hyper = Hyper(default=0.0, low=0.0)
    epsilon: Hyper = Hyper(default=1e-7, low=0.0, takes_none=True)
    accumulator = Slot(shape="row", initial="initial_accumulator_value")
    update = staticmethod(rules.row_wise_adagrad)

    @override
    def rule_flags(self) -> dict[str, bool]:
        return {}

    @override
    def shape_flags(self, shape: torch.Size) -> dict[str, bool]:
        return {"is_vector": len(shape) < 2, "is_matrix": len(shape) == 2}

    @override
    def scalars(self, step: Any) -> dict[str, Any]:
        del step
        return {"lr": self.learning_rate, "epsilon": self.epsilon}
