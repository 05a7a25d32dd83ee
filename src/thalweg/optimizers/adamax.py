"""Adamax: Adam with a decaying maximum in place of the second moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typing_extensions import override

from thalweg import rules
from thalweg.optimizers.declarations import Flag, Hyper, Slot
from thalweg.optimizers.optimizer import Optimizer

__all__ = ["Adamax"]


class Adamax(Optimizer):
    """Adam whose steps are bounded by the largest recent gradient.

    Formula: `thalweg.rules.ada_max`, or torch's, `thalweg.rules.ada_max_with_floor`,
    where epsilon is a part of the maximum and decays with it.

    Args:
        learning_rate: Length of the longest step, >= 0. Unit U.
        beta_1: Decay of the first moment, in [0, 1).
        beta_2: Decay of the maximum, in [0, 1).
        epsilon: >= 0. Unit L/U.
        torch_formula: Whether to go on as `torch.optim.Adamax` does.

    Sparse:
        ``"rows"`` moves and decays the indexed rows only; ``"keras"`` equals it, with
        torch's formula, too.

    Example:
        >>> weight = tw.Variable([1.0])
        >>> _ = tw.optimizers.Adamax(0.1).apply_gradients([(torch.ones(1), weight)])
        >>> round(weight.item(), 4)
        0.9

    Source:
        Kingma and Ba, ICLR 2015, section 7.1; Keras 2.6, ``Adamax``;
        `torch.optim.Adamax`.
    """

    _positional_options = ("name",)
    learning_rate: Hyper = Hyper(default=0.001, low=0.0)
    beta_1: Hyper = Hyper(default=0.9, low=0.0, below=1.0)
    beta_2: Hyper = Hyper(default=0.999, low=0.0, below=1.0)
    epsilon: Hyper = Hyper(default=1e-7, low=0.0, takes_none=True)
    torch_formula: Flag = Flag(default=False, kw_only=True)
    m = Slot()
    v = Slot()

    @override
    def rule(self) -> Callable[..., Any]:
        return rules.ada_max_with_floor if self.torch_formula else rules.ada_max

    @override
    def scalars(self, step: Any) -> dict[str, Any]:
        return {
            "beta1_power": self.beta_1**step,
            "lr": self.learning_rate,
            "beta1": self.beta_1,
            "beta2": self.beta_2,
            "epsilon": self.epsilon,
        }
