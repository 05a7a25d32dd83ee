"""Checks of numbers: against float64, kernel against interpreter, rows against all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thalweg.compiler import interpret
from thalweg.state import IndexedSlices, Variable
from thalweg.testing.reference import (
    Reference,
    accumulators,
    has_kernel,
    is_exact,
    means_of,
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
BOUND = 2e-5
"""Largest error as a share of the largest element, after each of 20 steps.

Arithmetic is in float32 for float32 and bfloat16; a rounding to 16 bits that lies
within its own bound counts as none, see `Reference`.
"""


def float32(subject: Subject) -> str:
    """Twenty steps in float32 stay close to the rule in float64."""
    return _close_to_float64(subject, torch.float32)


def bfloat16(subject: Subject) -> str:
    """Twenty steps in bfloat16 stay close to the rule, rounded once a step."""
    return _close_to_float64(subject, torch.bfloat16)


def _close_to_float64(subject: Subject, dtype: torch.dtype) -> str:
    if not subject.is_by_hand:
        worst = _worst_by_rule(subject, dtype)
    elif dtype == torch.float32:
        worst = max(map(error, *_both_by_hand(subject)))
    else:
        raise NotApplicableError("the class updates by hand, without a rule")
    name = str(dtype).removeprefix("torch.")
    text = f"largest error {worst:.1e} of the largest element, at most {BOUND:.1e}"
    if dtype == torch.bfloat16:
        text += ", beside one rounding a step"
    expect(worst <= BOUND, f"{name} differs from float64: {text}")
    return text


def _worst_by_rule(subject: Subject, dtype: torch.dtype) -> float:
    held, optimizer = variables(dtype), subject.make()
    optimizer.build(held)
    reference, cycle = Reference(optimizer, held), subject.cycle
    for number in range(STEPS):
        calls = [gradients(number * cycle + i, dtype) for i in range(cycle)]
        reference.follow(calls)
    return reference.worst


def _both_by_hand(subject: Subject) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    narrow, wide = variables(torch.float32), variables(torch.float64)
    calls = range(STEPS * subject.cycle)
    train(subject.make(), narrow, calls)
    train(subject.make(), wide, calls)
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
    held, optimizer, cycle = variables(dtype), subject.make(), subject.cycle
    train(optimizer, held, range(4 * cycle - 1))
    members = [member_of(optimizer, v) for v in held]
    calls = [gradients(step, dtype) for step in range(3 * cycle, 4 * cycle)]
    grads = means_of(optimizer, held, calls)
    if not has_kernel(members[0], grads[0].dtype):
        raise NotApplicableError("there is no C compiler: the interpreter runs")
    exact = all(map(is_exact, members)) and not subject.has_clips
    wanted: list[torch.Tensor] = []
    for member, grad in zip(members, transformed(optimizer, grads, held), strict=True):
        scalars, tensors = numbers_of(optimizer, member), (*member.tensors, grad)
        scalars |= member.rounding_columns
        layout = member.layouts, member.rounded
        new = interpret(member.rule, {}, tensors, scalars, *layout)
        wanted += overwritten(optimizer, new)
    optimizer.apply_gradients(zip(calls[-1], held, strict=True))
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
    held, optimizer = variables(), subject.make()
    optimizer.build(held)
    policy = optimizer._settings.sparse_update
    if policy == "keras":
        raise NotApplicableError('sparse_update="keras" differs from class to class')
    if any(t.itemsize == 2 for t in accumulators(optimizer, held)):
        raise NotApplicableError("rows and sums of a cycle are rounded to 16 bits")
    table = held[3]
    before = table.detach().clone()
    whole = policy == "exact" or (
        not subject.is_by_hand and member_of(optimizer, table).reduces_whole
    )
    try:
        for grad in _sparse(subject):
            optimizer.apply_gradients([(grad, table)])
    except NotImplementedError as error:
        raise NotApplicableError("the class takes no sparse gradients") from error
    if whole:
        dense, exact = _dense_run(subject, before), subject.cycle == 1
        what = "a sparse step and a dense one"
        _expect_alike(what, [table.detach()], [dense], exact)
        return "equals the dense step with zero rows, as every row must move"
    return _expect_rows(subject, table.detach(), before)


def _expect_rows(subject: Subject, table: torch.Tensor, before: torch.Tensor) -> str:
    touched = slices(0).sum_duplicates().indices
    untouched = [i for i in range(len(table)) if i not in touched.tolist()]
    expect_same_bits("a row without a gradient", table[untouched], before[untouched])
    # Of all rows, because a rule may read the shape of the variable.
    dense = _dense_run(subject, before)
    # A cycle divides the rows that it gathers and adds them then; sums are added first.
    exact = not subject.is_by_hand and subject.cycle == 1
    _expect_alike("rows and dense update", [table[touched]], [dense[touched]], exact)
    how = "bit for bit" if exact else "up to last bits"
    return f"{how}, duplicates summed; other rows untouched"


def _dense_run(subject: Subject, start: torch.Tensor) -> torch.Tensor:
    variable, optimizer = Variable(start, name="embedding.weight"), subject.make()
    optimizer.build([*variables()[:3], variable])
    for grad in _sparse(subject):
        optimizer.apply_gradients([(grad.to_dense(), variable)])
    return variable.detach()


def _sparse(subject: Subject) -> list[IndexedSlices]:
    return [slices(call) for call in range(3 * subject.cycle)]
