"""Checks of numbers: against float64, kernel against interpreter, rows against all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thalweg.compiler import interpret
from thalweg.state import IndexedSlices, Variable
from thalweg.testing.reference import (
    Reference,
    has_kernel,
    is_exact,
    member_of,
    numbers_of,
    overwritten,
    transformed,
)
from thalweg.testing.report import NotApplicableError, expect
from thalweg.testing.subject import (
    Subject,
    error,
    expect_close,
    expect_same_bits,
    gradients,
    slices,
    train,
    variables,
)

__all__ = ["float32", "bfloat16", "kernel_equals_interpreter", "rows_equal_dense"]

STEPS = 20
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 2.0**-6}
"""Largest error as a share of the largest element, after 20 steps."""


def float32(subject: Subject) -> str:
    """Twenty steps in float32 stay close to the rule in float64."""
    return _close_to_float64(subject, torch.float32)


def bfloat16(subject: Subject) -> str:
    """Twenty steps in bfloat16 stay close to the rule, rounded once a step."""
    return _close_to_float64(subject, torch.bfloat16)


def _close_to_float64(subject: Subject, dtype: torch.dtype) -> str:
    if subject.is_by_hand:
        if dtype != torch.float32:
            raise NotApplicableError("the class updates by hand, without a rule")
        ours, theirs = _both_by_hand(subject)
    else:
        ours, theirs = _both_by_rule(subject, dtype)
    worst = max(map(error, ours, theirs))
    bound = BOUNDS[dtype]
    name = str(dtype).removeprefix("torch.")
    text = f"largest error {worst:.1e} of the largest element, at most {bound:.1e}"
    expect(worst <= bound, f"{name} differs from float64: {text}")
    return text


def _both_by_rule(
    subject: Subject, dtype: torch.dtype
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    held, optimizer = variables(dtype), subject.make()
    optimizer.build(held)
    reference = Reference(optimizer, held)
    for step in range(STEPS):
        grads = gradients(step, dtype)
        reference.step(grads)
        optimizer.apply_gradients(zip(grads, held, strict=True))
    return _joined(reference.ours()), _joined(reference.state)


def _joined(state: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """All variables as one tensor, and likewise each slot.

    A number that happens to end near zero is then measured beside the others.
    """
    return [
        torch.cat([t.reshape(-1) for t in kind]) for kind in zip(*state, strict=True)
    ]


def _both_by_hand(subject: Subject) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    narrow, wide = variables(torch.float32), variables(torch.float64)
    train(subject.make(), narrow, range(STEPS))
    train(subject.make(), wide, range(STEPS))
    return [v.detach() for v in narrow], [v.detach() for v in wide]


def kernel_equals_interpreter(subject: Subject) -> str:
    """A compiled step gives the interpreter's bits, in float32, float64, bfloat16."""
    if subject.is_by_hand:
        raise NotApplicableError("the class updates by hand, without a rule")
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    exact = [_kernel_equals_interpreter(subject, dtype) for dtype in dtypes]
    names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
    how = "bit for bit" if all(exact) else "up to last bits"
    return f"{how} in {names}"


def _kernel_equals_interpreter(subject: Subject, dtype: torch.dtype) -> bool:
    held, optimizer = variables(dtype), subject.make()
    train(optimizer, held, range(3))
    members = [member_of(optimizer, v) for v in held]
    if not has_kernel(members[0], dtype):
        raise NotApplicableError("there is no C compiler: the interpreter runs")
    exact = all(map(is_exact, members)) and not subject.has_clips
    grads = gradients(3, dtype)
    wanted: list[torch.Tensor] = []
    for member, grad in zip(members, transformed(optimizer, grads, held), strict=True):
        scalars, tensors = numbers_of(optimizer, member), (*member.tensors, grad)
        new = interpret(member.rule, {}, tensors, scalars, member.layouts)
        wanted += overwritten(optimizer, new)
    optimizer.apply_gradients(zip(grads, held, strict=True))
    ours = [t.detach() for member in members for t in member.tensors]
    _expect_alike(f"kernel and interpreter in {dtype}", ours, wanted, exact)
    return exact


def _expect_alike(
    what: str,
    ours: Sequence[torch.Tensor],
    theirs: Sequence[torch.Tensor],
    exact: bool,
) -> None:
    (expect_same_bits if exact else expect_close)(what, ours, theirs)


def rows_equal_dense(subject: Subject) -> str:
    """A sparse gradient does to its rows what a dense one does, and nothing else."""
    if subject.has_clips:
        raise NotApplicableError("clips act before duplicate rows are summed")
    optimizer = subject.make()
    policy = optimizer._settings.sparse_update
    if policy == "keras":
        raise NotApplicableError('sparse_update="keras" differs from class to class')
    table = _embedding(variables())
    before = table.detach().clone()
    optimizer.build([*variables()[:3], table])
    whole = policy == "exact" or (
        not subject.is_by_hand and member_of(optimizer, table).reduces_whole
    )
    try:
        for step in range(3):
            optimizer.apply_gradients([(slices(step), table)])
    except NotImplementedError as error:
        raise NotApplicableError("the class takes no sparse gradients") from error
    if whole:
        dense = _dense_run(subject, before, [s.to_dense() for s in _three()])
        _expect_alike("a sparse step and a dense one", [table.detach()], [dense], True)
        return "equals the dense step with zero rows, as every row must move"
    return _expect_rows(subject, table.detach(), before)


def _expect_rows(subject: Subject, table: torch.Tensor, before: torch.Tensor) -> str:
    touched = _three()[0].sum_duplicates().indices
    untouched = [i for i in range(len(table)) if i not in touched.tolist()]
    expect_same_bits("a row without a gradient", table[untouched], before[untouched])
    # Of all rows, because a rule may read the shape of the variable.
    dense = _dense_run(subject, before, [s.to_dense() for s in _three()])
    exact = not subject.is_by_hand
    _expect_alike("rows and dense update", [table[touched]], [dense[touched]], exact)
    how = "bit for bit" if exact else "up to last bits"
    return f"{how}, duplicates summed; other rows untouched"


def _dense_run(
    subject: Subject, start: torch.Tensor, grads: Sequence[torch.Tensor]
) -> torch.Tensor:
    variable, optimizer = Variable(start, name="embedding.weight"), subject.make()
    optimizer.build([*variables()[:3], variable])
    for grad in grads:
        optimizer.apply_gradients([(grad, variable)])
    return variable.detach()


def _three() -> list[IndexedSlices]:
    return [slices(step) for step in range(3)]


def _embedding(held: Sequence[Variable]) -> Variable:
    return held[3]
