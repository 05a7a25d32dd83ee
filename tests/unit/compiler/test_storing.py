"""What is stored of an output: rounded to nearest, or by chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from thalweg.compiler import KernelKey, Rule
from thalweg.compiler.interpret import program_for, program_of
from thalweg.compiler.rounding import FIRST_INDEX, ROUNDING_KEY
from thalweg.compiler.storing import round_to_nearest, rounder

HALF = torch.bfloat16


def both(var: Any, m: Any, grad: Any, *, step: Any) -> Any:
    return var - grad, m + grad * step


RULE = Rule.of(both)
NUMBERS = {"step": 3.0, ROUNDING_KEY: 9.0, FIRST_INDEX: 0.0}


def test_without_names_everything_goes_to_nearest() -> None:
    assert rounder(program_of(RULE, ()), NUMBERS, np.arange(3)) is round_to_nearest


def test_only_the_named_outputs_are_left_to_chance() -> None:
    key = KernelKey(RULE, (), (HALF,) * 3, rounding=("m",))
    convert = rounder(program_for(key), NUMBERS, np.arange(500))
    values = torch.full((500,), 1.003)
    assert convert(0, values, HALF).unique().numel() == 1
    assert convert(1, values, HALF).unique().numel() == 2
    assert convert(1, values.double(), HALF).equal(convert(1, values, HALF))


def test_one_number_stands_for_all_elements() -> None:
    key = KernelKey(RULE, (), (HALF,) * 3, rounding=("var",))
    convert = rounder(program_for(key), NUMBERS, np.arange(500))
    one, all_ = torch.full((1,), 1.003), torch.full((500,), 1.003)
    assert convert(0, one, HALF).equal(convert(0, all_, HALF))


def test_from_float64_a_half_is_rounded_by_way_of_float32() -> None:
    value = torch.tensor([1 + 2**-8 + 2**-40], dtype=torch.float64)
    assert round_to_nearest(0, value, HALF).equal(value.float().to(HALF))
