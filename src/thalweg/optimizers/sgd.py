"""Stochastic gradient descent, with or without momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typing_extensions import override

from thalweg import rules
from thalweg.optimizers.declarations import Flag, Hyper, Slot
from thalweg.optimizers.optimizer import Optimizer

__all__ = ["SGD"]


class SGD(Optimizer):
    """Gradient descent; with momentum, Keras's form with the rate inside.

    Formula: `thalweg.rules.gradient_descent`, `thalweg.rules.keras_momentum`; in
    torch's form the rate stands in front, `thalweg.rules.momentum`.

    Args:
        learning_rate: Step length for a unit gradient, >= 0. Unit U²/L.
        momentum: In [0, 1]. At 0 there is no slot.
        nesterov: Whether to look one step ahead.
        torch_formula: Whether a change of the rate acts on the whole momentum, as in
            torch. Its slot has another unit then: choose before the first step.

    Sparse:
        ``"rows"`` sums duplicates and moves the indexed rows. Without momentum all
        three policies agree up to rounding, where nothing decays and no averages are
        kept; with it ``"keras"`` equals ``"rows"``, in either form. Decay and averages
        act once on a row, however often it is indexed.

    Example:
        >>> weight = tw.Variable([1.0])
        >>> _ = tw.optimizers.SGD(0.5).apply_gradients([(torch.ones(1), weight)])
        >>> weight.numpy().tolist()
        [0.5]

    Source:
        Keras 2.6, ``SGD``; `torch.optim.SGD`.
    """

    _positional_options = ("name",)
    learning_rate: Hyper = Hyper(default=0.01, low=0.0)
    momentum: Hyper = Hyper(default=0.0, low=0.0, high=1.0)
    nesterov: Flag = Flag(default=False)
    torch_formula: Flag = Flag(default=False, kw_only=True)
    momentum_slot = Slot(name="momentum", when="has_momentum")

    @property
    def has_momentum(self) -> bool:
        """Whether momentum is, or may become, positive for some variable."""
        return self._settings.may_exceed_0("momentum", self._hyper["momentum"])

    @property
    def keras_sparse(self) -> str:  # type: ignore[override]
        """Without momentum Keras adds one duplicate after the other."""
        return "rows" if self.has_momentum else "sequence"

    @override
    def rule(self) -> Callable[..., Any]:
        if not self.has_momentum:
            return rules.gradient_descent
        return rules.momentum if self.torch_formula else rules.keras_momentum

    @override
    def rule_flags(self) -> dict[str, bool]:
        return {"use_nesterov": self.nesterov} if self.has_momentum else {}

    @override
    def scalars(self, step: Any) -> dict[str, Any]:
        rate = self.learning_rate
        return {"alpha": rate, "lr": rate, "momentum": self.momentum}
