"""Which optimizer of `torch.optim` states the formula of which one here.

torch and Keras keep the same things under other names, and some of them in other
units: Keras's momentum has the learning rate inside. What is said here about a pair is
all that loading and giving state dicts knows about formulas.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from thalweg import optimizers
from thalweg.errors import CheckpointError, message

__all__ = ["Twin", "twin_of"]


@dataclass(frozen=True)
class Twin:
    """A class of `torch.optim` beside one of `thalweg.optimizers`.

    Attributes:
        name: Of torch's class.
        slots: torch's state keys to names of slots.
        options: torch's options of a group to the entries that a face has for them.
        flags: Options that choose a formula, named alike on both sides.
        rate_power: Slots that hold the learning rate: a slot is the factor times the
            learning rate times torch's tensor.
        shared: torch's state keys to numbers that all variables share here.
        has_step: Whether torch counts steps.
        follows_step: Whether the formula reads the count.
        decay: torch's option that is ``decay`` here.
        squares_epsilon: Whether epsilon stands inside the root where there is momentum.
        shrinks: Whether weight decay shrinks where a group does not say.
    """

    name: str
    slots: dict[str, str]
    options: dict[str, str]
    flags: tuple[str, ...] = ()
    factors: dict[str, float] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    has_step: bool = True
    follows_step: bool = False
    decay: str | None = None
    squares_epsilon: bool = False
    shrinks: bool = False
