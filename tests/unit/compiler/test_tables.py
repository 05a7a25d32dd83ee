"""Without a compiler: rows gathered together give the bits of rows one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg import rules
from thalweg.compiler import (
    APPLY,
    ROW_LENGTH,
    KernelKey,
    RowTables,
    Rule,
    interpret,
    tables,
)
from thalweg.compiler.interpret import Interpreter, program_for
from thalweg.compiler.tables import TableInterpreter

F, B, D = torch.float32, torch.bfloat16, torch.float64
INDICES = [[7, 2, 7, 7, 0, 2, 8, 7], [3]]
NUMBERS = [{"lr": 0.1, "momentum": 0.9}, {"lr": 0.5, "momentum": 0.25}]


def row_wise(var: Any, accum: Any, grad: Any, *, lr: Any) -> Any:
    accum = accum + torch.mean(grad * grad, dim=-1, keepdim=True)
    return var - lr * grad / torch.sqrt(accum), accum


RULES: dict[str, tuple[Any, dict[str, bool], str]] = {
    "momentum": (rules.momentum, {"use_nesterov": True}, "like"),
    "row-wise": (row_wise, {}, "row"),
}


def variables(layout: str, dtypes: tuple[torch.dtype, ...]) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    made: list[list[torch.Tensor]] = []
    for indices in INDICES:
        slot = (9, 3) if layout == "like" else (9,)
        shapes = [(9, 3), slot, (len(indices), 3)]
        drawn = [torch.rand(shape, generator=generator) for shape in shapes]
        made.append([t.to(d) for t, d in zip(drawn, dtypes, strict=True)])
    return made


def run(key: KernelKey, own: list[list[torch.Tensor]], apply: list[float]) -> None:
    program = program_for(key)
    rows, columns = RowTables(), program.columns
    scalars = np.zeros((len(own), len(columns.index)))
    for number, (var, *_) in enumerate(own):
        place = {"variable": number, "scalar_row": number}
        indices = torch.tensor(INDICES[number])
        rows.append(indices, num_rows=len(var), width=var.shape[1], **place)
        known = {**NUMBERS[number], APPLY: apply[number], ROW_LENGTH: 3.0}
        scalars[number] = [known.get(name, 0.0) for name in columns.index]
    pointers = np.array([[t.data_ptr() for t in tensors] for tensors in own])
    TableInterpreter(Interpreter(program, key.dtypes), key.mode).run(
        [rows.items.numpy(), pointers, scalars],
        [rows.starts.numpy(), rows.sources.numpy()],
    )


def one_by_one(
    key: KernelKey, tensors: list[torch.Tensor], indices: list[int], numbers: Mapping
) -> None:
    """The same by whole-tensor calls, a gradient at a time."""
    *written, gradients = tensors
    for row in sorted(set(indices)):
        own = [gradients[i] for i, index in enumerate(indices) if index == row]
        if key.mode == "sum" and len(own) > 1:
            wide = [g.to(torch.promote_types(F, g.dtype)) for g in own]
            total = wide[0]
            for gradient in wide[1:]:
                total = total + gradient
            own = [total]
        for gradient in own:
            views = [t[row : row + 1] for t in written]
            given = [*views, gradient[None]]
            layouts = key.layouts[-1:]
            new = interpret(key.rule, dict(key.flags), given, numbers, layouts)
            for view, value in zip(views, new, strict=True):
                view.copy_(value)


@pytest.mark.parametrize("most", [1, 3, 1024])
@pytest.mark.parametrize("mode", ["sum", "sequence"])
@pytest.mark.parametrize("dtypes", [(F, F, F), (D, D, D), (F, F, B)])
@pytest.mark.parametrize("name", RULES)
def test_rows_together_are_rows_one_by_one(
    name: str, dtypes: Any, mode: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_MOST_ROWS", most)
    function, flags, layout = RULES[name]
    rule, pairs = Rule.of(function), tuple(flags.items())
    key = KernelKey(rule, pairs, dtypes, mode, (layout,))
    together, single = variables(layout, dtypes), variables(layout, dtypes)
    run(key, together, [1.0, 1.0])
    for own, indices, numbers in zip(single, INDICES, NUMBERS, strict=True):
        one_by_one(key, own, indices, numbers)
    for some, others in zip(together, single, strict=True):
        for tensor, other in zip(some, others, strict=True):
            assert torch.equal(tensor, other)


def test_a_variable_that_is_not_applied_stays() -> None:
    function, flags, layout = RULES["momentum"]
    key = KernelKey(
        Rule.of(function), tuple(flags.items()), (F, F, F), "sum", (layout,)
    )
    own, before = variables(layout, (F, F, F)), variables(layout, (F, F, F))
    run(key, own, [0.0, 1.0])
    assert torch.equal(own[0][0], before[0][0])
    changed = (own[1][0] != before[1][0]).any(dim=1)
    assert changed.nonzero().flatten().tolist() == INDICES[1]


def test_rows_without_elements_are_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THALWEG_COMPILER", "0")
    held = [tw.Variable(torch.ones(shape)) for shape in ((3, 0), (0,), (2, 2))]
    optimizer = tw.optimizers.RowWiseAdagrad(0.1)
    for _ in range(2):
        optimizer.apply_gradients([(torch.ones_like(v), v) for v in held])
    assert bool((held[2] < 1.0).all())
    assert [tuple(v.shape) for v in held] == [(3, 0), (0,), (2, 2)]
