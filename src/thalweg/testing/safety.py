"""Checks of bad input: it stays where it is, or is refused before anything moves."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from thalweg.state import IndexedSlices, Variable
from thalweg.testing.report import CheckFailedError, NotApplicableError
from thalweg.testing.subject import (
    Subject,
    expect_same_bits,
    expect_same_state,
    gradients,
    state_of,
    train,
    variables,
)

__all__ = ["nonfinite_stays_local", "refused_step_changes_nothing"]


def nonfinite_stays_local(subject: Subject) -> str:
    """A gradient with NaN or inf does not touch the other variables."""
    made = subject.make()
    if made.global_clipnorm is not None:
        raise NotApplicableError("a global norm joins all gradients")
    if made._settings.nonfinite != "off" or made.gradient_transformers:
        raise NotApplicableError("the whole step depends on it, as was asked for")
    plain = variables()
    train(subject.make(), plain, range(3 * subject.cycle))
    for bad in (float("nan"), float("inf"), -float("inf")):
        held, optimizer = variables(), subject.make()
        for step in range(3 * subject.cycle):
            grads = gradients(step)
            grads[0].reshape(-1)[3] = bad
            optimizer.apply_gradients(zip(grads, held, strict=True))
        what = f"{bad} in the gradient of one variable changes another"
        expect_same_bits(what, held[1:], plain[1:])
    return "NaN, inf and -inf stay in their variable"


def refused_step_changes_nothing(subject: Subject) -> str:
    """A step that is refused has written nothing."""
    held, optimizer = variables(), subject.make()
    train(optimizer, held, range(2 * subject.cycle))
    before = state_of(optimizer, held)
    steps = _refused_steps(held)
    for name, pairs in steps.items():
        _expect_refused(optimizer, name, pairs)
        what = f"a step with {name} was refused, but changed something"
        expect_same_state(what, state_of(optimizer, held), before)
    return ", ".join(steps)


def _refused_steps(held: list[Variable]) -> dict[str, list[Any]]:
    good = gradients(2)
    last, slices = held[-1], gradients(3)[-1]
    out_of_range = IndexedSlices(slices[:1], torch.tensor([len(slices)]), slices.shape)
    first = (good[0], held[0])
    return {
        "a wrong shape": [first, (torch.zeros(2, 2), held[1])],
        "a complex gradient": [first, (good[1].to(torch.complex64), held[1])],
        "a variable twice": [first, first],
        "no gradient": [(None, v) for v in held],
        "an index out of range": [first, (out_of_range, last)],
    }


def _expect_refused(optimizer: Any, name: str, pairs: list[Any]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.apply_gradients(pairs)
    except (TypeError, ValueError, IndexError, RuntimeError):
        return
    raise CheckFailedError(f"a step with {name} was not refused")
