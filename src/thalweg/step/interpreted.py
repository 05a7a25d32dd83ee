"""Updates on devices that have no kernels, by torch's own operations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from thalweg.compiler import interpret
from thalweg.errors import message
from thalweg.state import name_of
from thalweg.step.group import Member

__all__ = ["check_whole", "run_interpreted"]


def check_whole(where: str, member: Member) -> None:
    """Refuse a shard where nothing can ask other ranks between the passes.

    Args:
        where: Text that begins the message.
        member: The variable.

    Raises:
        NotImplementedError: If it is a shard, and the rule reduces all of it.
    """
    if member.whole is not None and member.reduces_whole:
        raise NotImplementedError(
            message(
                f"{where}: {name_of(member.var, 'a variable')}",
                "a whole variable, or a device with kernels: the rule "
                f"{member.rule.name} reduces over all of it",
                f"a shard on {member.var.device}",
                "Install Triton there, or take a rule that reads single elements.",
            )
        )


@torch.no_grad()
def run_interpreted(
    member: Member, gradient: torch.Tensor, values: Mapping[str, np.ndarray]
) -> None:
    """Update one variable on a device that has no kernels.

    Args:
        member: The variable.
        gradient: Its gradient.
        values: For each hyperparameter one number per setting.
    """
    scalars = {n: float(values[n][member.setting]) for n in member.rule.scalars}
    tensors = (*member.tensors, gradient)
    scalars |= member.rounding_columns
    own = member.layouts, member.rounded
    new = interpret(member.rule, {}, tensors, scalars, *own)
    for old, value in zip(member.tensors, new, strict=True):
        old.copy_(value)
