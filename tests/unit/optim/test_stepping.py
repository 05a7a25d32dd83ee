"""Steps while groups, parameters, gradients and state change around them."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from tests.unit.optim.twins import (
    OWN,
    TWINS,
    assert_alike,
    parameters,
    run,
    set_gradients,
    twin,
)
from thalweg import optim
from thalweg.optim import stepping


def prepared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a step was prepared parameter by parameter."""
    calls: list[int] = []
    prepare: Any = stepping._prepare

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return prepare(*arguments)

    monkeypatch.setattr(stepping, "_prepare", counted)
    return calls


def pair_of(name: str = "AdamW", **options: Any) -> tuple[Any, Any, Any, Any]:
    theirs, own = parameters(), parameters()
    torch_class, own_class = twin(name)
    return torch_class(theirs, **options), own_class(own, **options), theirs, own


def test_a_step_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = prepared(monkeypatch)
    held = parameters()
    optimizer = optim.AdamW(held)
    for number in (0, 1, 2):
        set_gradients(number, held)
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.5
    assert len(calls) == 1


def test_sets_of_used_parameters_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = prepared(monkeypatch)
    torch_one, own_one, theirs, own = pair_of()
    for number in range(12):
        for held in (theirs, own):
            for i, parameter in enumerate(held):
                used = (number + i) % 2 == 0 or i == 0
                parameter.grad = torch.full_like(parameter, number) if used else None
        torch_one.step()
        own_one.step()
    assert_alike(own, theirs)
    # Two sets; steps of a parameter differ from those of the first one from then on.
    assert len(calls) <= 4


def test_no_gradient_at_all_is_no_step() -> None:
    held = parameters()
    optimizer = optim.AdamW(held)
    optimizer.step()
    assert not optimizer.state
    assert torch.equal(held[0], parameters()[0])


def test_freezing_and_unfreezing() -> None:
    torch_one, own_one, theirs, own = pair_of("SGD", momentum=0.9)
    for number in range(9):
        set_gradients(number, theirs, own)
        for held in (theirs, own):
            held[2].requires_grad_(number % 3 != 1)
            if number % 3 == 1:
                held[2].grad = None
        torch_one.step()
        own_one.step()
    assert_alike(own, theirs)


def test_data_is_replaced() -> None:
    torch_one, own_one, theirs, own = pair_of()

    def replace(number: int) -> None:
        for held in (theirs, own):
            held[0].data = held[0].data.clone() * (1 + number % 2)

    run((torch_one, own_one), (theirs, own), 10, replace)
    assert_alike(own, theirs)


def test_parameters_are_swapped_in_place_before_the_first_step() -> None:
    held = parameters()
    optimizer = optim.AdamW([torch.nn.Parameter(torch.empty(1)) for _ in held])
    torch_one = torch.optim.AdamW(theirs := parameters())
    optimizer.param_groups[0]["params"][:] = held
    run((torch_one, optimizer), (theirs, held), 5)
    assert_alike(held, theirs)


def test_parameters_are_swapped_in_place_after_steps() -> None:
    held = parameters()
    optimizer = optim.AdamW(held)
    run([optimizer], [held], 3)
    new = torch.nn.Parameter(held[0].detach().clone())
    optimizer.param_groups[0]["params"][0] = new
    optimizer.state[new] = optimizer.state.pop(held[0])
    fresh = parameters()
    torch_one = torch.optim.AdamW(fresh)
    run([torch_one], [fresh], 3)
    swapped = [new, *held[1:]]
    set_gradients(4, fresh, swapped)
    torch_one.step()
    optimizer.step()
    assert_alike(swapped, fresh)


def test_a_parameter_moves_to_another_group() -> None:
    theirs, own = parameters(), parameters()
    pair = [
        c([{"params": h[:2]}, {"params": h[2:], "lr": 0.5}])
        for c, h in zip(twin("AdamW"), (theirs, own), strict=True)
    ]
    run(pair, (theirs, own), 3)
    for optimizer in pair:
        first, second = optimizer.param_groups
        second["params"].insert(0, first["params"].pop())
    run(pair, (theirs, own), 3)
    assert_alike(own, theirs)


@pytest.mark.parametrize("change", ["clear", "replace", "slot", "step", "number"])
def test_state_is_edited_by_hand(change: str) -> None:
    torch_one, own_one, theirs, own = pair_of("Adam", lr=0.1)
    run((torch_one, own_one), (theirs, own), 3)
    for optimizer, held in ((torch_one, theirs), (own_one, own)):
        state = optimizer.state
        if change == "clear":
            state.clear()
        elif change == "replace":
            optimizer.state = type(state)(dict)
        elif change == "slot":
            state[held[0]]["exp_avg"] = torch.zeros_like(held[0])
        elif change == "step":
            state[held[0]]["step"] = torch.tensor(100.0)
        else:
            state[held[0]]["step"].fill_(50.0)
    run((torch_one, own_one), (theirs, own), 3)
    assert_alike(own, theirs)


def test_a_slot_of_another_shape_is_refused() -> None:
    held = parameters()
    optimizer = optim.Adam(held)
    run([optimizer], [held], 1)
    optimizer.state[held[0]]["exp_avg"] = torch.zeros(3)
    before = [p.detach().clone() for p in held]
    set_gradients(1, held)
    with pytest.raises(ValueError, match="exp_avg"):
        optimizer.step()
    assert all(map(torch.equal, before, held))


def test_choices_are_changed_in_place() -> None:
    torch_one, own_one, theirs, own = pair_of("SGD")
    for options in (
        {"momentum": 0.9},
        {"nesterov": True},
        {"weight_decay": 0.1},
        {"maximize": True},
        {"momentum": 0.0, "nesterov": False},
    ):
        for optimizer in (torch_one, own_one):
            optimizer.param_groups[0].update(options)
        run((torch_one, own_one), (theirs, own), 4)
    assert_alike(own, theirs)


def test_a_frozen_plan_keeps_no_parameter_alive() -> None:
    held = parameters()
    optimizer = optim.AdamW(held)
    run([optimizer], [held], 2)
    gc.collect()
    assert all(p.grad is not None for p in held if p.ndim)
    gradient = held[0].grad
    assert gradient is not None
    held[0].grad = None
    gc.collect()
    assert len(gc.get_referrers(gradient)) <= 1


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_first_step_in_inference_mode_can_go_on_outside(name: str) -> None:
    held = torch.nn.Parameter(torch.ones(2))
    held.grad = torch.ones(2)
    optimizer = getattr(optim, name)([held], lr=0.5)
    with torch.inference_mode():
        optimizer.step()
    optimizer.step()
    assert torch.allclose(held.detach(), torch.zeros(2), atol=1e-6)
    assert not any(v.is_inference() for v in optimizer.state[held].values())


def test_writes_are_visible_to_autograd() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = optim.SGD([weight], lr=0.1)
    product = (weight * weight).sum()
    weight.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("name", [*TWINS, *OWN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_parameters_have_float32_state(name: str, dtype: torch.dtype) -> None:
    held = parameters(dtype=dtype)
    optimizer = getattr(optim, name)(held, lr=0.01)
    run([optimizer], [held], 3)
    for state in optimizer.state.values():
        for key, value in state.items():
            counts = key in {"step", "mu_product", "eta", "mu"}
            assert value.dtype == (torch.float64 if counts else torch.float32)
    assert all(p.dtype == dtype and bool(p.isfinite().all()) for p in held)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("variable", torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ({"exp_avg": torch.bfloat16}, torch.bfloat16),
        ({"exp_avg": "bfloat16"}, torch.bfloat16),
        (None, torch.float32),
    ],
)
def test_slot_dtypes(policy: Any, expected: torch.dtype) -> None:
    held = parameters(dtype=torch.bfloat16)
    optimizer = optim.AdamW(held, slot_dtypes=policy)
    run([optimizer], [held], 2)
    assert optimizer.state[held[0]]["exp_avg"].dtype == expected


@pytest.mark.parametrize("has_order", [True, False])
def test_layouts_of_memory(has_order: bool) -> None:
    values = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    own = torch.nn.Parameter(
        values.to(memory_format=torch.channels_last)
        if has_order
        else values.expand(2, 3, 4, 4).clone().transpose(1, 2)
    )
    theirs = torch.nn.Parameter(own.detach().clone())
    pair = torch.optim.AdamW([theirs]), optim.AdamW([own])
    run(pair, ([theirs], [own]), 5)
    assert_alike([own], [theirs])
    assert pair[1].state[own]["exp_avg"].stride() == own.stride()


@pytest.mark.parametrize("name", [*TWINS, *OWN])
def test_parameters_without_elements(name: str) -> None:
    held = parameters(((0,), (3, 0), (2,)))
    optimizer = getattr(optim, name)(held, lr=0.1)
    run([optimizer], [held], 2)
    assert len(optimizer.state_dict()["param_groups"][0]["params"]) == 3


def test_tied_parameters_are_refused_with_advice() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = optim.SGD([weight, weight], lr=0.1)
    weight.grad = torch.ones(3)
    with pytest.raises(ValueError, match="tied variable once"):
        optimizer.step()
    assert torch.equal(weight, torch.ones(3))


def test_a_capture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = optim.SGD([weight], lr=1.0)
    weight.grad = torch.ones(2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="outside the graph"):
        optimizer.step()
    assert weight.tolist() == [1.0, 1.0]


def test_a_representation_names_keywords_beside_those_of_torch() -> None:
    text = repr(optim.AdamW(parameters(), max_grad_norm=1.0, ema_decay=0.5))
    assert text.startswith("AdamW (\nParameter Group 0\n")
    assert text.endswith("max_grad_norm: 1.0\nema_decay: 0.5\n)")
    plain = repr(optim.AdamW(parameters()))
    assert plain == repr(torch.optim.AdamW(parameters()))
