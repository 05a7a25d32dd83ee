"""The reference: means of cycles, and what a rounding may move."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import thalweg as tw
from tests.unit.testing import broken
from thalweg.optimizers.declarations import ACCUMULATOR
from thalweg.testing.reference import Reference, means_of
from thalweg.testing.subject import error, gradients, variables


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "slot_dtypes", ["variable", {ACCUMULATOR: "float32"}, {ACCUMULATOR: "bfloat16"}]
)
def test_means_have_the_bits_of_the_optimizer(
    dtype: torch.dtype, slot_dtypes: Any
) -> None:
    held = variables(dtype)
    optimizer = tw.optimizers.SGD(
        gradient_accumulation_steps=3, slot_dtypes=slot_dtypes
    )
    optimizer.build(held)
    calls = [gradients(number, dtype) for number in range(3)]
    means = means_of(optimizer, held, calls)
    for grads in calls:
        optimizer.apply_gradients(zip(grads, held, strict=True))
    for variable, mean in zip(held, means, strict=True):
        assert torch.equal(mean, optimizer._entry(variable).slots[ACCUMULATOR])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"slot_dtypes": "variable"},
        {"slot_dtypes": {"m": "float16"}},
        {"stochastic_rounding": True, "slot_dtypes": "variable"},
        {"gradient_accumulation_steps": 3, "slot_dtypes": "variable"},
    ],
    ids=lambda arguments: ",".join(arguments) or "defaults",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_float32_is_left_beyond_one_rounding(
    dtype: torch.dtype, arguments: dict[str, Any]
) -> None:
    held, optimizer = variables(dtype), broken.Momentum(**arguments)
    optimizer.build(held)
    reference, cycle = (
        Reference(optimizer, held),
        arguments.get("gradient_accumulation_steps", 1),
    )
    for step in range(5):
        numbers = range(step * cycle, (step + 1) * cycle)
        reference.follow([gradients(number, dtype) for number in numbers])
    assert reference.worst < 1e-6
    assert int(optimizer.iterations) == 5


def test_an_error_of_what_is_stored_is_seen() -> None:
    held, optimizer = variables(torch.bfloat16), broken.Truncating()
    optimizer.build(held)
    reference = Reference(optimizer, held)
    reference.follow([gradients(0, torch.bfloat16)])
    assert 2.0**-10 < reference.worst < 2.0**-7


def test_an_error_is_counted_beyond_what_is_allowed() -> None:
    ours, theirs = torch.tensor([1.5, 4.0]), torch.tensor([1.0, 4.0])
    assert error(ours, theirs) == 0.125
    assert error(ours, theirs, torch.tensor([0.25, 0.0])) == 0.0625
    assert error(ours, theirs, torch.tensor([1.0, 0.0])) == 0.0
    assert error(ours * float("nan"), theirs, 1.0) == float("inf")
