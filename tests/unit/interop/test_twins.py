"""Every twin goes on with torch's numbers, in each of its forms, in and out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.optim.twins import assert_alike, default_dtype
from thalweg.errors import CheckpointError
from thalweg.interop import load_torch_state, torch_state
from thalweg.interop.twins import _TWINS, Twin
from thalweg.optimizers.torch_formula import TORCH_FORMULA, has_torch_formula

BEFORE, AFTER = 50, 100
BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-5}


def defaults_of(twin: Twin) -> dict[str, Any]:
    return getattr(torch.optim, twin.name)([torch.zeros(1)]).defaults


def forms(twin: Twin) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """torch's options, and those that choose the same form here."""
    momenta = (0.0, 0.9) if "momentum" in twin.options else (None,)
    decays = (0.0, 0.1) if "decoupled_weight_decay" in defaults_of(twin) else (None,)
    flags = product((False, True), repeat=len(twin.flags))
    for momentum, decay, values in product(momenta, decays, flags):
        shared = dict(zip(twin.flags, values, strict=True))
        if shared.get("nesterov") and not momentum:
            continue
        theirs, ours = dict(shared), dict(shared)
        if momentum is not None:
            theirs["momentum"], ours["momentum"] = momentum, momentum and 0.5
        if decay is not None:
            theirs["weight_decay"], ours["weight_decay"] = decay, 0.3
            theirs["decoupled_weight_decay"] = True
        yield theirs, ours


def cases() -> Iterator[Any]:
    for cls, twin in _TWINS.items():
        for theirs, ours in forms(twin):
            if twin.name == "AdamW":
                theirs.pop("decoupled_weight_decay")
            chosen = [f"{n}={v}" for n, v in theirs.items() if v and n in ours]
            yield pytest.param(cls, theirs, ours, id="-".join([twin.name, *chosen]))


every_form = pytest.mark.parametrize(("cls", "theirs", "ours"), list(cases()))


class Weights(nn.Module):
    """Parameters without a layer."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for name, shape in {"a": (4, 3), "b": (5,), "c": ()}.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            setattr(self, name, nn.Parameter(value.to(dtype)))


def keras_step(optimizer: Any, model: nn.Module) -> None:
    optimizer.apply_gradients([(p.grad, p) for p in model.parameters()])


def torch_step(optimizer: Any, model: nn.Module) -> None:
    del model
    optimizer.step()


Trained = tuple[Callable[[Any, nn.Module], None], Any, nn.Module]


def go_on(steps: range, *runs: Trained, rate: Callable[[int], float] | None) -> None:
    """Take the same steps with all optimizers."""
    for number in steps:
        generator = torch.Generator().manual_seed(number)
        for same in zip(*(model.parameters() for *_, model in runs), strict=True):
            noise = torch.randn(same[0].shape, generator=generator, dtype=torch.float64)
            for parameter in same:
                grad = noise.to(parameter.dtype) + 0.1 * parameter.detach()
                parameter.grad = grad
        for step, optimizer, model in runs:
            if rate is not None and step is torch_step:
                optimizer.param_groups[0]["lr"] = rate(number)
            elif rate is not None:
                optimizer.learning_rate = rate(number)
            step(optimizer, model)


def assert_near(one: nn.Module, other: nn.Module) -> None:
    dtype = next(one.parameters()).dtype
    assert_alike(list(one.parameters()), list(other.parameters()), BOUNDS[dtype])


def there_and_back(
    cls: Any,
    options: tuple[dict[str, Any], dict[str, Any]],
    dtype: torch.dtype,
    rate: Callable[[int], float] | None = None,
) -> None:
    """Import after some steps, go on, export, go on."""
    name, (theirs, ours) = _TWINS[cls].name, options
    first = Weights(dtype)
    before = getattr(torch.optim, name)(first.named_parameters(), lr=0.01, **theirs)
    go_on(range(BEFORE), (torch_step, before, first), rate=None)
    second, optimizer = copy.deepcopy(first), cls(**ours)
    load_torch_state(optimizer, copy.deepcopy(before.state_dict()), second)
    middle = (keras_step, optimizer, second)
    steps = range(BEFORE, BEFORE + AFTER)
    go_on(steps, (torch_step, before, first), middle, rate=rate)
    assert_near(second, first)
    third = copy.deepcopy(second)
    after = getattr(torch.optim, name)(third.named_parameters(), lr=7.0)
    after.load_state_dict(torch_state(optimizer, second))
    steps = range(steps.stop, steps.stop + BEFORE)
    go_on(steps, middle, (torch_step, after, third), rate=rate)
    assert_near(third, second)


@every_form
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_training_goes_on_with_the_same_numbers(
    cls: Any, theirs: dict[str, Any], ours: dict[str, Any], dtype: torch.dtype
) -> None:
    with default_dtype(dtype):
        there_and_back(cls, (theirs, ours), dtype)


def falling(step: int) -> float:
    """A rate for each step."""
    return 0.01 * 0.97 ** (step - BEFORE)


@every_form
def test_and_with_a_rate_that_changes(
    cls: Any, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    with default_dtype(torch.float64):
        there_and_back(cls, (theirs, ours), torch.float64, falling)


@pytest.mark.parametrize("cls", _TWINS)
def test_an_import_turns_torchs_formula_on(cls: Any) -> None:
    model, optimizer = Weights(torch.float32), cls()
    saved = getattr(torch.optim, _TWINS[cls].name)(model.parameters()).state_dict()
    load_torch_state(optimizer, saved, model)
    assert getattr(optimizer, TORCH_FORMULA, None) == (has_torch_formula(cls) or None)


@pytest.mark.parametrize("cls", _TWINS)
def test_a_refused_import_does_not(cls: Any) -> None:
    model, optimizer = Weights(torch.float32), cls()
    name = _TWINS[cls].name
    theirs = getattr(torch.optim, name)(model.parameters(), maximize=True)
    with pytest.raises(CheckpointError, match="maximize=False; got True"):
        load_torch_state(optimizer, theirs.state_dict(), model)
    assert not getattr(optimizer, TORCH_FORMULA, False)
