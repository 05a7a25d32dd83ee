"""The rule of an optimizer, evaluated in float64 beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from thalweg.compiler import Rule, compile_rule, interpret
from thalweg.compiler.graph import Space, operation_of, space_of
from thalweg.gradients import clip_by_global_norm, clip_by_norm, clip_by_value
from thalweg.optimizers.declarations import ACCUMULATOR
from thalweg.rules.accumulate import accumulate, begin_sum
from thalweg.state import handle_of
from thalweg.step import (
    CLIPVALUE,
    EMA,
    GRADIENT_SCALE,
    LOW_PRECISION_COPY,
    Member,
)
from thalweg.testing.report import NotApplicableError
from thalweg.testing.subject import error

__all__ = [
    "Reference",
    "accumulators",
    "has_kernel",
    "is_exact",
    "means_of",
    "member_of",
    "numbers_of",
    "overwritten",
    "transformed",
]

# What clipping inside a kernel is given when gradients were clipped before it.
_NEUTRAL = {CLIPVALUE: math.inf, GRADIENT_SCALE: 1.0}


def member_of(optimizer: Any, variable: torch.Tensor) -> Member:
    """A variable with its slots and its rule, as a step takes it."""
    entry = optimizer._entry(handle_of(variable))
    return optimizer._member(optimizer._bound_rule(), entry, handle_of(variable))


def numbers_of(optimizer: Any, member: Member) -> dict[str, float]:
    """The numbers that the next step puts into the rule."""
    values = optimizer.values_in_force()
    return {
        name: float(values[name][member.setting]) if name in values else _NEUTRAL[name]
        for name in member.rule.scalars
    }


def transformed(
    optimizer: Any, grads: Sequence[torch.Tensor], held: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Gradients after clipping and the user's transformers, in new tensors."""
    pairs: Any = list(zip(grads, held, strict=True))
    if optimizer.clipvalue is not None:
        pairs = clip_by_value(pairs, optimizer.clipvalue)
    if optimizer.clipnorm is not None:
        pairs = clip_by_norm(pairs, optimizer.clipnorm)
    if optimizer.global_clipnorm is not None:
        pairs = clip_by_global_norm(pairs, optimizer.global_clipnorm)
    for transformer in optimizer.gradient_transformers:
        pairs = list(transformer(pairs))
    return [grad for grad, _ in pairs]


def means_of(
    optimizer: Any,
    held: Sequence[torch.Tensor],
    calls: Sequence[Sequence[torch.Tensor]],
    dtype: torch.dtype | None = None,
) -> list[torch.Tensor]:
    """What a step is taken on: the gradients of its only call, or the cycle's means.

    Args:
        optimizer: A built optimizer.
        held: Its variables.
        calls: The gradients of each call of the cycle.
        dtype: That of sums and means; the optimizer's own by default.
    """
    sums = accumulators(optimizer, held)
    if not sums:
        return list(calls[0])
    starts = [torch.zeros_like(total, dtype=dtype) for total in sums]
    return list(map(_mean, starts, zip(*calls, strict=True)))


def _mean(total: torch.Tensor, grads: Sequence[torch.Tensor]) -> torch.Tensor:
    for count, grad in enumerate(grads, start=1):
        rule = Rule.of(begin_sum if count == 1 else accumulate)
        divisor = float(count) if count == len(grads) else 1.0
        numbers = {"scale": 1.0, "divisor": divisor}
        (total,) = interpret(rule, {}, (total, grad), numbers)
    return total


def accumulators(optimizer: Any, held: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The sums of a cycle's gradients; none if each gradient is a step."""
    if optimizer.gradient_accumulation_steps is None:
        return []
    entries = [optimizer._entry(handle_of(variable)) for variable in held]
    return [entry.slots[ACCUMULATOR].detach() for entry in entries]


def overwrites(optimizer: Any) -> bool:
    """Whether the next step makes variables their averages, as every so many do."""
    frequency = optimizer._settings.ema_overwrite_frequency
    return frequency is not None and (int(optimizer.iterations) + 1) % frequency == 0


def overwritten(optimizer: Any, new: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Variable and slots after a step, given what its rule made of them."""
    if not overwrites(optimizer):
        return list(new)
    slots = dict(zip(optimizer.active_slots(), new[1:], strict=True))
    var = slots[EMA].to(new[0].dtype)
    if LOW_PRECISION_COPY in slots:
        slots[LOW_PRECISION_COPY] = var.to(slots[LOW_PRECISION_COPY].dtype)
    return [var, *slots.values()]


class Reference:
    """Float64 copies of variables and slots, which the interpreter updates.

    What is stored in 16 bits is rounded once a step, and which neighbour it becomes
    may hang on the last bit of float32: from there on two right runs differ by whole
    steps of that type. So the rounding is looked at in each step, and the reference
    goes on from what the optimizer has stored.

    Attributes:
        worst: Largest error so far, as a share of the largest element of a kind
            (variables, or a slot of all of them), beyond one rounding.

    Args:
        optimizer: A built optimizer.
        held: Its variables.

    Raises:
        NotApplicableError: If averages move in every call of a cycle.
    """

    def __init__(self, optimizer: Any, held: Sequence[torch.Tensor]) -> None:
        if optimizer.use_ema and optimizer.gradient_accumulation_steps is not None:
            raise NotApplicableError(
                "with gradient_accumulation_steps averages move apart from the rule"
            )
        self._optimizer = optimizer
        self._held = list(held)
        self.worst = 0.0
        self._state = self._stored()

    def _member(self, variable: torch.Tensor) -> Member:
        return member_of(self._optimizer, variable)

    def _stored(self) -> list[list[torch.Tensor]]:
        tensors_of = (self._member(v).tensors for v in self._held)
        return [[t.detach().double() for t in tensors] for tensors in tensors_of]

    def follow(self, calls: Sequence[Sequence[torch.Tensor]]) -> None:
        """Give the optimizer the gradients of a cycle, and take the same step.

        Args:
            calls: The gradients of each call, in any dtype.
        """
        optimizer, held = self._optimizer, self._held
        for grads in calls[:-1]:
            optimizer.apply_gradients(zip(grads, held, strict=True))
        grads = transformed(optimizer, self._means(calls), held)
        new = [
            self._ruled(variable, state, grad)
            for variable, state, grad in zip(held, self._state, grads, strict=True)
        ]
        is_average = overwrites(optimizer)
        optimizer.apply_gradients(zip(calls[-1], held, strict=True))
        self._settle(new, is_average)

    def _means(self, calls: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """Float64 gradients, rounded before the rule only where the optimizer does."""
        optimizer, held = self._optimizer, self._held
        if optimizer.gradient_transformers:  # they see what they know
            return means_of(optimizer, held, calls)
        if any(t.itemsize == 2 for t in accumulators(optimizer, held)):
            return [grad.double() for grad in means_of(optimizer, held, calls)]
        wide = [[grad.double() for grad in grads] for grads in calls]
        return means_of(optimizer, held, wide, torch.float64)

    def _ruled(
        self, variable: torch.Tensor, state: Sequence[torch.Tensor], grad: torch.Tensor
    ) -> list[torch.Tensor]:
        member = self._member(variable)
        scalars, tensors = numbers_of(self._optimizer, member), (*state, grad.double())
        return list(interpret(member.rule, {}, tensors, scalars, member.layouts))

    def _settle(self, wide: list[list[torch.Tensor]], is_average: bool) -> None:
        """Compare with what was stored, and go on from there."""
        stored, allowed = self._stored(), list[list[torch.Tensor]]()
        members = [self._member(v) for v in self._held]
        for member, new, ours in zip(members, wide, stored, strict=True):
            if is_average:
                self._overwrite(member, new, ours)
            allowed.append(_roundings(member, new))
        joined = map(_joined, (stored, wide, allowed))
        self.worst = max(self.worst, *map(error, *joined))
        self._state = [
            [
                kept if t.itemsize == 2 else now
                for t, kept, now in zip(member.tensors, ours, new, strict=True)
            ]
            for member, ours, new in zip(members, stored, wide, strict=True)
        ]

    def _overwrite(
        self, member: Member, new: list[torch.Tensor], stored: list[torch.Tensor]
    ) -> None:
        """A variable becomes the average as stored, and its copy follows it."""
        names = ["", *self._optimizer.active_slots()]
        kept = [
            ours if t.itemsize == 2 else now
            for t, ours, now in zip(member.tensors, stored, new, strict=True)
        ]
        new[0] = kept[names.index(EMA)]
        if LOW_PRECISION_COPY in names:
            var = stored[0] if member.var.itemsize == 2 else new[0]
            new[names.index(LOW_PRECISION_COPY)] = var


def _joined(state: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """All variables as one tensor, and likewise each slot.

    A number that happens to be near zero is then measured beside the others.
    """
    return [
        torch.cat([t.reshape(-1) for t in kind]) for kind in zip(*state, strict=True)
    ]


def _roundings(member: Member, exact: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """How far one rounding to the type of storage may move each number.

    Neighbours of x are at most eps·|x| apart, and below the smallest normal number
    eps times that. To nearest is half of it at most, by chance all of it.
    """
    names, moves = member.rule.outputs, list[torch.Tensor]()
    for name, tensor, value in zip(names, member.tensors, exact, strict=True):
        numbers = torch.finfo(tensor.dtype)
        share = 1.0 if name in member.rounded else 0.5
        share = share if tensor.itemsize == 2 else 0.0
        size = value.abs().clamp(min=numbers.smallest_normal)
        moves.append(share * numbers.eps * size)
    return moves


def has_kernel(member: Member, gradient: torch.dtype) -> bool:
    """Whether a compiled kernel updates a member, not the interpreter."""
    return compile_rule(member.key(gradient)).backend == "c"


def is_exact(member: Member) -> bool:
    """Whether kernel and interpreter promise the same bits: no exp, log or pow."""
    nodes = member.program().trace.graph.nodes
    on_tensors = [n for n in nodes if n.op == "call_function"]
    on_tensors = [n for n in on_tensors if space_of(n) != Space.SCALAR]
    operations = [operation_of(n) for n in on_tensors]
    return all(op is None or op.is_exact for op in operations)
