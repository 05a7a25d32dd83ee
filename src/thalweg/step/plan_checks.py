"""What a step must be like before a plan of it is made."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from thalweg.errors import message
from thalweg.step.captures import refuse_unprepared
from thalweg.step.group import Member
from thalweg.step.tensors import check_overlap, check_readable, check_writable

__all__ = ["check_step"]


def check_step(
    where: str, members: Sequence[Member], gradients: Sequence[Tensor]
) -> None:
    """Refuse a step that no plan can be made of; nothing is written.

    Args:
        where: Name of the optimizer, for messages.
        members: The variables, in the order of the gradients.
        gradients: Their gradients.

    Raises:
        RuntimeError: If work on one of their devices is captured as a CUDA graph.
        ValueError: If a tensor cannot be read or written through a pointer, two
            variables overlap, or a gradient has another shape than its variable.
    """
    for device in {member.var.device for member in members}:
        refuse_unprepared(f"a step of {where}", device)
    for i, (member, gradient) in enumerate(zip(members, gradients, strict=True)):
        for tensor in member.tensors:
            check_writable(where, f"variable {i} or a slot of it", tensor)
        name = f"the gradient of variable {i}"
        check_readable(where, name, gradient)
        if gradient.shape != member.var.shape:
            _refuse_shape(f"{where}: {name}", member.var, gradient)
    check_overlap(where, [m.var for m in members])


def _refuse_shape(where: str, variable: Tensor, gradient: Tensor) -> None:
    """A kernel would read behind its end, or leave a part of it out."""
    raise ValueError(
        message(
            where,
            f"shape {tuple(variable.shape)}, as the variable, or this rank's part of "
            "it, has",
            f"shape {tuple(gradient.shape)}",
            "Nothing was written. Pass a gradient of that shape; that of a sharded "
            "variable must be placed as the variable is.",
        )
    )
