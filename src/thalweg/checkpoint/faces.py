"""What only the face of an optimizer holds, in the shape of an owner without slots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from thalweg.errors import message
from thalweg.state import OwnerFace, Variable

__all__ = ["FaceNumbers"]


class FaceNumbers:
    """The numbers of a face as hyperparameters: kept, taken or refused like others.

    Args:
        face: The face.
    """

    takes_new_hyperparameters = True

    def __init__(self, face: OwnerFace) -> None:
        self._face = face

    def slot_variables(self) -> Iterable[tuple[torch.Tensor, str, Variable]]:
        """No slots: the optimizer behind the face has them all."""
        return ()

    def restore_slot_variable(
        self, slot_name: str, variable: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Refuse a slot.

        Raises:
            ValueError: Always.
        """
        del variable, value
        raise ValueError(
            message(
                type(self._face).__name__,
                "slots of the optimizer behind it only",
                f"a slot {slot_name!r} of its own",
                "Save the checkpoint anew.",
            )
        )

    def hyperparameters(self) -> Mapping[str, Any]:
        """What only the face holds."""
        return self._face.own_numbers()

    def restore_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Give the face its numbers."""
        self._face.restore_own_numbers(values)
