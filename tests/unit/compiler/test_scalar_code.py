"""The scalars of a row are evaluated as the interpreter evaluates them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from thalweg.compiler import APPLY, Rule
from thalweg.compiler.interpret import Interpreter, program_of
from thalweg.compiler.registers import Recipe
from thalweg.compiler.scalar_code import ScalarCode


def rule(var: Any, m: Any, grad: Any, *, lr: Any, beta: Any, step: Any) -> Any:
    alpha = lr * math.sqrt(1 - beta**step) / (1 - 0.5 * beta)
    is_late = step > 5
    return torch.where(is_late, var - alpha * grad, var * (step - 1)), m + beta


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [1.0, 7.0, math.inf])
def test_numbers_are_the_interpreters(kind: torch.dtype, step: float) -> None:
    program = program_of(Rule.of(rule), ())
    dtypes = (kind,) * 3
    scalars = Recipe(program, dtypes).scalars
    compute = np.dtype(str(kind).removeprefix("torch."))
    known = {"lr": 1e-3, "beta": 0.9, "step": step, APPLY: 1.0}
    row = np.array([known.get(name, math.nan) for name in program.columns.names])
    with np.errstate(all="ignore"):
        found = ScalarCode(program, scalars, compute)(row)
    assert found is not None
    wanted = Interpreter(program, dtypes).rounded(known)
    for position, node in enumerate(scalars):
        expected = wanted[node].item()
        if isinstance(expected, bool):
            assert found.truths[position] == expected
        else:
            assert found.values[position] == expected or math.isnan(expected)


def test_a_row_that_does_not_apply_has_no_numbers() -> None:
    program = program_of(Rule.of(rule), ())
    code = ScalarCode(program, [], np.dtype(np.float32))
    assert code(np.zeros(len(program.columns))) is None
