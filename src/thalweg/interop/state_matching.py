"""Which saved state belongs to which parameter: by name, or else by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from thalweg.errors import message
from thalweg.state import canonical_name

__all__ = ["Match", "check_shapes", "match_parameters"]

_OWN_KEYS = ("params", "param_names")
Groups = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Match:
    """What loading a state dict will do.

    Attributes:
        parameters: Parameters by the id they have in the state dict.
        groups: The groups as they will be.
    """

    parameters: dict[Any, torch.Tensor]
    groups: list[dict[str, Any]]


def match_parameters(where: str, own: Groups, saved: Groups) -> Match:
    """Find the parameters of a state dict.

    Args:
        where: Name of the optimizer, for messages.
        own: Groups of the optimizer.
        saved: Groups of the state dict.

    Returns:
        The match, by name if both sides have names.

    Raises:
        ValueError: If a name is on one side only, or groups differ in number or size.
    """
    if _are_named(own) and _are_named(saved):
        return _match_by_name(where, own, saved)
    if [len(g["params"]) for g in own] != [len(g["params"]) for g in saved]:
        raise ValueError(
            message(
                f"{where}.load_state_dict",
                f"groups of {[len(g['params']) for g in own]} parameters",
                f"{[len(g['params']) for g in saved]}",
                "Make the groups as they were, or name the parameters on both sides.",
            )
        )
    pairs = list(zip(own, saved, strict=True))
    found = {
        key: parameter
        for group, theirs in pairs
        for key, parameter in zip(theirs["params"], group["params"], strict=True)
    }
    return Match(found, [_merged(group, theirs) for group, theirs in pairs])


def _are_named(groups: Groups) -> bool:
    return all(
        len(group.get("param_names", ())) == len(group["params"]) for group in groups
    )


def _match_by_name(where: str, own: Groups, saved: Groups) -> Match:
    known, wanted = _by_name(saved), _by_name(own)
    missing = [name for name in wanted if name not in known]
    unexpected = [name for name in known if name not in wanted]
    if missing or unexpected:
        raise ValueError(
            message(
                f"{where}.load_state_dict",
                "the names of the optimizer's parameters",
                f"missing {missing}, unexpected {unexpected}",
                "Load it into an optimizer of the same parameters.",
            )
        )
    groups = []
    for group in own:
        names = map(canonical_name, group["param_names"])
        sources = {known[name][0] for name in names}
        is_one = len(sources) == 1
        groups.append(_merged(group, saved[sources.pop()] if is_one else {}))
    return Match(
        {known[n][1]: parameter for n, (_, parameter) in wanted.items()}, groups
    )


def _by_name(groups: Groups) -> dict[str, tuple[int, Any]]:
    """Names to the number of the group and what stands in ``"params"``."""
    return {
        canonical_name(name): (number, parameter)
        for number, group in enumerate(groups)
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }


def _merged(own: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    return {**own, **{key: v for key, v in saved.items() if key not in _OWN_KEYS}}


def check_shapes(where: str, state: Mapping[Any, Any], match: Match) -> None:
    """Refuse tensors that belong to another parameter.

    Args:
        where: Name of the optimizer, for messages.
        state: State by id.
        match: The parameters.

    Raises:
        ValueError: If a shape is neither the parameter's, nor one number a row, nor
            one number.
    """
    problems = [
        f"{key!r} of {number!r}: {tuple(value.shape)} for {tuple(parameter.shape)}"
        for number, parameter in match.parameters.items()
        for key, value in state.get(number, {}).items()
        if isinstance(value, torch.Tensor) and not _fits(value, parameter)
    ]
    if problems:
        raise ValueError(
            message(
                f"{where}.load_state_dict",
                "tensors of their parameters' shapes",
                "; ".join(problems),
                "Load it into an optimizer of the same parameters.",
            )
        )


def _fits(value: torch.Tensor, parameter: torch.Tensor) -> bool:
    shape = tuple(parameter.shape)
    rows = shape[:1] + (1,) * (len(shape) - 1)
    return value.numel() == 1 or tuple(value.shape) in (shape, rows)
