"""What one of torch's optimizers over the rules here says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from thalweg.optim.formula import Formula
from thalweg.optim.options import Options
from thalweg.step import EMA_MOMENTUM

__all__ = ["Described", "Settings", "Status"]

Settings = list[tuple[tuple[float, ...], tuple[Any, ...]]]
"""For each group its numbers, and its choices."""


@dataclass
class Status:
    """What a step or scope leaves behind, changed in place.

    Attributes:
        is_applied: Whether the last step was taken; of shape () on the device if that
            decides.
        is_averaged: Whether parameters hold their averages.
    """

    is_applied: bool | torch.Tensor = True
    is_averaged: bool = False


class Described(torch.optim.Optimizer):
    """The description that steps, drafts and loading read; it does nothing itself.

    A subclass says which numbers and choices a parameter group holds, and which
    `Formula` they ask for.
    """

    columns: ClassVar[tuple[str, ...]]
    counters: ClassVar[dict[str, float | str]] = {"step": 0.0}
    """Numbers of each parameter with their first values, or the option that is it."""
    counts_in_state: ClassVar[bool] = True
    keeps_slots: ClassVar[bool] = True
    """For a checkpoint: tensors of the state are slots, found by parameter."""
    needs_all_rows: ClassVar[bool] = False
    """Whether the rule reads a whole parameter at once."""
    # Of the instance alone: trainers make subclasses that never ran a constructor, and
    # fetch what these lack from the optimizer they wrap.
    _options: Options
    _status: Status

    # -- what a subclass says -------------------------------------------------

    def numbers(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """The numbers of a parameter group, in the order of `columns`."""
        raise NotImplementedError

    def choices(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        """What chooses the formula of a group: options that are no numbers."""
        raise NotImplementedError

    def formula(self, choices: tuple[Any, ...]) -> Formula:
        """The formula for some choices."""
        raise NotImplementedError

    def shape_flags(self, shape: torch.Size) -> tuple[tuple[str, bool], ...]:
        """Flags of the rule that follow from a parameter's shape; usually none."""
        del shape
        return ()

    def next_counters(
        self, values: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """The counters after a step.

        Args:
            values: The numbers of the step; ``step`` counts it, other counters are as
                they were before.

        Returns:
            For each counter one number per row.
        """
        return {"step": values["step"]}

    def is_built_ahead(self, group: Mapping[str, Any]) -> bool:
        """Whether slots made before the first step change nothing in it."""
        del group
        return True

    # -- what follows from it -------------------------------------------------

    def settings(self) -> Settings:
        """Numbers and choices in force, group by group."""
        decay = self._options.ema_decay
        added = () if decay is None else (decay,)
        return [(self.numbers(g) + added, self.choices(g)) for g in self.param_groups]

    def all_columns(self) -> tuple[str, ...]:
        """Names of the numbers in `settings`."""
        averages = () if self._options.ema_decay is None else (EMA_MOMENTUM,)
        return self.columns + averages

    def full_formula(self, choices: tuple[Any, ...], *, folds: bool) -> Formula:
        """The formula for some choices, with the average and folded clips.

        Args:
            choices: Choices of a group.
            folds: Whether gradients are clipped in the same pass.
        """
        clips = self._options.transforms.columns if folds else ()
        averages = () if self._options.ema_decay is None else (EMA_MOMENTUM,)
        return replace(self.formula(choices), extras=clips + averages)

    def state_keys(self, group: Mapping[str, Any]) -> set[str]:
        """Keys of the tensors that the state of a group's parameters has."""
        formula = self.full_formula(self.choices(group), folds=False)
        return {slot.key for slot in formula.all_slots}

    def possible_keys(self, group: Mapping[str, Any]) -> set[str]:
        """The same, with those that other options bring; groups change at any time.

        Args:
            group: A group with all options of the class.
        """
        others = {name: _switched(value) for name, value in group.items()}
        variants = [group, others]
        variants += [{**group, name: other} for name, other in others.items()]
        return set().union(*map(self.state_keys, variants))


def _switched(value: Any) -> Any:
    """An option turned on or off; numbers beside 0 and all else stay."""
    if isinstance(value, bool):
        return not value
    return 1.0 if isinstance(value, (int, float)) and value == 0 else value
