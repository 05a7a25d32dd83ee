"""Which tensors an optimizer takes as variables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from thalweg.errors import describe, message, with_article
from thalweg.gradients import sharded_parameter
from thalweg.state import Trackable, handle_of, name_of, register_name

__all__ = ["check_variable", "trainable_of", "variable_of"]


def trainable_of(root: Any) -> Iterable[torch.Tensor]:
    """The variables of a module or Trackable that are trained."""
    if isinstance(root, Trackable):
        return root.trainable_variables
    return [p for p in root.parameters() if p.requires_grad]


def variable_of(item: Any) -> torch.Tensor:
    """The variable of an item; a (name, variable) pair makes the name known."""
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
        variable = check_variable("build", item[1])
        register_name(variable, item[0])
        return variable
    return check_variable("build", item)


def check_variable(where: str, variable: Any) -> torch.Tensor:
    """Refuse what no optimizer can update; give the tensor that is written.

    Where FSDP2 shows a gathered parameter until the backward pass ends, and a tape has
    taken its gradient, that is the sharded one.
    """
    if not isinstance(variable, torch.Tensor):
        raise TypeError(
            message(
                where,
                "a variable (a tensor or Parameter)",
                describe(variable),
                "Pass one.",
            )
        )
    handle = sharded_parameter(handle_of(variable))
    if not handle.is_floating_point():
        advice = (
            "Optimize torch.view_as_real(variable) instead."
            if handle.is_complex()
            else "Only floating variables can be optimized."
        )
        got = f"{name_of(handle, 'a variable')}, {with_article(describe(handle))}"
        raise ValueError(message(where, "a floating variable", got, advice))
    if handle.is_meta:
        got = f"{name_of(handle, 'a variable')}, {with_article(describe(handle))}"
        action = "Give it memory first, as by module.to_empty(device=…)."
        raise ValueError(message(where, "a variable with memory", got, action))
    return handle
