"""What a rule returns, and the numbers it is given, before anything is made of them.

A rule that forgot its `return`, or one of its results, is told so by name and line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import fx

from thalweg.compiler.refusals import Place, place_of_function, refusal
from thalweg.compiler.rule import Rule
from thalweg.errors import TraceError, describe, message

__all__ = ["results_in_order", "results_refusal", "scalars_by_name"]


def results_in_order(rule: Rule, returned: Any, old: Mapping[str, Any]) -> list[Any]:
    """The new variable and the new slots that a rule returned, as a list.

    Args:
        rule: The rule.
        returned: What its function returned; slots may come as a dict by name.
        old: The slots as they were, by name, for those that the dict leaves out.

    Raises:
        TraceError: If there are more or fewer results than the rule has, or one is no
            traced value and no number.
    """
    values = _as_list(rule, returned, old)
    if len(values) != len(rule.outputs):
        action = "Return the new variable and every new slot, in order"
        if len(values) < len(rule.outputs):  # a slot may be what was to be a number
            action += "; put numbers behind a star, as in (var, grad, *, lr)"
        raise results_refusal(
            rule,
            f"{len(rule.outputs)} results ({', '.join(rule.outputs)})",
            str(len(values)),
            f"{action}.",
        )
    for name, value in zip(rule.outputs, values, strict=True):
        if not isinstance(value, (fx.Proxy, int, float)):
            raise results_refusal(
                rule,
                f"a traced value or a number as the new {name!r}",
                describe(value),
                "Return what torch functions and operators make of the arguments.",
            )
    return values


def _as_list(rule: Rule, returned: Any, old: Mapping[str, Any]) -> list[Any]:
    if returned is None:
        raise results_refusal(
            rule,
            "the new variable and its new slots as results",
            "None",
            "Add a return.",
        )
    if isinstance(returned, Mapping):
        raise results_refusal(
            rule,
            f"{len(rule.outputs)} results ({', '.join(rule.outputs)})",
            "a dictionary",
            "Return the new variable first, then the slots or a dictionary of them.",
        )
    if not isinstance(returned, (tuple, list)):
        return [returned]
    values = list(cast("Iterable[Any]", returned))
    if len(values) != 2 or not isinstance(values[1], Mapping):
        return values
    new = cast("Mapping[str, Any]", values[1])
    for name in new:
        if name not in rule.slots:
            raise results_refusal(
                rule,
                f"slots named {', '.join(rule.slots)}",
                repr(name),
                "Return the new slots under the names of the arguments.",
            )
    return [values[0], *({**old, **new}[name] for name in rule.slots)]


def results_refusal(
    rule: Rule, expected: str, got: str, action: str, result: Any = None
) -> TraceError:
    """An error about results, which names the line where the rule begins.

    If it is about one result that a line of the same file made, it names that line.
    """
    place = place_of_function(rule.function)
    if isinstance(result, fx.Proxy):
        made = cast("Place | None", result.node.meta.get("place"))
        if made and place and made[0] == place[0]:
            place = made
    return refusal(rule.name, place, expected, got, action)


def scalars_by_name(owner: type, wanted: Sequence[str], given: Any) -> dict[str, Any]:
    """The numbers for a rule out of what a class's `scalars` returned.

    Args:
        owner: The class.
        wanted: Names of the rule's scalars.
        given: What `scalars` returned.

    Raises:
        TraceError: If it is no mapping, or lacks one of them.
    """
    is_table = isinstance(given, Mapping)
    table = cast("Mapping[str, Any]", given) if is_table else None
    missing = [name for name in wanted if table is None or name not in table]
    if table is not None and not missing:
        return {name: table[name] for name in wanted}
    lacking = f"Return {', '.join(map(repr, missing))} too."
    raise TraceError(
        message(
            f"{owner.__name__}.scalars",
            f"a number for each of the rule's scalars {list(wanted)}",
            str(list(table)) if table is not None else describe(cast("object", given)),
            lacking if table is not None else "Return a dictionary of them.",
        )
    )
