"""What an object with slots offers, so that a checkpoint can save and restore it.

Slots are stored under the name of their variable, not of their owner, so reordering
the variables never gives state to the wrong one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch

from thalweg.state.variable import Variable


@runtime_checkable
class SlotOwner(Protocol):
    """An object, usually an optimizer, that keeps slots for variables of others.

    Its own variables (`iterations`, attributes) are found by `walk`; the slots and
    hyperparameters go through these four methods.
    """

    def slot_variables(self) -> Iterable[tuple[torch.Tensor, str, Variable]]:
        """Yield (handle of the variable, slot name, slot) for every slot there is."""
        ...

    def restore_slot_variable(
        self, slot_name: str, variable: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Set a slot of `variable` to `value`, making the slot if it is missing."""
        ...

    def hyperparameters(self) -> Mapping[str, Any]:
        """Return the hyperparameters as plain JSON values."""
        ...

    def restore_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Take over hyperparameters that `hyperparameters` returned."""
        ...


@runtime_checkable
class OwnerFace(Protocol):
    """An object that shows a `SlotOwner` in another shape; to a checkpoint, it is one.

    What the owner has is saved and restored as if the owner had been given. What only
    the face has goes beside it, and either side may do without.
    """

    def checkpoint_owner(self) -> SlotOwner:
        """Return the owner, once what was written to the face is in force there."""
        ...

    def own_numbers(self) -> Mapping[str, Any]:
        """Return what only the face holds, as plain JSON values."""
        ...

    def restore_own_numbers(self, values: Mapping[str, Any]) -> None:
        """Take over what `own_numbers` returned; refuse it before the first write."""
        ...

    def show_restored(self) -> None:
        """Show what a restore has put into the owner."""
        ...
