"""LAMB: steps as long as the variable says."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from thalweg import rules
from thalweg.optimizers.declarations import Hyper, Slot
from thalweg.optimizers.optimizer import Optimizer

__all__ = ["Lamb"]


class Lamb(Optimizer):
    """Adam's direction, scaled to the norm of the whole variable.

    Formula: `thalweg.rules.lamb`, after `thalweg.rules.decoupled_weight_decay` where
    ``weight_decay`` is given.

    Args:
        learning_rate: Length of a step as a share of the variable's norm, >= 0.
        beta_1: Decay of the first moment, in [0, 1).
        beta_2: Decay of the second moment, in [0, 1).
        epsilon: >= 0, inside the bias correction. Unit L/U.
        weight_decay: Decoupled decay, >= 0, or None for none. Unit 1.

    Sparse:
        Always ``"exact"``: the norms need every row, so every row moves.

    Example:
        >>> weight = tw.Variable([2.0, 2.0])
        >>> _ = tw.optimizers.Lamb(0.25).apply_gradients([(torch.ones(2), weight)])
        >>> [round(x, 4) for x in weight.tolist()]
        [1.5, 1.5]

    Source:
        You et al., ICLR 2020, arXiv:1904.00962; Keras 3, ``Lamb``.
    """

    _positional_options = ("weight_decay",)
    learning_rate: Hyper = Hyper(default=0.001, low=0.0)
    beta_1: Hyper = Hyper(default=0.9, low=0.0, below=1.0)
    beta_2: Hyper = Hyper(default=0.999, low=0.0, below=1.0)
    epsilon: Hyper = Hyper(default=1e-7, low=0.0)
    m = Slot()
    v = Slot()
    keras_sparse = "exact"
    update = staticmethod(rules.lamb)

    @override
    def scalars(self, step: Any) -> dict[str, Any]:
        return {
            "beta1_power": self.beta_1**step,
            "beta2_power": self.beta_2**step,
            "lr": self.learning_rate,
            "beta1": self.beta_1,
            "beta2": self.beta_2,
            "epsilon": self.epsilon,
        }
