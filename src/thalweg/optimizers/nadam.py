"""Nadam: Adam with Nesterov momentum that warms up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from thalweg import rules
from thalweg.errors import message
from thalweg.optimizers.declarations import Hyper, Slot, State
from thalweg.optimizers.optimizer import Optimizer
from thalweg.schedules import LearningRateSchedule

__all__ = ["Nadam"]

_KERAS_3 = "loss_scale_factor"
"""What every configuration of Keras 3 has, and no other."""


class Nadam(Optimizer):
    """Adam that looks one step ahead, with a momentum that grows over time.

    Formula: `thalweg.rules.nadam`, where the momentum of step t is
    beta_1 · (1 − 0.96^(schedule_decay · t) / 2). The weight ``momentum_cache`` holds
    the product of the momenta so far. As in Keras, ``decay=`` is accepted and ignored,
    and ``schedule_decay`` is called ``decay`` in the configuration. One of Keras 3 has
    none: there it is 1.

    Args:
        learning_rate: Length of a typical step, >= 0; not a schedule. Unit U.
        beta_1: Momentum in the end, and decay of the first moment, in [0, 1).
        beta_2: Decay of the second moment, in [0, 1).
        epsilon: >= 0. Unit L/U.
        schedule_decay: How fast the momentum grows, >= 0. Unit 1.

    Sparse:
        ``"rows"`` moves and decays the indexed rows only. ``"keras"`` decays the
        moments of all rows and moves the indexed ones.

    Raises:
        ValueError: If the learning rate is a schedule.

    Example:
        >>> weight = tw.Variable([1.0])
        >>> _ = tw.optimizers.Nadam(0.1).apply_gradients([(torch.ones(1), weight)])
        >>> weight.item() < 1.0
        True

    Source:
        Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop; Keras
        2.6, ``Nadam``.
    """

    _positional_options = ("name",)
    learning_rate: Hyper = Hyper(default=0.001, low=0.0)
    beta_1: Hyper = Hyper(default=0.9, low=0.0, below=1.0)
    beta_2: Hyper = Hyper(default=0.999, low=0.0, below=1.0)
    epsilon: Hyper = Hyper(default=1e-7, low=0.0, takes_none=True)
    schedule_decay: Hyper = Hyper(default=0.004, low=0.0, kw_only=True)
    momentum_cache = State(initial=1.0)
    m = Slot()
    v = Slot()
    keras_sparse = "decay"
    update = staticmethod(rules.nadam)

    @override
    def _construct(
        self,
        cls: type,
        name: str | None,
        options: dict[str, Any],
        values: dict[str, Any],
    ) -> None:
        options.pop("decay", None)
        super()._construct(cls, name, options, values)

    @override
    def _set_hyper(self, name: str, value: Any) -> None:
        if name == "learning_rate" and isinstance(
            value, (Mapping, LearningRateSchedule)
        ):
            raise ValueError(
                message(
                    "Nadam: learning_rate",
                    "a number or a callable",
                    f"a schedule, {type(value).__name__}",
                    "The Nadam optimizer does not support schedules. A function of "
                    "iterations that calls one will do.",
                )
            )
        super()._set_hyper(name, value)

    def _momentum_of(self, step: Any) -> Any:
        """The momentum of a step, counted from 1."""
        return self.beta_1 * (1 - 0.5 * 0.96 ** (self.schedule_decay * step))

    @override
    def scalars(self, step: Any) -> dict[str, Any]:
        momentum = self._momentum_of(step)
        return {
            "lr": self.learning_rate,
            "beta1": self.beta_1,
            "beta2": self.beta_2,
            "beta2_power": self.beta_2**step,
            "epsilon": self.epsilon,
            "momentum": momentum,
            "momentum_next": self._momentum_of(step + 1),
            "momentum_product": self.momentum_cache * momentum,
        }

    @override
    def next_states(self, step: Any) -> dict[str, Any]:
        return {"momentum_cache": self.momentum_cache * self._momentum_of(step)}

    @override
    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config["decay"] = config.pop("schedule_decay")
        return config

    @classmethod
    @override
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Any:
        arguments = dict(config)
        if "decay" in arguments:
            arguments["schedule_decay"] = arguments.pop("decay")
        elif _KERAS_3 in arguments:
            arguments.setdefault("schedule_decay", 1.0)
        return super().from_config(arguments, custom_objects)
