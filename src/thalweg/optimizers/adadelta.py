"""Adadelta: steps in the unit of the variable."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from thalweg import rules
from thalweg.optimizers.declarations import Hyper, Slot
from thalweg.optimizers.optimizer import Optimizer

__all__ = ["Adadelta"]


class Adadelta(Optimizer):
    """Gradients scaled by the ratio of past steps to past gradients.

    Formula: `thalweg.rules.adadelta`.

    Args:
        learning_rate: Factor of the step, >= 0; the paper has 1. Unit 1.
        rho: Decay of both means, in [0, 1].
        epsilon: >= 0, added to both means.

    Sparse:
        ``"rows"`` moves and decays the indexed rows only; ``"keras"`` equals it.

    Example:
        >>> weight = tw.Variable([1.0])
        >>> _ = tw.optimizers.Adadelta(1.0).apply_gradients([(torch.ones(1), weight)])
        >>> weight.item() < 1.0
        True

    Source:
        Zeiler, 2012, arXiv:1212.5701; Keras 2.6, ``Adadelta``.
    """

    _positional_options = ("name",)
    _counts_from_old_weights = True
    learning_rate: Hyper = Hyper(default=0.001, low=0.0)
    rho: Hyper = Hyper(default=0.95, low=0.0, high=1.0)
    epsilon: Hyper = Hyper(default=1e-7, low=0.0, takes_none=True)
    accum_grad = Slot()
    accum_var = Slot()
    update = staticmethod(rules.adadelta)

    @override
    def scalars(self, step: Any) -> dict[str, Any]:
        del step
        return {"lr": self.learning_rate, "rho": self.rho, "epsilon": self.epsilon}
