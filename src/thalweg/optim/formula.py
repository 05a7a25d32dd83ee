"""What a parameter group asks for, and the rule that does it.

torch changes a gradient before its formula: `maximize` turns the sign, `weight_decay`
adds the parameter. Both are put in front of a rule of `thalweg.rules` here, so that the
formula itself stays the one text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch

from thalweg.compiler import Rule
from thalweg.rules.penalty import l2_penalty
from thalweg.step import EMA, EMA_MOMENTUM, WEIGHT_DECAY, bind_rule

__all__ = ["PENALTY", "Formula", "Slot"]

PENALTY = "penalty"
"""The weight decay where it is coupled: another use of the same number."""


@dataclass(frozen=True)
class Slot:
    """A tensor beside a parameter.

    Attributes:
        key: Its key in the optimizer's state: torch's name.
        initial: Its first value: a number, an option of the group (``"lr"``), or
            ``"var"``, the parameter itself.
        layout: ``"like"`` the parameter, or one number for each ``"row"``.
    """

    key: str
    initial: float | str = 0.0
    layout: str = "like"


@dataclass(frozen=True)
class Formula:
    """A rule with everything that goes into its pass over memory; equal by value.

    Attributes:
        rule: A function of `thalweg.rules`, or one composed of several.
        scalars_of: Map from the group's numbers and the step to the rule's scalars.
        columns: The group's numbers by name.
        slots: The rule's slots in its order.
        rule_flags: The rule's flags by name.
        maximize: Whether the sign of the gradient is turned.
        decay: ``"coupled"`` adds to the gradient, ``"decoupled"`` shrinks the
            parameter, "" is none.
        extras: Columns of what comes with every rule: clips, averages.
        forgets: For each slot whether its old content counts for nothing; () if all
            of them count.
    """

    rule: Callable[..., Any]
    scalars_of: Callable[[Any, Any], Mapping[str, Any]]
    columns: tuple[str, ...]
    slots: tuple[Slot, ...] = ()
    rule_flags: tuple[tuple[str, bool], ...] = ()
    maximize: bool = False
    decay: str = ""
    extras: tuple[str, ...] = ()
    forgets: tuple[bool, ...] = ()

    def scalars(self, group: Any, step: Any) -> Mapping[str, Any]:
        """The rule's scalars; traced once, and part of the kernel.

        Args:
            group: The group's numbers as attributes.
            step: Number of this step of the parameter, counted from 1.

        Returns:
            At least one number for each scalar of the rule.
        """
        scalars = self.scalars_of(group, step)
        if self.decay == "coupled":
            return {**scalars, PENALTY: group.penalty}
        return scalars

    @property
    def all_slots(self) -> tuple[Slot, ...]:
        """The rule's slots, and the average behind them if one is kept."""
        averages = (Slot(EMA, "var"),) if EMA_MOMENTUM in self.extras else ()
        return self.slots + averages

    def bind(self, shape_flags: tuple[tuple[str, bool], ...] = ()) -> Rule:
        """The rule that takes the group's numbers.

        Args:
            shape_flags: Flags of the rule that follow from a parameter's shape.

        Returns:
            The same object for equal formulas and flags.
        """
        return _bind(self, shape_flags)


@cache
def _bind(formula: Formula, shape_flags: tuple[tuple[str, bool], ...]) -> Rule:
    decays = {"coupled": (PENALTY,), "decoupled": (WEIGHT_DECAY,), "": ()}
    rule = Rule.of(formula.rule)
    if any(formula.forgets):
        rule = _without_memory(rule, formula.forgets)
    rule = _with_gradient_of(rule, formula.maximize, formula.decay == "coupled")
    # Anything with `scalars` can own a binding.
    owner = cast("type", formula)
    hypers = (*formula.columns, *decays[formula.decay], *formula.extras)
    return bind_rule(rule, owner, hypers, (), (*formula.rule_flags, *shape_flags))


@cache
def _without_memory(rule: Rule, forgets: tuple[bool, ...]) -> Rule:
    """A rule that takes some slots for 0: m + (g - m) · 1 need not be g else."""

    def begun(var: Any, *rest: Any, **scalars: Any) -> Any:
        *slots, grad = rest
        known = [
            torch.zeros_like(slot) if forgets_it else slot
            for slot, forgets_it in zip(slots, forgets, strict=True)
        ]
        return rule.function(var, *known, grad, **scalars)

    return replace(rule, function=begun)


@cache
def _with_gradient_of(rule: Rule, maximize: bool, penalised: bool) -> Rule:
    """A rule whose gradient is torch's: turned, then with the penalty added."""
    if not maximize and not penalised:
        return rule
    function = rule.function

    def prepared(var: Any, *rest: Any, **scalars: Any) -> Any:
        grad = -rest[-1] if maximize else rest[-1]
        if penalised:
            weight_decay = scalars.pop(PENALTY)
            grad = l2_penalty(grad, var, weight_decay=weight_decay)
        return function(var, *rest[:-1], grad, **scalars)

    scalars = (*rule.scalars, PENALTY) if penalised else rule.scalars
    return replace(rule, function=prepared, scalars=scalars)
