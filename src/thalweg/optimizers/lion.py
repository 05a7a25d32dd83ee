"""Lion: steps of one length."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from thalweg import rules
from thalweg.optimizers.declarations import Hyper, Slot
from thalweg.optimizers.optimizer import Optimizer

__all__ = ["Lion"]


class Lion(Optimizer):
    """Steps by the sign of a mix of momentum and gradient.

    Formula: `thalweg.rules.lion`, after `thalweg.rules.decoupled_weight_decay` where
    ``weight_decay`` is given.

    Args:
        learning_rate: Length of every step, >= 0. Unit U.
        beta_1: Weight of the momentum in the direction, in (0, 1): at 0 it would be
            the sign of the gradient alone.
        beta_2: Decay of the momentum, in [0, 1).
        weight_decay: Decoupled decay, >= 0, or None for none. Unit 1.

    Sparse:
        ``"rows"`` moves and decays the indexed rows only; ``"keras"`` equals it.

    Example:
        >>> weight = tw.Variable([1.0])
        >>> _ = tw.optimizers.Lion(0.25).apply_gradients([(torch.ones(1), weight)])
        >>> weight.item()
        0.75

    Source:
        Chen et al., NeurIPS 2023, arXiv:2302.06675; Keras 3, ``Lion``.
    """

    _positional_options = ("weight_decay",)
    learning_rate: Hyper = Hyper(default=0.001, low=0.0)
    beta_1: Hyper = Hyper(default=0.9, above=0.0, below=1.0)
    beta_2: Hyper = Hyper(default=0.99, low=0.0, below=1.0)
    m = Slot()
    update = staticmethod(rules.lion)

    @override
    def scalars(self, step: Any) -> dict[str, Any]:
        del step
        return {"lr": self.learning_rate, "beta1": self.beta_1, "beta2": self.beta_2}
