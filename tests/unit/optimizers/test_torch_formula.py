"""Classes that can be switched to torch's formula: configurations, rows, resuming."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.optimizers.torch_formula import TORCH_FORMULA, has_torch_formula
from thalweg.testing import check

SWITCHED = [
    cls
    for name in tw.optimizers.names()
    if has_torch_formula(cls := type(tw.optimizers.get(name)))
]
# Each class in the forms whose formula is another one.
FORMS: list[tuple[Any, dict[str, Any]]] = [
    (cls, {"torch_formula": True, **momentum, **flags})
    for cls in SWITCHED
    for momentum in (
        [{"momentum": 0.9}] if "momentum" in cls._hypers_declared else [{}]
    )
    for flags in [{}] + [{n: True} for n in cls._flags_declared if n != TORCH_FORMULA]
]
IDS = [f"{c.__name__}-{'-'.join(f)}" for c, f in FORMS]
every_form = pytest.mark.parametrize(("cls", "form"), FORMS, ids=IDS)
SHAPE = (6, 2)


def slices(step: int) -> tw.IndexedSlices:
    values = torch.randn(3, 2, generator=torch.Generator().manual_seed(step))
    return tw.IndexedSlices(values, torch.tensor([4, 1, 4]), SHAPE)


def table() -> tw.Variable:
    generator = torch.Generator().manual_seed(7)
    return tw.Variable(torch.randn(SHAPE, generator=generator), name="table")


def train(optimizer: Any, variable: Any, steps: range, form: str = "slices") -> None:
    for step in steps:
        gradient: Any = slices(step)
        if form == "dense":
            gradient = gradient.to_dense()
        optimizer.apply_gradients([(gradient, variable)])


def test_these_can_be_switched() -> None:
    names = [cls.__name__ for cls in SWITCHED]
    assert names == ["Adam", "Adamax", "AdamW", "RMSprop", "SGD"]


@pytest.mark.parametrize("cls", SWITCHED)
def test_a_configuration_is_keras_unless_it_is_on(cls: Any) -> None:
    assert TORCH_FORMULA not in cls().get_config()
    assert cls.from_config(cls().get_config()).torch_formula is False
    config = cls(torch_formula=True).get_config()
    assert config[TORCH_FORMULA] is True
    assert cls.from_config(config).torch_formula is True
    with pytest.raises(TypeError, match="torch_formula: expected True or False"):
        cls(torch_formula="yes")


@every_form
def test_the_contract_is_kept(cls: Any, form: dict[str, Any]) -> None:
    report = check(cls, learning_rate=0.05, **form)
    report.raise_if_failed()
    assert report.skipped == []


@every_form
def test_it_is_another_formula(cls: Any, form: dict[str, Any]) -> None:
    epsilon = {"epsilon": 0.01} if "epsilon" in cls._hypers_declared else {}
    found = []
    for is_on in (False, True):
        variable = table()
        optimizer = cls(**epsilon, **{**form, TORCH_FORMULA: is_on})
        for step in range(3):
            optimizer.learning_rate = 0.1 / (step + 1)
            train(optimizer, variable, range(step, step + 1), "dense")
        found.append(variable.detach().clone())
    assert not torch.equal(*found)


@every_form
@pytest.mark.parametrize("policy", ["rows", "keras", "exact"])
def test_sparse_gradients(cls: Any, form: dict[str, Any], policy: str) -> None:
    """``"rows"`` is the dense update of the touched rows, ``"exact"`` that of all."""
    optimizer = cls(sparse_update=policy, **form)
    mode = optimizer.keras_sparse if policy == "keras" else policy
    variable, whole = table(), table()
    rows = tw.Variable(whole.detach()[[4, 1]])
    by_rows, by_whole = cls(**form), cls(**form)
    train(optimizer, variable, range(4))
    train(by_whole, whole, range(4), "dense")
    for step in range(4):
        summed = slices(step).to_dense()[[4, 1]]
        by_rows.apply_gradients([(summed, rows)])
    if mode == "exact":
        assert torch.equal(variable, whole)
    else:
        assert mode == "rows"
        assert torch.equal(variable.detach()[[4, 1]], rows.detach())
        others = [0, 2, 3, 5]
        assert torch.equal(variable.detach()[others], table().detach()[others])


@pytest.mark.parametrize("centered", [False, True])
def test_rmsprop_without_momentum_is_the_same_in_both(centered: bool) -> None:
    found = []
    for is_on in (False, True):
        variable = table()
        optimizer = tw.optimizers.RMSprop(
            0.1, epsilon=0.01, centered=centered, torch_formula=is_on
        )
        optimizer.build([variable])
        assert optimizer.keras_sparse == "decay"
        train(optimizer, variable, range(4), "dense")
        found.append(variable.detach().clone())
    assert torch.equal(*found)


@every_form
def test_a_checkpoint_keeps_it(
    cls: Any, form: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    variable, optimizer = table(), cls(**form)
    train(optimizer, variable, range(3))
    path = tw.Checkpoint(table=variable, optimizer=optimizer).save(tmp_path / "c")
    train(optimizer, variable, range(3, 6))
    plain = {name: value for name, value in form.items() if name != TORCH_FORMULA}
    fresh, resumed = tw.Variable(torch.zeros(SHAPE), name="table"), cls(**plain)
    with caplog.at_level(logging.WARNING):
        status = tw.Checkpoint(table=fresh, optimizer=resumed).restore(path)
    status.assert_consumed()
    assert "torch_formula: True in the checkpoint, False in the object" in caplog.text
    assert resumed.torch_formula is True
    train(resumed, fresh, range(3, 6))
    assert torch.equal(fresh, variable)


@every_form
def test_it_can_be_switched_between_steps(cls: Any, form: dict[str, Any]) -> None:
    """A plan that was made for one formula is not used for the other."""
    switched, fresh = table(), table()
    optimizer = cls(**{**form, TORCH_FORMULA: False})
    optimizer.build([switched])
    train(optimizer, switched, range(2), "dense")
    with torch.no_grad():
        switched.copy_(fresh)
        for weight in optimizer.weights:
            weight.zero_()
    optimizer.torch_formula = True
    other = cls(**form)
    train(optimizer, switched, range(3), "dense")
    train(other, fresh, range(3), "dense")
    assert torch.equal(switched, fresh)
