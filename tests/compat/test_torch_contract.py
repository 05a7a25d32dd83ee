"""What trainers expect of a `torch.optim.Optimizer`, line by line."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from thalweg import optim

EVERY = (
    *("ASGD", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam"),
    *("RAdam", "RMSprop", "Rprop", "SparseAdam", "LAMB", "Lion", "RowWiseAdagrad"),
)


def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
    )


def batch() -> torch.Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(2))


def loss_of(module: torch.nn.Module) -> torch.Tensor:
    return module(batch()).square().mean()


def train(module: torch.nn.Module, optimizer: Any, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(module).backward()
        optimizer.step()


def same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    return all(map(torch.equal, one.parameters(), two.parameters()))


# -- ways in ------------------------------------------------------------------


def test_ways_to_pass_parameters() -> None:
    one = model()
    names = [name for name, _ in one.named_parameters()]
    for given in (one, one.named_parameters(), [{"params": one.named_parameters()}]):
        optimizer = optim.AdamW(given)
        assert optimizer.param_groups[0]["param_names"] == names
    assert "param_names" not in optim.AdamW(one.parameters()).param_groups[0]
    grouped = optim.AdamW([{"params": one[0], "lr": 0.1}, {"params": one[2]}])
    assert [len(group["params"]) for group in grouped.param_groups] == [2, 2]


def test_a_group_without_names_is_refused_beside_named_ones() -> None:
    optimizer = optim.AdamW(model())
    with pytest.raises(ValueError, match="with/without names"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    assert len(optimizer.param_groups) == 1


def test_a_group_is_added_at_any_time() -> None:
    one, two = model(), model()
    homes = (torch.optim, one), (optim, two)
    pair = [home.AdamW(module[0].parameters()) for home, module in homes]
    for optimizer, module in zip(pair, (one, two), strict=True):
        train(module, optimizer, 2)
        optimizer.add_param_group({"params": module[2].parameters(), "lr": 0.1})
        train(module, optimizer, 3)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


# -- closures and hooks -------------------------------------------------------


def test_a_closure_runs_once_with_gradients() -> None:
    one = model()
    optimizer = optim.AdamW(one)
    calls = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(one)
        loss.backward()
        calls.append(torch.is_grad_enabled())
        return loss

    with torch.no_grad():
        first = optimizer.step(closure)
        second = optimizer.step(closure=closure)
    assert calls == [True, True]
    assert second.item() < first.item()
    assert optimizer.step(None) is None


def test_step_hooks() -> None:
    one = model()
    optimizer = optim.AdamW(one)
    seen: list[str] = []
    added = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("global before")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global after")),
    ]

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        seen.append("before")
        return args, {**kwargs, "closure": lambda: 7.0}

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    assert optimizer.step() == 7.0
    for handle in added:
        handle.remove()
    assert seen == ["global before", "before", "after", "global after"]


def test_a_profile_shows_the_step() -> None:
    one = model()
    optimizer = optim.AdamW(one)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        train(one, optimizer, 1)
    names = {event.key for event in profile.key_averages()}
    assert {"Optimizer.step#AdamW.step", "Optimizer.zero_grad#AdamW.zero_grad"} <= names


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_reset(set_to_none: bool) -> None:
    one, two = model(), model()
    pair = torch.optim.AdamW(one.parameters()), optim.AdamW(two.parameters())
    for _ in range(3):
        for optimizer, module in zip(pair, (one, two), strict=True):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss_of(module).backward()
            optimizer.step()
    pair[1].zero_grad(set_to_none=set_to_none)
    grads = [parameter.grad for parameter in two.parameters()]
    if set_to_none:
        assert grads == [None] * 4
    else:
        assert all(g is not None and not g.any() for g in grads)


# -- mixed precision ----------------------------------------------------------


def test_a_scaler_unscales_and_skips() -> None:
    one, two = model(), model()
    scaled, plain = optim.AdamW(one.parameters()), optim.AdamW(two.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for number in range(4):
        scaled.zero_grad()
        scaler.scale(loss_of(one)).backward()
        if number == 2:
            next(one.parameters()).grad[0, 0] = math.inf  # type: ignore[index]
        scaler.step(scaled)
        scaler.update()
        if number != 2:
            train(two, plain, 1)
    assert scaler.get_scale() == 512.0
    assert float(scaled.state_dict()["state"][0]["step"]) == 3.0
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


# -- copies -------------------------------------------------------------------


def test_a_copy_has_all_public_attributes() -> None:
    optimizer = optim.AdamW(model())
    train(model(), optimizer, 1)

    def public(held: Any) -> set[str]:
        return {name for name in held.__dict__ if not name.startswith("_")}

    assert public(copy.deepcopy(optimizer)) == public(optimizer)


def test_a_subclass_that_never_ran_the_constructor() -> None:
    inner = optim.AdamW(one := model())

    class Wrapper:
        """As trainers wrap an optimizer: its class, without its constructor."""

        def __init__(self, optimizer: Any) -> None:
            self._optimizer = optimizer
            name = f"Wrapped{type(optimizer).__name__}"
            self.__class__ = type(name, (Wrapper, type(optimizer)), {})

        def __getattr__(self, item: str) -> Any:
            return getattr(self._optimizer, item)

        def step(self, closure: Any = None) -> Any:
            return self._optimizer.step(closure)

    wrapped: Any = Wrapper(inner)
    assert isinstance(wrapped, torch.optim.Optimizer)
    assert isinstance(wrapped, optim.AdamW)
    train(one, wrapped, 3)
    assert wrapped.state_dict()["state"].keys() == {0, 1, 2, 3}
    assert wrapped.param_groups is inner.param_groups
    scheduler = torch.optim.lr_scheduler.StepLR(inner, 1)
    train(one, wrapped, 1)
    scheduler.step()
    assert wrapped.param_groups[0]["lr"] == pytest.approx(1e-4)
    assert wrapped.last_step_applied
    saved = copy.deepcopy(inner.state_dict())
    train(one, wrapped, 2)
    wrapped.load_state_dict(saved)
    assert float(inner.state_dict()["state"][0]["step"]) == 4.0


# -- distributed checkpoints --------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_saving_before_the_first_step_changes_no_bit(name: str) -> None:
    options: dict[str, Any] = {}
    if name == "SGD":
        options = {"momentum": 0.9, "dampening": 0.3}
    make = getattr(optim, name)
    asked, left_alone = model(), model()
    one = make(asked.parameters(), **options)
    two = make(left_alone.parameters(), **options)
    get_optimizer_state_dict(asked, one)
    train(asked, one)
    train(left_alone, two)
    assert same(asked, left_alone)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("flat", [True, False])
def test_state_dicts_by_name_continue_to_the_bit(name: str, flat: bool) -> None:
    settings = StateDictOptions(flatten_optimizer_state_dict=flat)
    options: dict[str, Any] = {"momentum": 0.9} if name == "SGD" else {}
    make = getattr(optim, name)
    first = model()
    optimizer = make(first.parameters(), **options)
    train(first, optimizer)
    saved = copy.deepcopy(get_optimizer_state_dict(first, optimizer, options=settings))
    second = copy.deepcopy(first)
    other = make(second.parameters(), **options)
    set_optimizer_state_dict(second, other, saved, options=settings)
    train(first, optimizer)
    train(second, other)
    assert same(first, second)


# -- torch.compile ------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_a_compiled_step(name: str) -> None:
    one, two = model(), model()
    plain, other = (getattr(optim, name)(m.parameters(), lr=0.01) for m in (one, two))
    compiled = torch.compile(other.step, backend="eager")
    for _ in range(3):
        for module, step in ((one, plain.step), (two, compiled)):
            module.zero_grad()
            loss_of(module).backward()
            step()
        plain.param_groups[0]["lr"] *= 0.5
        other.param_groups[0]["lr"] *= 0.5
    assert same(one, two)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_training_step() -> None:
    one, two = model(), model()
    pair = optim.AdamW(one.parameters()), optim.AdamW(two.parameters())

    def step(module: torch.nn.Module, optimizer: Any) -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(module)
        loss.backward()
        optimizer.step()
        return loss

    compiled = torch.compile(step, backend="eager")
    for _ in range(4):
        assert torch.equal(step(one, pair[0]), compiled(two, pair[1]))
    assert same(one, two)


@pytest.mark.filterwarnings("ignore")
def test_compiling_before_a_scheduler_is_made() -> None:
    one = model()
    optimizer = optim.AdamW(one.parameters(), lr=0.1)
    compiled = torch.compile(optimizer.step, backend="eager")
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    before = loss_of(one).item()
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(one).backward()
        compiled()
        optimizer.step()
        scheduler.step()
    assert loss_of(one).item() < before
