"""Which optimizer of `torch.optim` states the formula of which one here.

torch and Keras keep the same things under other names, and some of them in other
units: the momentum of Keras has the learning rate inside. What is said here about a
pair is all that reading and giving state dicts knows about formulas. Reading switches a
class whose formula differs to torch's, and units are torch's from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from thalweg import optimizers
from thalweg.errors import CheckpointError, message

__all__ = ["Twin", "twin_of"]


@dataclass(frozen=True)
class Twin:
    """A class of `torch.optim` beside one of `thalweg.optimizers`.

    Attributes:
        name: Name of torch's class.
        slots: torch's keys of state to names of slots.
        options: torch's options of a group to the entries that a face has for them.
        flags: Options that choose the formula, named alike on both sides.
        rates: Names of slots that are this multiple of the learning rate times torch's
            tensor, in Keras's formula.
        shared: torch's keys of state to numbers that all variables share here.
        has_step: Whether torch counts steps.
        follows_step: Whether the formula reads the count.
        decay: torch's option for what is ``decay`` here.
        squares_epsilon: Whether epsilon is inside the root where there is momentum, in
            Keras's formula.
        shrinks: Whether weight decay shrinks variables where a group does not say.
    """

    name: str
    slots: Mapping[str, str]
    options: Mapping[str, str]
    flags: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    has_step: bool = True
    follows_step: bool = False
    decay: str | None = None
    squares_epsilon: bool = False
    shrinks: bool = False

    def in_torch_units(self) -> Twin:
        """The same pair where the optimizer here has torch's formula."""
        return replace(self, rates={}, squares_epsilon=False)


_MOMENTS = {"exp_avg": "m", "exp_avg_sq": "v"}
_LARGEST = {"max_exp_avg_sq": "vhat"}
_ADAM = {"lr": "lr", "betas": "betas", "eps": "eps"}
_TWINS: dict[type, Twin] = {
    optimizers.Adam: Twin(
        "Adam", {**_MOMENTS, **_LARGEST}, _ADAM, ("amsgrad",), follows_step=True
    ),
    optimizers.AdamW: Twin(
        *("AdamW", {**_MOMENTS, **_LARGEST}, _ADAM, ("amsgrad",)),
        follows_step=True,
        shrinks=True,
    ),
    optimizers.Adamax: Twin(
        "Adamax", {"exp_avg": "m", "exp_inf": "v"}, _ADAM, follows_step=True
    ),
    optimizers.Nadam: Twin(
        *("NAdam", _MOMENTS, {**_ADAM, "momentum_decay": "schedule_decay"}),
        shared={"mu_product": "momentum_cache"},
        follows_step=True,
    ),
    optimizers.SGD: Twin(
        "SGD",
        {"momentum_buffer": "momentum"},
        {"lr": "lr", "momentum": "momentum"},
        ("nesterov",),
        rates={"momentum": -1.0},
        has_step=False,
    ),
    optimizers.RMSprop: Twin(
        "RMSprop",
        {"square_avg": "rms", "momentum_buffer": "momentum", "grad_avg": "mg"},
        {"lr": "lr", "alpha": "rho", "momentum": "momentum", "eps": "eps"},
        ("centered",),
        rates={"momentum": 1.0},
        squares_epsilon=True,
    ),
    optimizers.Adagrad: Twin(
        "Adagrad",
        {"sum": "accumulator"},
        {
            "lr": "lr",
            "initial_accumulator_value": "initial_accumulator_value",
            "eps": "eps",
        },
        decay="lr_decay",
    ),
    optimizers.Adadelta: Twin(
        "Adadelta",
        {"square_avg": "accum_grad", "acc_delta": "accum_var"},
        {"lr": "lr", "rho": "rho", "eps": "eps"},
    ),
}


def twin_of(optimizer: Any) -> Twin:
    """The class of torch that an optimizer is the twin of.

    Args:
        optimizer: An optimizer of `thalweg.optimizers`; a subclass has a formula of
            its own, and no twin.

    Raises:
        CheckpointError: If it has none.

    Example:
        >>> twin_of(tw.optimizers.Nadam()).name
        'NAdam'
    """
    twin = _TWINS.get(type(optimizer))
    if twin is None:
        known = ", ".join(sorted(cls.__name__ for cls in _TWINS))
        raise CheckpointError(
            message(
                "twin_of",
                f"an optimizer that torch has, too: {known}",
                type(optimizer).__name__,
                "Use one of these.",
            )
        )
    return twin
