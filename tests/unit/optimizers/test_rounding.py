"""The option `stochastic_rounding`: what it does, keeps, takes part in and refuses."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.state import IndexedSlices

HALF = torch.bfloat16
SMALL = 1e-4


def variable(shape: tuple[int, ...] = (40, 6), name: str = "w") -> tw.Variable:
    return tw.Variable(torch.ones(shape, dtype=HALF), name=name)


def gradient(step: int, shape: tuple[int, ...] = (40, 6)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(shape, generator=generator).to(HALF)


def adamw(**options: Any) -> tw.optimizers.AdamW:
    options = {"stochastic_rounding": True, "slot_dtypes": "variable", **options}
    return tw.optimizers.AdamW(1e-3, **options)


def trained(optimizer: Any, steps: int = 5, *, weight: Any = None) -> list[Any]:
    weight = variable() if weight is None else weight
    for step in range(steps):
        optimizer.apply_gradients([(gradient(step), weight)])
    return state_of(optimizer, weight)


def state_of(optimizer: Any, weight: torch.Tensor) -> list[torch.Tensor]:
    slots = [slot for _, _, slot in optimizer.slot_variables()]
    return [t.detach().clone() for t in (weight, *slots)]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_small_updates_survive_on_average() -> None:
    ones = torch.ones(4000, dtype=HALF)
    stalled, moving = (tw.Variable(ones, name=name) for name in "ab")
    nearest = tw.optimizers.SGD(SMALL)
    chance = tw.optimizers.SGD(SMALL, stochastic_rounding=True)
    for _ in range(100):
        nearest.apply_gradients([(ones, stalled)])
        chance.apply_gradients([(ones, moving)])
    assert torch.equal(stalled.detach(), ones)
    expected, unit = 1 - 100 * SMALL, 2**-8
    # Each step moves an element with the chance SMALL / unit by one unit.
    sigma = unit * (100 * (SMALL / unit) / 4000) ** 0.5
    assert abs(moving.detach().double().mean().item() - expected) < 5 * sigma


def test_training_goes_on_where_rounding_to_nearest_stalls() -> None:
    target = torch.linspace(0.5, 1.5, 512)
    losses: dict[bool, float] = {}
    for chance in (False, True):
        weight = tw.Variable(torch.full((512,), 1.0, dtype=HALF), name="w")
        optimizer = tw.optimizers.Adam(2e-4, stochastic_rounding=chance)
        for _ in range(300):
            wrong = weight.detach().float() - target
            optimizer.apply_gradients([(wrong.to(HALF), weight)])
        losses[chance] = (weight.detach().float() - target).square().mean().item()
    start = (1.0 - target).square().mean().item()
    # Below 1 a bfloat16 step is half as long; that alone moves under nearest rounding.
    assert losses[True] < 0.75 * start
    assert losses[True] < 0.9 * losses[False]


def test_a_seed_gives_the_same_run_and_another_seed_another_one() -> None:
    first = trained(adamw(rounding_seed=5))
    assert same(first, trained(adamw(rounding_seed=5)))
    assert not same(first, trained(adamw(rounding_seed=6)))
    assert same(trained(adamw()), trained(adamw(rounding_seed=0)))


def test_variables_of_other_names_are_rounded_by_other_chances() -> None:
    names = "w", "v", None, None
    weights = [variable(name="w") for _ in names]
    for weight, name in zip(weights, names, strict=True):
        tw.state.set_name(weight, name)
    optimizer = adamw()
    for step in range(3):
        pairs = [(gradient(step), weight) for weight in weights]
        optimizer.apply_gradients(pairs)
    for number, weight in enumerate(weights):
        others = weights[number + 1 :]
        assert not any(torch.equal(weight, other) for other in others)


def test_the_order_of_variables_does_not_matter() -> None:
    found: list[torch.Tensor] = []
    for names in ("ab", "ba"):
        weights = {name: variable(name=name) for name in names}
        optimizer = adamw()
        for step in range(3):
            pairs = [(gradient(step), weight) for weight in weights.values()]
            optimizer.apply_gradients(pairs)
        found.append(weights["a"].detach())
    assert torch.equal(*found)


def test_the_option_is_part_of_the_config() -> None:
    assert "stochastic_rounding" not in tw.optimizers.Adam().get_config()
    for options in ({}, {"rounding_seed": 7}):
        optimizer = adamw(**options)
        config = json.loads(json.dumps(optimizer.get_config()))
        assert config["stochastic_rounding"] is True
        again = tw.optimizers.AdamW.from_config(config)
        assert same(trained(optimizer), trained(again))


def test_a_copy_goes_on_as_the_original() -> None:
    weight, optimizer = variable(), adamw()
    trained(optimizer, 3, weight=weight)
    weight_too, optimizer_too = copy.deepcopy((weight, optimizer))
    for step in range(3):
        optimizer.apply_gradients([(gradient(step), weight)])
        optimizer_too.apply_gradients([(gradient(step), weight_too)])
    ends = state_of(optimizer, weight), state_of(optimizer_too, weight_too)
    assert same(*ends)


def test_a_resumed_run_has_the_bits_of_one_that_went_on(tmp_path: Path) -> None:
    def new() -> tuple[tw.Variable, Any, tw.Checkpoint]:
        weight, optimizer = variable(), adamw(use_ema=True, rounding_seed=3)
        return weight, optimizer, tw.Checkpoint(weight=weight, optimizer=optimizer)

    weight, optimizer, checkpoint = new()
    for step in range(6):
        if step == 3:
            checkpoint.save(tmp_path / "three")
        optimizer.apply_gradients([(gradient(step), weight)])
    expected = state_of(optimizer, weight)
    weight, optimizer, checkpoint = new()
    checkpoint.restore(tmp_path / "three").assert_consumed()
    for step in range(3, 6):
        optimizer.apply_gradients([(gradient(step), weight)])
    assert same(state_of(optimizer, weight), expected)


@pytest.mark.parametrize("sparse_update", ["rows", "exact", "keras"])
def test_rows_are_rounded_as_in_a_dense_step(sparse_update: str) -> None:
    dense, sparse = variable(), variable()
    optimizers = adamw(), adamw(sparse_update=sparse_update)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        order = torch.randperm(40, generator=generator)
        rows = IndexedSlices(gradient(step)[order], order)
        optimizers[0].apply_gradients([(gradient(step), dense)])
        optimizers[1].apply_gradients([(rows, sparse)])
    assert same(state_of(optimizers[0], dense), state_of(optimizers[1], sparse))


class EachByItself(tw.distribute.StrategyExtended):
    """Calls the update of each variable, as a strategy of one's own may do."""

    def update(self, var: Any, fn: Any, args: Any = (), kwargs: Any = None, group=True):
        return super().update(var, fn, args, kwargs, group)


def test_a_strategy_of_ones_own_gives_the_same_bits() -> None:
    with tw.distribute.Strategy(EachByItself()).scope():
        optimizer = adamw()
    assert same(trained(optimizer), trained(adamw()))


def test_elements_count_in_the_order_of_a_contiguous_tensor() -> None:
    start = torch.linspace(-1, 1, 240).reshape(6, 40).to(HALF).t()
    found: list[torch.Tensor] = []
    for kind in (torch.preserve_format, torch.contiguous_format):
        weight = torch.nn.Parameter(start.clone(memory_format=kind))
        tw.state.set_name(weight, "w")
        assert weight.is_contiguous() == (len(found) == 1)
        optimizer = adamw()
        for step in range(3):
            optimizer.apply_gradients([(gradient(step), weight)])
            order = torch.arange(40)
            slices = IndexedSlices(gradient(step + 9), order)
            optimizer.apply_gradients([(slices, weight)])
        found.append(weight.detach())
    assert torch.equal(*found)


def test_copies_and_wide_tensors_are_rounded_to_nearest() -> None:
    weight = tw.Variable(torch.full((5000,), 1.0), name="w")
    options: Any = {"slot_dtypes": {"m": "bfloat16"}, "low_precision_copy": "bfloat16"}
    optimizer = tw.optimizers.Adam(SMALL, stochastic_rounding=True, **options)
    plain = tw.Variable(torch.full((5000,), 1.0), name="w")
    other = tw.optimizers.Adam(SMALL, **options)
    grad = torch.full((5000,), 1.003)
    optimizer.apply_gradients([(grad, weight)])
    other.apply_gradients([(grad, plain)])
    assert torch.equal(weight, plain)
    for name, is_chance in (("m", True), ("v", False), ("low_precision_copy", False)):
        slot = optimizer.get_slot(weight, name)
        assert (slot.unique().numel() == 2) == is_chance
        if not is_chance:
            assert torch.equal(slot, other.get_slot(plain, name))


def test_it_changes_nothing_in_float32() -> None:
    ends: list[Any] = []
    texts: list[str] = []
    for chance in (False, True):
        weight = tw.Variable(torch.ones(40, 6), name="w")
        optimizer = tw.optimizers.Adam(0.01, stochastic_rounding=chance)
        for step in range(3):
            optimizer.apply_gradients([(gradient(step).float(), weight)])
        ends.append(state_of(optimizer, weight))
        texts.append(optimizer.kernel_source())
    assert same(*ends)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("slots", [None, {"v": "float16"}])
def test_float16_is_refused_before_anything_is_made(slots: Any) -> None:
    dtype = torch.float16 if slots is None else HALF
    weight = tw.Variable(torch.ones(3, dtype=dtype), name="w")
    optimizer = adamw(slot_dtypes=slots)
    for act in (
        lambda: optimizer.build([weight]),
        lambda: optimizer.apply_gradients([(torch.ones(3).to(dtype), weight)]),
    ):
        with pytest.raises(ValueError, match=r"stochastic_rounding.*float16 for"):
            act()
    assert list(optimizer.slot_variables()) == []
    assert torch.equal(weight, torch.ones(3, dtype=dtype))


def test_a_class_that_updates_by_hand_is_refused() -> None:
    class ByHand(tw.Optimizer):
        def _resource_apply_dense(self, grad: Any, var: Any, apply_state: Any = None):
            var.assign_sub(grad)

    with pytest.raises(ValueError, match="a class whose `update` is a rule"):
        ByHand(stochastic_rounding=True)


@pytest.mark.parametrize(
    ("options", "error", "part"),
    [
        ({"rounding_seed": 3}, ValueError, "beside stochastic_rounding=True; got 3"),
        ({"stochastic_rounding": 3}, TypeError, "True or False; got 3"),
        (
            {"stochastic_rounding": True, "rounding_seed": True},
            ValueError,
            "a whole number >= 0",
        ),
        (
            {"stochastic_rounding": True, "rounding_seed": 1.5},
            ValueError,
            "a whole number >= 0",
        ),
        (
            {"stochastic_rounding": True, "rounding_seed": -1},
            ValueError,
            "a whole number >= 0",
        ),
    ],
)
def test_what_is_no_seed_is_refused(options: Any, error: Any, part: str) -> None:
    with pytest.raises(error, match=part):
        tw.optimizers.SGD(**options)


def test_a_name_that_comes_late_changes_no_bits() -> None:
    model = torch.nn.Linear(16, 16, bias=False).to(HALF)
    optimizer = tw.optimizers.SGD(1e-3, stochastic_rounding=True)

    def step(model: Any, optimizer: Any, number: int) -> None:
        pairs = [(gradient(number, tuple(p.shape)), p) for p in model.parameters()]
        optimizer.apply_gradients(pairs)

    step(model, optimizer, 0)
    optimizer.build(model)
    copied_model, copied = pickle.loads(pickle.dumps((model, optimizer)))
    for number in (1, 2):
        step(model, optimizer, number)
        step(copied_model, copied, number)
    assert torch.equal(model.weight, copied_model.weight)
