"""Launch a rule on one variable: the whole of it, or some of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from thalweg.compiler import Rule, interpret
from thalweg.state import IndexedSlices
from thalweg.step.batch import flush
from thalweg.step.device_single import launch_on_device
from thalweg.step.group import Member
from thalweg.step.row_updates import RowMode, RowUpdate
from thalweg.step.rows import launch_row_updates
from thalweg.step.single import launcher_of

__all__ = ["launch_dense", "launch_rows"]


def launch_dense(
    rule: Rule,
    flags: Mapping[str, bool],
    tensors: Sequence[torch.Tensor],
    scalars: Mapping[str, float],
    layouts: Sequence[str] = (),
) -> None:
    """Apply a rule to whole tensors.

    Args:
        rule: The rule.
        flags: Value of each of its flags.
        tensors: Variable, slots and gradient; variable and slots are written.
        scalars: A number for each of its scalars; others are ignored.
        layouts: For each slot "like", "row" or "scalar"; all "like" by default.
    """
    flush()
    numbers = {name: scalars[name] for name in rule.scalars}
    given = tensors, tuple(numbers.values())
    if not layouts and (
        launcher_of(rule, flags).launch(*given) or launch_on_device(rule, flags, *given)
    ):
        return
    with torch.no_grad():
        new = interpret(rule, flags, tensors, numbers, layouts)
        for old, value in zip(tensors, new, strict=False):
            old.copy_(value.reshape(old.shape))


def launch_rows(
    rule: Rule,
    flags: Mapping[str, bool],
    tensors: Sequence[torch.Tensor],
    slices: IndexedSlices,
    scalars: Mapping[str, float],
    mode: RowMode,
    layouts: Sequence[str] = (),
) -> None:
    """Apply a rule to the rows that a sparse gradient names.

    Args:
        rule: The rule.
        flags: Value of each of its flags.
        tensors: Variable and slots; their named rows are written.
        slices: The gradient, whose indices are in range.
        scalars: A number for each of its scalars; others are ignored.
        mode: ``"sum"`` adds the gradients of a row up, in order of appearance, and
            applies the rule once; ``"sequence"`` applies it to one after the other.
        layouts: For each slot "like" or "row"; all "like" by default.
    """
    flush()
    pairs = tuple(sorted(flags.items()))
    member = Member(rule, tuple(tensors), tuple(layouts), 0, pairs)
    values = {name: np.array([scalars[name]]) for name in rule.scalars}
    launch_row_updates([RowUpdate(member, slices, mode)], values)
