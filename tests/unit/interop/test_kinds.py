"""State of another kind of optimizer is told by its keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.errors import CheckpointError
from thalweg.interop import convert, load_torch_state
from thalweg.interop.kinds import KINDS, check_kind, misfit
from thalweg.interop.twins import _TWINS

# Kinds whose keys are the same; a group of today's says which of them it is.
ALIKE = {"Adam": {"AdamW"}, "AdamW": {"Adam"}}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "Adam": [{}, {"amsgrad": True}],
    "AdamW": [{}, {"amsgrad": True}],
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
    "RMSprop": [
        {"momentum": m, "centered": c} for m in (0.0, 0.9) for c in (False, True)
    ],
}


def classes_of(name: str) -> list[Any]:
    """torch's class, and this package's."""
    found = (getattr(torch.optim, name, None), getattr(tw.optim, name, None))
    return [cls for cls in found if cls is not None]


def made(cls: Any, steps: int, **options: Any) -> torch.optim.Optimizer:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = cls([weight], lr=0.1, **options)
    for _ in range(steps):
        weight.grad = torch.ones(2, 2)
        if cls is torch.optim.SparseAdam:
            weight.grad = weight.grad.to_sparse(1)
        optimizer.step()
    return optimizer


def saved(name: str) -> Iterator[dict[str, Any]]:
    """State dicts of a kind: fresh and trained, in each form, of each class."""
    for cls in classes_of(name):
        for options in OPTIONS.get(name, [{}]):
            for steps in (0, 2):
                yield made(cls, steps, **options).state_dict()


@pytest.mark.parametrize("name", KINDS)
def test_the_table_says_what_the_classes_write(name: str) -> None:
    kind = KINDS[name]
    for cls in classes_of(name):
        # This package's own classes have no switches of implementation.
        is_torch = cls.__module__.startswith("torch.")
        defaults = made(cls, 0).defaults.keys()
        assert kind.options <= defaults <= kind.options | kind.later.keys()
        assert not is_torch or defaults == kind.options | kind.later.keys()
    found: set[str] = set()
    for content in saved(name):
        for state in content["state"].values():
            written = {key for key, value in state.items() if value is not None}
            assert kind.slots <= written <= kind.slots | kind.may | {"step"}
            found |= written
    assert found - {"step"} >= kind.slots


@pytest.mark.parametrize("name", KINDS)
def test_a_state_fits_its_kind_and_no_other(name: str) -> None:
    for content in saved(name):
        groups, state = content["param_groups"], content["state"]
        fitting = {kind for kind in KINDS if not misfit(kind, groups, state)}
        assert fitting == {name, *ALIKE.get(name, set())}


@pytest.mark.parametrize("cls", _TWINS)
@pytest.mark.parametrize("name", KINDS)
def test_an_import_refuses_other_kinds(name: str, cls: Any) -> None:
    twin = _TWINS[cls]
    if name in {twin.name, *ALIKE.get(twin.name, set())}:
        return
    for content in saved(name):
        weight, optimizer = torch.nn.Parameter(torch.ones(2, 2)), cls()
        before = optimizer.hyperparameters()
        with pytest.raises(CheckpointError, match=f"the state of {twin.name}; got "):
            load_torch_state(optimizer, content, [weight])
        assert optimizer.hyperparameters() == before
        assert list(optimizer.slot_variables()) == []


@pytest.mark.parametrize("target", KINDS)
def test_a_conversion_refuses_other_kinds(target: str, tmp_path: Path) -> None:
    model, file = torch.nn.Linear(2, 2, bias=False), tmp_path / "optimizer.pt"
    for cls in classes_of(target):
        for name in KINDS.keys() - {target, *ALIKE.get(target, set())}:
            optimizer = cls(model.parameters(), lr=0.3)
            before = optimizer.state_dict()
            for content in saved(name):
                torch.save(content, file)
                with pytest.raises(CheckpointError, match="of the same kind"):
                    convert(file, tmp_path / "c", model, optimizer)
            assert optimizer.state_dict() == before
    assert not (tmp_path / "c").exists()


# What torch 1.12 wrote, and what 2.0 wrote besides.
MOMENTS = "lr betas eps weight_decay"
VERSIONS: dict[str, tuple[str, str]] = {
    "Adam": (f"{MOMENTS} amsgrad maximize foreach capturable", "differentiable fused"),
    "AdamW": (f"{MOMENTS} amsgrad maximize foreach capturable", "differentiable fused"),
    "Adamax": (f"{MOMENTS} foreach maximize", "differentiable"),
    "NAdam": (f"{MOMENTS} momentum_decay foreach", "differentiable"),
    "RAdam": (f"{MOMENTS} foreach", "differentiable"),
    "SGD": (
        "lr momentum dampening weight_decay nesterov maximize foreach",
        "differentiable",
    ),
    "RMSprop": (
        "lr momentum alpha eps centered weight_decay foreach maximize",
        "differentiable",
    ),
    "Adagrad": (
        "lr lr_decay eps weight_decay initial_accumulator_value foreach maximize",
        "differentiable",
    ),
    "Adadelta": ("lr rho eps weight_decay foreach maximize", "differentiable"),
    "Rprop": ("lr etas step_sizes foreach maximize", "differentiable"),
    "ASGD": ("lr lambd alpha t0 weight_decay foreach maximize", "differentiable"),
}
# And before 1.12, where more kinds are alike.
OLDEST: list[tuple[str, str]] = [
    (f"{MOMENTS} amsgrad", "Adam AdamW"),
    (f"{MOMENTS} amsgrad maximize", "Adam AdamW"),
    ("lr momentum dampening weight_decay nesterov", "SGD"),
    ("lr momentum dampening weight_decay", "SGD"),
    ("lr alpha eps weight_decay momentum centered", "RMSprop"),
    (MOMENTS, "Adam AdamW Adamax RAdam LAMB"),
    (f"{MOMENTS} correct_bias initial_lr", "Adam AdamW Adamax RAdam LAMB"),
]
USERS = ("initial_lr", "lr_mult", "name", "base_momentum", "max_momentum")


def fitting(options: Any, state: Any) -> set[str]:
    groups = [dict.fromkeys(options, 0)]
    return {kind for kind in KINDS if not misfit(kind, groups, state)}


@pytest.mark.parametrize("added", [(), USERS], ids=["plain", "users"])
@pytest.mark.parametrize("name", VERSIONS)
def test_what_older_versions_wrote_fits(name: str, added: tuple[str, ...]) -> None:
    oldest, later = (options.split() for options in VERSIONS[name])
    state = {0: {"step": 3, **dict.fromkeys(KINDS[name].slots, 0)}}
    for options in (oldest, [*oldest, *later]):
        alike = {name, *ALIKE.get(name, set())}
        assert fitting([*options, *added], state) == alike
        fresh = {"Adamax"} if name == "RAdam" else set()  # told by tensors alone
        assert fitting([*options, *added], {}) == alike | fresh


@pytest.mark.parametrize("name", KINDS)
def test_any_switch_may_be_missing(name: str) -> None:
    """As torch's own description of its optimizers asks for."""
    kind = KINDS[name]
    for switch in ("foreach", "maximize", "capturable", "differentiable", "fused"):
        options = (kind.options | kind.later.keys()) - {switch}
        assert name in fitting(options, {})


@pytest.mark.parametrize(("options", "names"), OLDEST)
def test_the_oldest_groups_fit(options: str, names: str) -> None:
    assert fitting(options.split(), {}) == set(names.split())


def test_tensors_tell_what_old_groups_do_not() -> None:
    groups = [dict.fromkeys(KINDS["Adamax"].options, 0)]
    state = {0: {"step": 1, "exp_avg": 0, "exp_inf": 0}}
    assert misfit("Adamax", groups, state) == ""
    assert misfit("RAdam", groups, state) == "state ['exp_inf'] of 0"
    state = {0: {"step": 1, "exp_avg": 0}}
    assert misfit("RAdam", groups, state) == "state without ['exp_avg_sq'] of 0"


def test_a_penalty_tells_adam_from_adamw() -> None:
    for decay in (0.0, 0.1):
        content = made(torch.optim.Adam, 2, weight_decay=decay).state_dict()
        found = misfit("AdamW", content["param_groups"], content["state"])
        assert found == ("a group of Adam, with a penalty of 0.1" if decay else "")
        content = made(torch.optim.AdamW, 2, weight_decay=decay).state_dict()
        assert misfit("Adam", content["param_groups"], content["state"]) == ""


def test_what_others_add_is_let_be() -> None:
    optimizer = made(torch.optim.SGD, 2, momentum=0.9)
    groups = optimizer.state_dict()["param_groups"]
    groups[0] |= {"initial_lr": 0.1, "rho": 0.05, "adaptive": False}
    state = {0: {"momentum_buffer": torch.ones(2, 2), "old_p": torch.ones(2, 2)}}
    assert misfit("SGD", groups, state) == ""


class Mine(torch.optim.Adam):
    """A class of somebody else, which may keep what it likes."""


def test_of_other_classes_only_the_options_count() -> None:
    optimizer = Mine([torch.nn.Parameter(torch.ones(2))])
    content = optimizer.state_dict()
    state = {0: {"exp_inf": torch.ones(2)}}
    check_kind("load", optimizer, content["param_groups"], state)
    del content["param_groups"][0]["betas"]
    with pytest.raises(ValueError, match=r"the state of Mine; got a group without"):
        check_kind("load", optimizer, content["param_groups"], state)
