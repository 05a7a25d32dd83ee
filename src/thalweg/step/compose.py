"""Rules composed before they are compiled, so that one pass over memory serves all.

An optimizer's rule takes TensorFlow's scalars; its hyperparameters have Keras's names.
The map from one to the other, and weight decay in front, become part of the traced
text: the kernel computes them once for each setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import FunctionType
from typing import Any

from thalweg.compiler import Rule, results
from thalweg.compiler.refusals import COMPOSED_OF
from thalweg.compiler.rounding import STEP
from thalweg.rules import decoupled_weight_decay
from thalweg.rules.clip import clip_by_value
from thalweg.rules.moving_average import moving_average

__all__ = [
    "CLIPVALUE",
    "EMA",
    "EMA_MOMENTUM",
    "GRADIENT_SCALE",
    "LOW_PRECISION_COPY",
    "STEP",
    "WEIGHT_DECAY",
    "ScalarView",
    "bind_rule",
]

LEARNING_RATE = "learning_rate"
WEIGHT_DECAY = "weight_decay"
CLIPVALUE = "clipvalue"
GRADIENT_SCALE = "gradient_scale"
EMA_MOMENTUM = "ema_momentum"
EMA = "average"
"""Slot of a variable's moving average."""
LOW_PRECISION_COPY = "low_precision_copy"
"""Slot of a variable's copy in another dtype."""

ScalarMap = Callable[[Any, Any], Mapping[str, Any]]


class ScalarView:
    """A class as its method ``scalars`` sees it: hyperparameters are traced values.

    Args:
        owner: The class.
        values: Hyperparameters and flags by name.
    """

    def __init__(self, owner: type, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._owner, name)
        if isinstance(attribute, property) and attribute.fget is not None:
            return attribute.fget(self)
        if isinstance(attribute, FunctionType):
            return attribute.__get__(self)
        return attribute


@cache
def bind_rule(
    rule: Rule,
    owner: type,
    hypers: tuple[str, ...],
    flags: tuple[tuple[str, bool], ...],
    rule_flags: tuple[tuple[str, bool], ...],
    *,
    has_copy: bool = False,
) -> Rule:
    """Compose a rule with the map from hyperparameters to its scalars.

    Args:
        rule: The rule.
        owner: The optimizer class, whose ``scalars`` is the map.
        hypers: Hyperparameters the rule shall take instead of its own scalars. Some
            of them bring more into the pass: `CLIPVALUE` and `GRADIENT_SCALE` change
            the gradient first, `WEIGHT_DECAY` lets the variable decay first, and
            `EMA_MOMENTUM` adds the slot `EMA` behind the rule's own.
        flags: Flags of the class and their values.
        rule_flags: Flags of the rule and their values.
        has_copy: Whether the slot `LOW_PRECISION_COPY`, behind all others, gets the
            new variable, too.

    Returns:
        A rule of the same tensors, whose scalars are the hyperparameters and `STEP`.
    """
    # Plain names, so that the search for free numbers follows these two.
    function = rule.function
    scalars_of: ScalarMap = getattr(owner, "scalars")  # noqa: B009 - owner is any class
    wanted, switches = rule.scalars, dict(rule_flags)

    averages = EMA_MOMENTUM in hypers
    extras = ((EMA,) if averages else ()) + ((LOW_PRECISION_COPY,) if has_copy else ())

    def composed(var: Any, *rest: Any, **values: Any) -> Any:
        view = ScalarView(owner, {**dict(flags), **values})
        given = scalars_of(view, values[STEP])
        own, added = rest[: -1 - len(extras)], rest[-1 - len(extras) : -1]
        grad = _clipped(rest[-1], values)
        new: Any = function(
            _decayed(var, grad, values),
            *own,
            grad,
            **results.scalars_by_name(owner, wanted, given),
            **switches,
        )
        kept = dict(zip(rule.slots, own, strict=True))
        outputs = results.results_in_order(rule, new, kept)
        if averages:
            momentum = values[EMA_MOMENTUM]
            outputs.append(moving_average(added[0], outputs[0], momentum=momentum))
        return (*outputs, outputs[0]) if has_copy else tuple(outputs)

    vars(composed)[COMPOSED_OF] = function
    return Rule(
        function=composed,
        name=rule.name,
        var=rule.var,
        slots=(*rule.slots, *extras),
        gradient=rule.gradient,
        scalars=(*hypers, STEP),
        flags=(),
    )


def _clipped(grad: Any, values: Mapping[str, Any]) -> Any:
    if CLIPVALUE in values:
        grad = clip_by_value(grad, clipvalue=values[CLIPVALUE])
    if GRADIENT_SCALE in values:
        grad = grad * values[GRADIENT_SCALE]
    return grad


def _decayed(var: Any, grad: Any, values: Mapping[str, Any]) -> Any:
    if WEIGHT_DECAY not in values:
        return var
    rate = values.get(LEARNING_RATE, 1.0)
    return decoupled_weight_decay(var, grad, lr=rate, weight_decay=values[WEIGHT_DECAY])
