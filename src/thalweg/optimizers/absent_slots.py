"""A rule without the slots that do not exist while a flag is off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, wraps
from typing import Any

from thalweg.compiler import Rule

__all__ = ["without_slots"]


@cache
def without_slots(rule: Rule, absent: tuple[bool, ...]) -> Rule:
    """A rule whose function gets None for some slots, and returns the others.

    Args:
        rule: A rule that takes all slots of a class.
        absent: For each of its slots whether it is left out.

    Returns:
        The rule of the other slots. Its function may return None for an absent slot,
        or leave it out.
    """
    function = rule.function
    lost = {n for n, gone in zip(rule.slots, absent, strict=True) if gone}

    @wraps(function)  # so that errors and searches find the user's lines
    def present(var: Any, *rest: Any, **numbers: Any) -> Any:
        given = iter(rest[:-1])
        slots = [None if gone else next(given) for gone in absent]
        return _without(rule, lost, function(var, *slots, rest[-1], **numbers))

    kept = tuple(name for name in rule.slots if name not in lost)
    return replace(rule, function=present, slots=kept)


def _without(rule: Rule, lost: set[str], new: Any) -> Any:
    """What a rule returned, without the slots that are absent, if it has them."""
    if not isinstance(new, (tuple, list)):
        return new
    if len(new) == 2 and isinstance(new[1], Mapping):
        return new[0], {
            n: v for n, v in new[1].items() if n not in lost or v is not None
        }
    if len(new) != len(rule.outputs):
        return new
    pairs = zip(rule.outputs, new, strict=True)
    return tuple(v for n, v in pairs if n not in lost or v is not None)
