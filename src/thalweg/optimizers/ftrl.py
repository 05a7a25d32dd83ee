"""Ftrl: follow the regularized leader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from typing_extensions import override

from thalweg import rules
from thalweg.optimizers.declarations import Hyper, Slot
from thalweg.optimizers.optimizer import Optimizer

__all__ = ["Ftrl"]

_L2_SHRINKAGE = "l2_shrinkage_regularization_strength"


class Ftrl(Optimizer):
    """Online learning with solutions that are exactly zero in places.

    Formula: `thalweg.rules.ftrl`, and `thalweg.rules.ftrl_v2` with shrinkage. As in
    Keras, ``lr=`` is accepted and ignored, and beta adds beta / (2 · learning_rate) to
    the l2 regularization.

    Args:
        learning_rate: > 0. Unit U for a power of −1/2.
        learning_rate_power: How fast steps shrink, <= 0.
        initial_accumulator_value: First value of the accumulator, >= 0. Unit (L/U)².
        l1_regularization_strength: Below this sum of gradients a variable is zero,
            >= 0. Unit L/U.
        l2_regularization_strength: Pull towards zero in proportion, >= 0. Unit L/U².
        l2_shrinkage_regularization_strength: Penalty on the size, >= 0. Unit L/U².
        beta: >= 0. Unit L/U.

    Sparse:
        ``"rows"`` touches the indexed rows only; ``"keras"`` equals it.

    Example:
        >>> weight = tw.Variable([0.0])
        >>> optimizer = tw.optimizers.Ftrl(0.5, initial_accumulator_value=0.0)
        >>> _ = optimizer.apply_gradients([(torch.ones(1), weight)])
        >>> weight.item()
        -0.5

    Source:
        McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013; Keras
        2.6, ``Ftrl``.
    """

    _positional_options = ("name",)
    learning_rate: Hyper = Hyper(default=0.001, low=0.0)
    learning_rate_power: Hyper = Hyper(default=-0.5, high=0.0)
    initial_accumulator_value: Hyper = Hyper(default=0.1, low=0.0)
    l1_regularization_strength: Hyper = Hyper(default=0.0, low=0.0)
    l2_regularization_strength: Hyper = Hyper(default=0.0, low=0.0)
    l2_shrinkage_regularization_strength: Hyper = Hyper(
        default=0.0, low=0.0, kw_only=True
    )
    beta: Hyper = Hyper(default=0.0, low=0.0, kw_only=True)
    accumulator = Slot(initial="initial_accumulator_value")
    linear = Slot()

    @override
    def _construct(
        self,
        cls: type,
        name: str | None,
        options: dict[str, Any],
        values: dict[str, Any],
    ) -> None:
        learning_rate = values["learning_rate"]
        super()._construct(cls, name, options, values)
        self.learning_rate = learning_rate

    def _is_always(self, name: str, number: float) -> bool:
        """Whether a hyperparameter has one value for every step and variable."""
        value = self._hyper[name]
        if callable(value) or name in self._table.names:
            return False
        return float(value) == number

    @override
    def rule(self) -> Callable[..., Any]:
        return rules.ftrl if self._is_always(_L2_SHRINKAGE, 0.0) else rules.ftrl_v2

    @override
    def rule_flags(self) -> dict[str, bool]:
        return {
            "is_square_root": self._is_always("learning_rate_power", -0.5),
            "multiply_linear_by_lr": False,
        }

    @override
    def scalars(self, step: Any) -> dict[str, Any]:
        del step
        extra_l2 = self.beta / (2 * self.learning_rate)
        return {
            "lr": self.learning_rate,
            "l1": self.l1_regularization_strength,
            "l2": self.l2_regularization_strength + extra_l2,
            "l2_shrinkage": self.l2_shrinkage_regularization_strength,
            "lr_power": self.learning_rate_power,
        }

    @override
    def _create_slots(self, var_list: Sequence[torch.Tensor]) -> None:
        for variable in var_list:  # both slots of one before those of the next
            super()._create_slots([variable])
