"""The rule of an optimizer, evaluated in float64 beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from thalweg.compiler import compile_rule, interpret
from thalweg.compiler.graph import Space, operation_of, space_of
from thalweg.gradients import clip_by_global_norm, clip_by_norm, clip_by_value
from thalweg.state import handle_of
from thalweg.step import (
    CLIPVALUE,
    EMA,
    GRADIENT_SCALE,
    LOW_PRECISION_COPY,
    Member,
)

__all__ = [
    "Reference",
    "has_kernel",
    "is_exact",
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


def overwritten(optimizer: Any, new: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Variable and slots after a step, given what its rule made of them.

    Every ``ema_overwrite_frequency`` steps the variable becomes its average.
    """
    frequency = optimizer._settings.ema_overwrite_frequency
    if frequency is None or (int(optimizer.iterations) + 1) % frequency:
        return list(new)
    slots = dict(zip(optimizer.active_slots(), new[1:], strict=True))
    var = slots[EMA].to(new[0].dtype)
    if LOW_PRECISION_COPY in slots:
        slots[LOW_PRECISION_COPY] = var.to(slots[LOW_PRECISION_COPY].dtype)
    return [var, *slots.values()]


class Reference:
    """Float64 copies of variables and slots, which the interpreter updates.

    Args:
        optimizer: A built optimizer; its numbers are read, nothing else.
        held: Its variables.
    """

    def __init__(self, optimizer: Any, held: Sequence[torch.Tensor]) -> None:
        self._optimizer = optimizer
        self._held = list(held)
        self._dtypes = [[t.dtype for t in self._tensors(v)] for v in held]
        self.state = [[t.detach().double() for t in self._tensors(v)] for v in held]

    def _tensors(self, variable: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return member_of(self._optimizer, variable).tensors

    def step(self, grads: Sequence[torch.Tensor]) -> None:
        """Follow the step that the optimizer is about to take.

        Where a tensor is kept in a half-precision type, the result is rounded to it,
        once for each step; all arithmetic is in float64.

        Args:
            grads: The gradients, in any dtype.
        """
        if not self._optimizer.gradient_transformers:  # else they see what they know
            grads = [grad.double() for grad in grads]
        for number, grad in enumerate(transformed(self._optimizer, grads, self._held)):
            member = member_of(self._optimizer, self._held[number])
            scalars = numbers_of(self._optimizer, member)
            tensors = (*self.state[number], grad.double())
            new = interpret(member.rule, {}, tensors, scalars, member.layouts)
            new, dtypes = overwritten(self._optimizer, new), self._dtypes[number]
            self.state[number] = [
                t.to(dtype).double() if dtype.itemsize == 2 else t
                for t, dtype in zip(new, dtypes, strict=True)
            ]

    def ours(self) -> list[list[torch.Tensor]]:
        """What the optimizer has where `state` has the reference."""
        return [[t.detach() for t in self._tensors(v)] for v in self._held]


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
