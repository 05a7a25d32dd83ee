"""Adam, with or without AMSGrad, and AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typing_extensions import override

from thalweg import rules
from thalweg.errors import message
from thalweg.optimizers.declarations import Flag, Hyper, Slot
from thalweg.optimizers.optimizer import Optimizer

__all__ = ["Adam", "AdamW"]


class Adam(Optimizer):
    """Adaptive moment estimation, with Keras's "epsilon hat".

    Formula: `thalweg.rules.adam`, `thalweg.rules.adam_with_amsgrad`.

    Args:
        learning_rate: Length of a typical step, >= 0. Unit U.
        beta_1: Decay of the first moment, in [0, 1).
        beta_2: Decay of the second moment, in [0, 1).
        epsilon: >= 0. Unit L/U.
        amsgrad: Whether to divide by the largest second moment so far.
        torch_formula: Whether epsilon stands inside the bias correction, as in torch:
            it is multiplied by √(1 − beta_2ᵗ).

    Sparse:
        ``"rows"`` moves and decays the indexed rows only. ``"keras"`` is
        ``"exact"``: as in Keras 2.6 moments of all rows decay and all rows move.

    Example:
        >>> weight = tw.Variable([1.0])
        >>> _ = tw.optimizers.Adam(0.1).apply_gradients([(torch.ones(1), weight)])
        >>> round(weight.item(), 4)
        0.9

    Source:
        Kingma and Ba, ICLR 2015; Keras 2.6, ``Adam``; `torch.optim.Adam`.
    """

    _positional_options = ("name",)
    learning_rate: Hyper = Hyper(default=0.001, low=0.0)
    beta_1: Hyper = Hyper(default=0.9, low=0.0, below=1.0)
    beta_2: Hyper = Hyper(default=0.999, low=0.0, below=1.0)
    epsilon: Hyper = Hyper(default=1e-7, low=0.0, takes_none=True)
    amsgrad: Flag = Flag(default=False)
    torch_formula: Flag = Flag(default=False, kw_only=True)
    m = Slot()
    v = Slot()
    vhat = Slot(when="amsgrad")
    keras_sparse = "exact"

    @override
    def rule(self) -> Callable[..., Any]:
        return rules.adam_with_amsgrad if self.amsgrad else rules.adam

    @override
    def rule_flags(self) -> dict[str, bool]:
        return {} if self.amsgrad else {"use_nesterov": False}

    @override
    def scalars(self, step: Any) -> dict[str, Any]:
        return _scalars(self, step)

    @override
    def set_weights(self, weights: Any) -> None:
        """Set `weights`; a list that ends with unused ``vhat`` arrays is cut.

        Args:
            weights: As many arrays as `get_weights` gives, or, from an optimizer
                with ``amsgrad``, with a third slot more for each variable.
        """
        variables = (len(self._weights) - 1) // 2
        if not self.amsgrad and len(weights) == 3 * variables + 1:
            weights = weights[: len(self._weights)]
        super().set_weights(weights)


class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Formula: `thalweg.rules.decoupled_weight_decay`, then `thalweg.rules.adam` or
    `thalweg.rules.adam_with_amsgrad`, in one pass.

    Args:
        learning_rate: Length of a typical step, >= 0. Unit U.
        weight_decay: Share of the variable that a step of learning rate 1 removes,
            >= 0. Unit 1/U.
        beta_1: Decay of the first moment, in [0, 1).
        beta_2: Decay of the second moment, in [0, 1).
        epsilon: >= 0. Unit L/U.
        amsgrad: Whether to divide by the largest second moment so far.
        torch_formula: Whether epsilon stands inside the bias correction, as in torch:
            it is multiplied by √(1 − beta_2ᵗ).

    Sparse:
        ``"rows"`` moves and decays the indexed rows only. ``"keras"`` is
        ``"exact"``.

    Raises:
        ValueError: If the weight decay is None, which is what `Adam` is for.

    Example:
        >>> weight = tw.Variable([1.0])
        >>> optimizer = tw.optimizers.AdamW(0.5, weight_decay=0.5)
        >>> _ = optimizer.apply_gradients([(torch.ones(1), weight)])
        >>> round(weight.item(), 4)
        0.25

    Source:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019;
        Keras 3, ``AdamW``; `torch.optim.AdamW`.
    """

    learning_rate: Hyper = Hyper(default=0.001, low=0.0)
    weight_decay: Hyper = Hyper(default=0.004, low=0.0)  # pyright: ignore[reportIncompatibleVariableOverride] - a field here
    beta_1: Hyper = Hyper(default=0.9, low=0.0, below=1.0)
    beta_2: Hyper = Hyper(default=0.999, low=0.0, below=1.0)
    epsilon: Hyper = Hyper(default=1e-7, low=0.0, takes_none=True)
    amsgrad: Flag = Flag(default=False)
    torch_formula: Flag = Flag(default=False, kw_only=True)
    m = Slot()
    v = Slot()
    vhat = Slot(when="amsgrad")
    keras_sparse = "exact"

    @override
    def _construct(
        self,
        cls: type,
        name: str | None,
        options: dict[str, Any],
        values: dict[str, Any],
    ) -> None:
        if values["weight_decay"] is None:
            raise ValueError(
                message("AdamW: weight_decay", "a number", "None", "Use Adam instead.")
            )
        super()._construct(cls, name, options, values)

    @override
    def rule(self) -> Callable[..., Any]:
        return rules.adam_with_amsgrad if self.amsgrad else rules.adam

    @override
    def rule_flags(self) -> dict[str, bool]:
        return {} if self.amsgrad else {"use_nesterov": False}

    @override
    def scalars(self, step: Any) -> dict[str, Any]:
        return _scalars(self, step)


def _scalars(optimizer: Any, step: Any) -> dict[str, Any]:
    """The scalars of both rules of Adam from Keras's hyperparameters."""
    second, epsilon = optimizer.beta_2**step, optimizer.epsilon
    if optimizer.torch_formula:
        epsilon = epsilon * (1 - second) ** 0.5
    return {
        "beta1_power": optimizer.beta_1**step,
        "beta2_power": second,
        "lr": optimizer.learning_rate,
        "beta1": optimizer.beta_1,
        "beta2": optimizer.beta_2,
        "epsilon": epsilon,
    }
