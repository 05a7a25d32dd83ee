"""Which saved state belongs to which parameter: by name, or else by position."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from thalweg.errors import message
from thalweg.state import canonical_name

__all__ = [
    "Match",
    "are_named",
    "check_shapes",
    "fits",
    "match_parameters",
    "repeated_names",
]

_OWN_KEYS = ("params", "param_names")
_SAME_PARAMETERS = "Load it into an optimizer of the same parameters."
_GIVE_NAMES = "Make the groups as they were, or name the parameters on both sides."
_GIVE_FULL_NAMES = (
    "A module in a group names its parameters from itself on; (name, parameter) pairs "
    "with the names of the whole model tell them apart."
)
Groups = Sequence[Mapping[str, Any]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Match:
    """What loading a state dict will do.

    Attributes:
        parameters: Parameters by the id they have in the state dict.
        groups: The groups as they will be.
        is_by_name: Whether parameters were found by their names, not by position.
    """

    parameters: dict[Any, torch.Tensor]
    groups: list[dict[str, Any]]
    is_by_name: bool


def match_parameters(
    where: str,
    own: Groups,
    saved: Groups,
    *,
    strict: bool = True,
    advice: str = _SAME_PARAMETERS,
) -> Match:
    """Find the parameters of a state dict.

    By name if both sides have names and none occurs twice on a side; otherwise by
    position, as torch does. If names that occur twice are not the same at every
    position either, that is logged.

    Args:
        where: Name of the optimizer, for messages.
        own: Groups of the optimizer.
        saved: Groups of the state dict.
        strict: Whether every name must be on both sides.
        advice: What to do if one is not.

    Returns:
        The match.

    Raises:
        ValueError: If a name is on one side only, or groups that are matched by
            position differ in number or size.
    """
    if not (are_named(own) and are_named(saved)):
        return _match_by_position(where, own, saved, _GIVE_NAMES)
    repeated = sorted({*repeated_names(own), *repeated_names(saved)})
    if not repeated:
        return _match_by_name(where, own, saved, advice if strict else "")
    problem = f"{repeated} name more than one parameter each. {_GIVE_FULL_NAMES}"
    match = _match_by_position(where, own, saved, problem)
    if [*map(_names_in, own)] != [*map(_names_in, saved)]:
        logger.warning(
            "%s.load_state_dict matches parameters by position, though names differ: "
            "%s",
            *(where, problem),
        )
    return match


def are_named(groups: Groups) -> bool:
    """Whether each parameter of some groups has a name."""
    return all(
        isinstance(names := group.get("param_names"), (list, tuple))
        and len(names) == len(group["params"])
        for group in groups
    )


def repeated_names(groups: Groups) -> list[str]:
    """Names that occur more than once in groups that have names."""
    counts = Counter(name for group in groups for name in _names_in(group))
    return [name for name, count in counts.items() if count > 1]


def _names_in(group: Mapping[str, Any]) -> list[str]:
    return [canonical_name(name) for name in group["param_names"]]


def _match_by_position(where: str, own: Groups, saved: Groups, advice: str) -> Match:
    """Groups and places in them count; differences are told in the words of torch."""
    sizes = [len(g["params"]) for g in own], [len(g["params"]) for g in saved]
    if sizes[0] != sizes[1]:
        problem = (
            "contains a parameter group that doesn't match the size of optimizer's "
            "group"
            if len(own) == len(saved)
            else "has a different number of parameter groups"
        )
        expected = f"groups of {sizes[0]} parameters"
        text = message(f"{where}.load_state_dict", expected, f"{sizes[1]}", advice)
        raise ValueError(f"loaded state dict {problem}. {text}")
    pairs = list(zip(own, saved, strict=True))
    found = {
        key: parameter
        for group, theirs in pairs
        for key, parameter in zip(theirs["params"], group["params"], strict=True)
    }
    groups = [_merged(group, theirs) for group, theirs in pairs]
    return Match(found, groups, is_by_name=False)


def _match_by_name(where: str, own: Groups, saved: Groups, advice: str) -> Match:
    """Each name once on both sides; without advice, those of one side are left out."""
    known, wanted = _by_name(saved), _by_name(own)
    missing = [name for name in wanted if name not in known]
    unexpected = [name for name in known if name not in wanted]
    if advice and (missing or unexpected):
        raise ValueError(
            message(
                f"{where}.load_state_dict",
                "the names of the optimizer's parameters",
                f"missing {missing}, unexpected {unexpected}",
                advice,
            )
        )
    groups = []
    for group in own:
        sources = {known[name][0] for name in _names_in(group) if name in known}
        is_one = len(sources) == 1
        groups.append(_merged(group, saved[sources.pop()] if is_one else {}))
    found = {known[name][1]: p for name, (_, p) in wanted.items() if name in known}
    return Match(found, groups, is_by_name=True)


def _by_name(groups: Groups) -> dict[str, tuple[int, Any]]:
    """Names to the number of the group and what stands in ``"params"``."""
    return {
        name: (number, parameter)
        for number, group in enumerate(groups)
        for name, parameter in zip(_names_in(group), group["params"], strict=True)
    }


def _merged(own: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A group with its parameters and the saved options."""
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
        if isinstance(value, torch.Tensor) and not fits(value, parameter)
    ]
    if problems:
        raise ValueError(
            message(
                f"{where}.load_state_dict",
                "tensors of their parameters' shapes",
                "; ".join(problems),
                _SAME_PARAMETERS,
            )
        )


def fits(value: torch.Tensor, parameter: torch.Tensor) -> bool:
    """Whether it has the parameter's shape, one number a row, or one at all."""
    shape = tuple(parameter.shape)
    rows = shape[:1] + (1,) * (len(shape) - 1)
    return value.numel() == 1 or tuple(value.shape) in (shape, rows)
