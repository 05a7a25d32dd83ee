"""Parameters rounded by chance: on average right, and the same bits on every way."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import thalweg as tw
from tests.unit.optim.twins import OWN, TWINS, Parameters
from tests.unit.step.pretended_device import DEVICE, pretended_device
from thalweg import optim

HALF = torch.bfloat16
SMALL = 1e-4
SHAPES = ((40, 6), (30,))
COUNTING = tuple(n for n in (*TWINS, *OWN, "SparseAdam") if n != "SGD")


def start(shapes: tuple[tuple[int, ...], ...] = SHAPES) -> Parameters:
    return [torch.nn.Parameter(torch.ones(shape, dtype=HALF)) for shape in shapes]


def chance(parameters: Any, name: str = "AdamW", **options: Any) -> Any:
    known = {"stochastic_rounding": True, "slot_dtypes": "variable", "lr": 1e-3}
    return getattr(optim, name)(parameters, **{**known, **options})


def gradient(step: int, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(shape, generator=generator).to(HALF)


def give(step: int, held: Parameters, *, as_rows: bool = False) -> None:
    for parameter in held:
        grad = gradient(step, tuple(parameter.shape)).to(parameter.device)
        if as_rows:
            order = torch.randperm(len(grad), generator=torch.Generator())
            grad = torch.sparse_coo_tensor(
                order[None], grad[order], grad.shape, check_invariants=True
            )
        parameter.grad = grad


def run(optimizer: Any, held: Parameters, steps: Any = range(5), **options: Any) -> Any:
    for step in steps:
        give(step, held, **options)
        optimizer.step()
    return bits(optimizer, held)


def bits(optimizer: Any, held: Parameters) -> list[torch.Tensor]:
    states = [optimizer.state[parameter] for parameter in held]
    slots = [v for own in states for v in own.values() if v.dtype == HALF]
    return [t.detach().cpu().clone() for t in (*held, *slots)]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(torch.equal(one.cpu(), other.cpu()) for one, other in pairs)


# -- what it is for -----------------------------------------------------------


def test_small_updates_survive_on_average() -> None:
    stalled, moving = start(((4000,),)), start(((4000,),))
    options: dict[str, Any] = {"lr": SMALL, "weight_decay": 0.0}
    nearest = tw.optim.AdamW(stalled, **options)
    random = tw.optim.AdamW(moving, stochastic_rounding=True, **options)
    for _ in range(100):
        for optimizer, (parameter,) in ((nearest, stalled), (random, moving)):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    assert bool((stalled[0] == 1).all())
    unit = 2**-8
    # Each step moves an element with the chance SMALL / unit by one unit.
    sigma = unit * (100 * (SMALL / unit) / 4000) ** 0.5
    mean = moving[0].detach().double().mean().item()
    assert abs(mean - (1 - 100 * SMALL)) < 5 * sigma


@pytest.mark.parametrize("name", COUNTING)
def test_every_class_that_counts_rounds_by_its_own_steps(name: str) -> None:
    held, later = start(), start()
    optimizer = chance(held, name, lr=0.01)
    # One parameter begins later; its first steps are rounded as first steps are.
    other = chance(later, name, lr=0.01)
    found = run(optimizer, held, range(3))
    run(other, later[:1], range(3))
    later[0].grad = None
    run(other, later[1:], range(3))
    assert same(found, bits(other, later))
    nearest = getattr(optim, name)(start(), lr=0.01, slot_dtypes="variable")
    plain = run(nearest, nearest.param_groups[0]["params"], range(3))
    assert not same(found, plain)


def test_float32_is_not_concerned() -> None:
    ends = []
    for options in ({}, {"stochastic_rounding": True}):
        held = [torch.nn.Parameter(torch.ones(40))]
        optimizer = optim.AdamW(held, lr=0.1, **options)
        for step in range(3):
            held[0].grad = gradient(step, (40,)).float()
            optimizer.step()
        ends.append(held[0].detach())
    assert torch.equal(*ends)


# -- what the chance follows from ---------------------------------------------


def test_another_seed_is_another_run() -> None:
    runs = {}
    for seed in (0, 5, 6):
        held = start()
        runs[seed] = run(chance(held, rounding_seed=seed), held)
    default, again = start(), start()
    assert same(run(chance(default), default), runs[0])
    assert same(run(chance(again, rounding_seed=5), again), runs[5])
    assert not same(runs[5], runs[6])


def test_parameters_are_told_apart_by_position_over_all_groups() -> None:
    one, two = start(((40,), (40,))), start(((40,), (40,)))
    run(chance(one), one)
    run(chance([{"params": [parameter]} for parameter in two]), two)
    assert not torch.equal(*one)
    assert same([*one], [*two])


def test_named_parameters_are_told_apart_by_name() -> None:
    first, second = start(((40,), (40,))), start(((40,), (40,)))
    run(chance(zip("ab", first, strict=True)), first)
    names = ["_orig_mod.b", "_orig_mod.a"]  # as torch.compile calls them
    run(chance(zip(names, second, strict=True)), second)
    assert not torch.equal(*first)
    assert same([*first], [*reversed(second)])


def test_names_give_the_bits_of_variables_of_these_names() -> None:
    variable = tw.Variable(torch.ones(40, dtype=HALF), name="w")
    options: dict[str, Any] = {"slot_dtypes": "variable", "epsilon": 0.0}
    other = tw.optimizers.AdamW(
        1e-3, weight_decay=0.25, stochastic_rounding=True, **options
    )
    held = start(((40,),))
    run(chance([("w", held[0])], weight_decay=0.25, eps=0.0), held)
    for step in range(5):
        other.apply_gradients([(gradient(step, (40,)), variable)])
    assert torch.equal(variable, held[0])


# -- the same bits on every way -----------------------------------------------


@pytest.mark.parametrize("policy", ["rows", "exact"])
def test_rows_are_rounded_as_in_a_dense_step(policy: str) -> None:
    dense, sparse = start(), start()
    expected = run(chance(dense, ema_decay=0.9), dense)
    other = chance(sparse, ema_decay=0.9, sparse_update=policy)
    assert same(run(other, sparse, as_rows=True), expected)


def test_the_number_of_threads_does_not_matter() -> None:
    ends = []
    for count in (1, 2):
        torch.set_num_threads(count)
        held = start(((700, 100), (30,)))
        ends.append(run(chance(held, max_grad_norm=1.0), held, range(3)))
    assert same(*ends)


@pytest.mark.parametrize("as_rows", [False, True])
def test_the_compiler_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, as_rows: bool
) -> None:
    ends = []
    for is_compiled in (True, False):
        monkeypatch.setenv("THALWEG_COMPILER", str(int(is_compiled)))
        held = start()
        ends.append(run(chance(held), held, as_rows=as_rows))
    assert same(*ends)


def test_a_device_that_counts_rounds_as_the_host_does() -> None:
    here = start()
    expected = run(chance(here), here)
    with pretended_device() as device:
        there = [torch.nn.Parameter(p.detach().to(DEVICE)) for p in start()]
        optimizer = chance(there, capturable=True, nonfinite="skip")
        for step in range(5):
            give(step, there)
            if step < 2:
                optimizer.step()
                continue
            with device.no_waiting():
                optimizer.step()
        assert optimizer.state[there[0]]["step"].device == DEVICE
        assert same(bits(optimizer, there), expected)


# -- going on -----------------------------------------------------------------


@pytest.mark.parametrize("is_named", [False, True])
def test_a_resumed_run_has_the_same_bits(is_named: bool) -> None:
    def new(held: Parameters) -> Any:
        pairs = [(f"p{i}", parameter) for i, parameter in enumerate(held)]
        return chance(pairs if is_named else held, ema_decay=0.9, rounding_seed=3)

    held = start()
    optimizer = new(held)
    run(optimizer, held, range(3))
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), [p.detach() for p in held]), file)
    file.seek(0)
    saved, values = torch.load(file, weights_only=True)
    later = [torch.nn.Parameter(value.clone()) for value in values]
    other = new(later)
    other.load_state_dict(saved)
    assert same(run(other, later, range(3, 6)), run(optimizer, held, range(3, 6)))


def test_the_state_dict_is_that_of_an_optimizer_without_it() -> None:
    held, plain = start(), start()
    optimizer, other = chance(held), optim.AdamW(plain, slot_dtypes="variable")
    run(optimizer, held, range(2))
    run(other, plain, range(2))
    saved, known = optimizer.state_dict(), other.state_dict()
    assert saved["state"][0].keys() == known["state"][0].keys()
    assert saved["param_groups"][0].keys() == known["param_groups"][0].keys()
    torch.optim.AdamW(start()).load_state_dict(saved)


def test_a_checkpoint_and_copies_go_on_with_the_same_bits(tmp_path: Path) -> None:
    held = torch.nn.ParameterList(start())
    optimizer = chance(held.named_parameters())
    run(optimizer, [*held], range(3))
    tw.Checkpoint(model=held, optimizer=optimizer).save(tmp_path / "three")
    restored = torch.nn.ParameterList(start())
    other = chance(restored.named_parameters())
    checkpoint = tw.Checkpoint(model=restored, optimizer=other)
    checkpoint.restore(tmp_path / "three").assert_consumed()
    copied, third = copy.deepcopy((held, optimizer))
    pickled, fourth = pickle.loads(pickle.dumps((held, optimizer)))
    expected = run(optimizer, [*held], range(3, 6))
    for goes_on, parameters in ((other, restored), (third, copied), (fourth, pickled)):
        assert same(run(goes_on, [*parameters], range(3, 6)), expected)


# -- what is refused ----------------------------------------------------------


@pytest.mark.parametrize("slots", [None, {"exp_avg_sq": torch.float16}])
def test_float16_is_refused_at_construction(slots: Any) -> None:
    dtype = torch.float16 if slots is None else HALF
    weight = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    with pytest.raises(ValueError, match=r"AdamW: stochastic_rounding.*float16 for"):
        chance([weight], slot_dtypes=slots)
    optimizer = chance(start())
    if slots is None:
        with pytest.raises(ValueError, match="float16 for the variable itself"):
            optimizer.add_param_group({"params": [weight]})
        assert len(optimizer.param_groups) == 1


def test_state_in_float16_that_was_loaded_is_refused_in_the_step() -> None:
    held, source = start(), start()
    other = optim.AdamW(source, slot_dtypes=torch.float16)
    run(other, source, range(1))
    optimizer = chance(held)
    optimizer.load_state_dict(other.state_dict())
    give(1, held)
    with pytest.raises(ValueError, match="float16 for slot 'exp_avg'"):
        optimizer.step()
    assert all(bool((parameter == 1).all()) for parameter in held)


def test_a_class_without_a_step_count_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SGD: .*keeps a step count.*optimizers\.SGD"):
        chance(start(), "SGD")


@pytest.mark.parametrize(
    ("options", "error", "part"),
    [
        ({"rounding_seed": 3}, ValueError, "beside stochastic_rounding=True; got 3"),
        ({"stochastic_rounding": 3}, TypeError, "True or False; got 3"),
        (
            {"stochastic_rounding": True, "rounding_seed": -1},
            ValueError,
            "a whole number >= 0",
        ),
    ],
)
def test_what_is_no_seed_is_refused(options: Any, error: Any, part: str) -> None:
    with pytest.raises(error, match=part):
        optim.AdamW(start(), **options)


def test_the_keywords_belong_to_the_whole_optimizer_and_show() -> None:
    with pytest.raises(ValueError, match="stochastic_rounding"):
        optim.AdamW([{"params": start(), "stochastic_rounding": True}])
    shown = repr(chance(start(), rounding_seed=7))
    assert "stochastic_rounding: True\nrounding_seed: 7\n" in shown
