"""RMSprop, with or without momentum, plain or centered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typing_extensions import override

from thalweg import rules
from thalweg.optimizers.declarations import Flag, Hyper, Slot
from thalweg.optimizers.optimizer import Optimizer

__all__ = ["RMSprop"]


class RMSprop(Optimizer):
    """Gradients divided by the root of their mean square.

    Formula: with momentum `thalweg.rules.rms_prop`, `thalweg.rules.centered_rms_prop`,
    where epsilon stands inside the root; without `rms_prop_without_momentum`,
    `centered_rms_prop_without_momentum` there, where it stands outside. So it is in
    Keras. torch's, with momentum `rms_prop_then_momentum` and
    `centered_rms_prop_then_momentum` there, has epsilon outside and the learning rate
    in front of the momentum; without momentum it is the same.

    Args:
        learning_rate: Length of a typical step, >= 0. Unit U.
        rho: Decay of the means, in [0, 1].
        momentum: Decay of the sum of steps, in [0, 1]. At 0 there is no such slot.
        epsilon: >= 0. Unit (L/U)² with momentum, L/U without and in torch's formula.
        centered: Whether to divide by the standard deviation.
        torch_formula: Whether to go on as `torch.optim.RMSprop` does. The slot of the
            momentum has another unit then: choose before the first step.

    Sparse:
        ``"rows"`` moves and decays the indexed rows only. ``"keras"`` equals it with
        momentum, in either formula; without, it decays the means of all rows and moves
        the indexed ones.

    Example:
        >>> weight = tw.Variable([1.0])
        >>> optimizer = tw.optimizers.RMSprop(0.1, rho=0.75)
        >>> _ = optimizer.apply_gradients([(torch.ones(1), weight)])
        >>> round(weight.item(), 4)
        0.8

    Source:
        Hinton, "Neural Networks for Machine Learning", lecture 6e, 2012; Keras 2.6,
        ``RMSprop``; `torch.optim.RMSprop`.
    """

    _positional_options = ("name",)
    _counts_from_old_weights = True
    learning_rate: Hyper = Hyper(default=0.001, low=0.0)
    rho: Hyper = Hyper(default=0.9, low=0.0, high=1.0)
    momentum: Hyper = Hyper(default=0.0, low=0.0, high=1.0)
    epsilon: Hyper = Hyper(default=1e-7, low=0.0, takes_none=True)
    centered: Flag = Flag(default=False)
    torch_formula: Flag = Flag(default=False, kw_only=True)
    rms = Slot()
    momentum_slot = Slot(name="momentum", when="has_momentum")
    mg = Slot(when="centered")

    @property
    def has_momentum(self) -> bool:
        """Whether momentum is, or may become, positive for some variable."""
        return self._settings.may_exceed_0("momentum", self._hyper["momentum"])

    @property
    def keras_sparse(self) -> str:  # type: ignore[override]
        """Without momentum Keras decays the means of all rows."""
        return "rows" if self.has_momentum else "decay"

    @override
    def rule(self) -> Callable[..., Any]:
        if not self.has_momentum:
            plain = rules.rms_prop_without_momentum
            centered = rules.centered_rms_prop_without_momentum
        elif self.torch_formula:
            plain = rules.rms_prop_then_momentum
            centered = rules.centered_rms_prop_then_momentum
        else:
            plain, centered = rules.rms_prop, rules.centered_rms_prop
        return centered if self.centered else plain

    @override
    def scalars(self, step: Any) -> dict[str, Any]:
        del step
        return {
            "lr": self.learning_rate,
            "rho": self.rho,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }
