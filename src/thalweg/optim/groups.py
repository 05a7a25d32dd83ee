"""What parameter groups of several optimizers hold alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from thalweg.errors import describe, message, with_article
from thalweg.optim.options import Extras
from thalweg.state import name_of, register_name

__all__ = [
    "adam_numbers",
    "check_group",
    "check_not_negative",
    "coupled",
    "decoupled",
    "note_names",
]


def adam_numbers(group: Mapping[str, Any]) -> tuple[float, ...]:
    """Rate, both betas, epsilon and weight decay of a group."""
    beta1, beta2 = group["betas"]
    return (
        float(group["lr"]),
        float(beta1),
        float(beta2),
        float(group["eps"]),
        float(group["weight_decay"]),
    )


def forgotten(group: Mapping[str, Any]) -> tuple[bool, bool]:
    """Which of both moments of a group the last gradient alone makes: beta is 0."""
    beta1, beta2 = group["betas"]
    return float(beta1) == 0, float(beta2) == 0


def coupled(group: Mapping[str, Any]) -> str:
    """The kind of weight decay of a group that has an L2 penalty."""
    return "coupled" if group["weight_decay"] != 0 else ""


def decoupled(group: Mapping[str, Any]) -> str:
    """The kind of a group whose weight decay shrinks, or is a penalty, as it says."""
    if group["weight_decay"] == 0:
        return ""
    return "decoupled" if group.get("decoupled_weight_decay", True) else "coupled"


def check_not_negative(defaults: Mapping[str, Any]) -> None:
    """Refuse numbers below 0, in the words of torch.

    Args:
        defaults: Options by name; ``betas`` must be below 1, too.

    Raises:
        ValueError: If one is out of range.
    """
    words = {"lr": "learning rate", "eps": "epsilon value"}
    for name, value in defaults.items():
        if name == "betas":
            for i, beta in enumerate(value):
                if not 0 <= beta < 1:
                    _refuse(f"beta parameter at index {i}", beta, "a number in [0, 1)")
        elif name == "lr" and getattr(value, "numel", lambda: 1)() != 1:
            raise ValueError("Tensor lr must be 1-element. Pass a number.")
        elif not value >= 0:
            _refuse(words.get(name, f"{name} value"), value, "a number >= 0")


def _refuse(what: str, value: Any, expected: str) -> None:
    where = f"Invalid {what}: {value}"
    raise ValueError(message(where, expected, repr(value), "Pass one."))


def check_group(where: str, group: Mapping[str, Any]) -> None:
    """Refuse what no optimizer here can do.

    Args:
        where: Name of the optimizer, for messages.
        group: A parameter group.

    Raises:
        TypeError: If a parameter is not floating.
        ValueError: If a parameter is complex, or a keyword of the whole optimizer is
            among the options.
        NotImplementedError: If the group asks for ``differentiable``.
    """
    own = [name for name in Extras.__annotations__ if name in group]
    if own:
        raise ValueError(
            message(
                where,
                "groups with options of torch",
                f"{own} in one",
                "Give them to the constructor: they hold for all groups.",
            )
        )
    for parameter in group["params"]:
        _check_parameter(where, parameter)
    if group.get("differentiable"):
        raise NotImplementedError(
            message(
                where,
                "differentiable=False",
                "differentiable=True",
                "A step writes through pointers, where autograd cannot follow; use "
                "torch.optim for a step that is differentiated.",
            )
        )


def _check_parameter(where: str, parameter: torch.Tensor) -> None:
    if parameter.is_complex():
        raise ValueError(
            message(
                f"{where} does not support complex parameters",
                "floating ones",
                _described(parameter),
                "Optimize torch.view_as_real(parameter) instead.",
            )
        )
    if not parameter.is_floating_point():
        raise TypeError(
            message(
                where,
                "floating parameters",
                _described(parameter),
                "Leave it out of the groups.",
            )
        )


def note_names(group: Mapping[str, Any]) -> None:
    """Let messages call parameters by the names that a group was given with them.

    Args:
        group: A parameter group; a parameter that has a name keeps it.
    """
    names = group.get("param_names", ())
    for parameter, name in zip(group["params"], names, strict=False):
        if name_of(parameter) is None:
            register_name(parameter, name)


def _described(parameter: torch.Tensor) -> str:
    return f"{name_of(parameter, 'a parameter')}, {with_article(describe(parameter))}"
