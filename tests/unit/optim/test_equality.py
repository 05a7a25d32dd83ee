"""Fifty steps in float64 give what torch gives, for every twin and option."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.unit.optim.twins import (
    TWINS,
    assert_alike,
    default_dtype,
    parameters,
    run,
    twin,
)

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
        {"weight_decay": 0.1, "maximize": True, "lr": 1e-2},
    ],
    "Adam": [
        {},
        {"lr": 0.1, "eps": 0.1, "betas": (0.5, 0.6)},
        {"weight_decay": 0.1, "maximize": True},
        {"amsgrad": True, "weight_decay": 0.1},
        {"decoupled_weight_decay": True, "weight_decay": 0.1},
        {"fused": True},
        {"foreach": True},
        {"betas": (0.0, 0.99)},
        {"betas": (0.9, 0.0), "amsgrad": True},
    ],
    "AdamW": [
        {},
        {"lr": 0.1, "weight_decay": 0.3, "eps": 1e-3},
        {"amsgrad": True, "maximize": True},
        {"weight_decay": 0.0},
        {"lr": torch.tensor(1e-2, dtype=torch.float64)},
    ],
    "Adamax": [{}, {"weight_decay": 0.1, "maximize": True, "eps": 0.1}],
    "NAdam": [
        {},
        {"weight_decay": 0.1, "momentum_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    ],
    "RAdam": [
        {},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
        {"weight_decay": 0.1, "betas": (0.5, 0.6), "maximize": True},
    ],
    "Adagrad": [
        {},
        {"lr_decay": 0.1, "initial_accumulator_value": 0.1, "weight_decay": 0.1},
        {"maximize": True, "eps": 0.1},
    ],
    "Adadelta": [{}, {"lr": 0.5, "rho": 0.5, "weight_decay": 0.1, "maximize": True}],
    "RMSprop": [
        {},
        {"centered": True, "alpha": 0.9},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"centered": True, "momentum": 0.9, "maximize": True},
    ],
    "ASGD": [{}, {"t0": 10, "lr": 0.1, "lambd": 0.1, "weight_decay": 0.1, "alpha": 1}],
    "Rprop": [{}, {"lr": 0.1, "etas": (0.3, 1.5), "step_sizes": (1e-3, 0.5)}],
}
CASES = [
    pytest.param(name, options, id=f"{name}-{'-'.join(options) or 'default'}")
    for name, every in OPTIONS.items()
    for options in every
]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with default_dtype(torch.float64):
        yield


def test_every_twin_has_cases() -> None:
    assert set(OPTIONS) == set(TWINS)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_fifty_steps_equal_torch(name: str, options: dict[str, Any]) -> None:
    theirs, own = parameters(), parameters()
    torch_class, own_class = twin(name)
    pair = torch_class(theirs, **options), own_class(own, **options)
    run(pair, (theirs, own))
    assert_alike(own, theirs)
    assert_states_alike(*pair)


def assert_states_alike(torch_one: Any, own_one: Any) -> None:
    """The state dicts have the same keys and values."""
    theirs, own = torch_one.state_dict(), own_one.state_dict()
    assert theirs["state"].keys() == own["state"].keys()
    for number, state in theirs["state"].items():
        assert state.keys() == own["state"][number].keys()
        for key, value in state.items():
            ours = torch.as_tensor(own["state"][number][key]).double()
            torch.testing.assert_close(
                ours, torch.as_tensor(value).double(), rtol=1e-11, atol=1e-13
            )
    assert own["param_groups"] == theirs["param_groups"]


@pytest.mark.parametrize("name", TWINS)
def test_groups_equal_torch(name: str) -> None:
    theirs, own = parameters(), parameters()

    def groups(held: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
        quick = {"lr": 0.05, "maximize": True}
        return [{"params": held[:2]}, {"params": held[2:3], **quick}]

    pair = [c(groups(h)) for c, h in zip(twin(name), (theirs, own), strict=True)]
    run(pair, (theirs, own), 10)
    for optimizer, held in zip(pair, (theirs, own), strict=True):
        optimizer.add_param_group({"params": held[3:], "lr": 0.02})
        if "weight_decay" in optimizer.param_groups[0]:
            optimizer.param_groups[0]["weight_decay"] = 0.05
    run(pair, (theirs, own), 40)
    assert_alike(own, theirs)


@pytest.mark.parametrize("name", TWINS)
def test_a_scheduler_equals_torch(name: str) -> None:
    theirs, own = parameters(), parameters()
    pair = [c(h, lr=0.05) for c, h in zip(twin(name), (theirs, own), strict=True)]
    rates = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in pair]
    run(pair, (theirs, own), after=lambda _: [r.step() for r in rates])
    assert_alike(own, theirs)


@pytest.mark.parametrize("name", TWINS)
def test_either_continues_what_the_other_began(name: str) -> None:
    theirs, own = parameters(), parameters()
    options: dict[str, Any] = {"momentum": 0.9} if name == "SGD" else {}
    pair = [c(h, **options) for c, h in zip(twin(name), (theirs, own), strict=True)]
    run(pair, (theirs, own), 7)
    saved = [copy.deepcopy(optimizer.state_dict()) for optimizer in pair]
    crossed = [c(h, **options) for c, h in zip(twin(name), (theirs, own), strict=True)]
    crossed[0].load_state_dict(saved[1])
    crossed[1].load_state_dict(saved[0])
    run(crossed, (theirs, own), 20)
    assert_alike(own, theirs)


@pytest.mark.parametrize("betas", [(0.0, 0.9), (0.9, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "RAdam", "Adamax"])
def test_a_beta_of_0_leaves_nothing_of_the_past(
    name: str, betas: tuple[float, float]
) -> None:
    for cls in twin(name):
        held = torch.nn.Parameter(torch.ones(1))
        optimizer = cls([held], betas=betas)
        for gradient in (1e4, 1e-4):
            held.grad = torch.full((1,), gradient)
            optimizer.step()
        state = optimizer.state[held]
        if betas[0] == 0:
            assert state["exp_avg"] == held.grad
        if betas[1] == 0 and name != "Adamax":
            assert state["exp_avg_sq"] == held.grad * held.grad


def test_a_group_may_damp_nesterov_as_in_torch() -> None:
    theirs, own = parameters(), parameters()
    pair = [
        c([{"params": held, "dampening": 0.5}], momentum=0.9, nesterov=True)
        for c, held in zip(twin("SGD"), (theirs, own), strict=True)
    ]
    run(pair, (theirs, own))
    assert_alike(own, theirs)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_dampening_spares_the_first_gradient_of_each_parameter(momentum: float) -> None:
    theirs, own = parameters(((3,), (2,))), parameters(((3,), (2,)))
    options = {"momentum": momentum, "dampening": 0.5}
    pair = [c(h, **options) for c, h in zip(twin("SGD"), (theirs, own), strict=True)]
    for number in range(6):
        for held in (theirs, own):
            held[0].grad = torch.full((3,), 1.0)
            held[1].grad = torch.full((2,), 2.0) if number > 2 else None
        for optimizer in pair:
            optimizer.step()
    assert_alike(own, theirs)
