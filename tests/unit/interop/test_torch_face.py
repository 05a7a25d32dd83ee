"""The face of torch for optimizers with Keras's interface."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import thalweg as tw
from thalweg.interop import TorchFace, as_torch

LR = torch.optim.lr_scheduler


def make(name: Any = "adam", **config: Any) -> tuple[nn.Sequential, TorchFace]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    if isinstance(name, str):
        name = tw.optimizers.get({"class_name": name, "config": config})
    return model, as_torch(name, model)


def train(model: nn.Module, optimizer: Any, steps: range, scheduler: Any = None) -> Any:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(8, 4, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        (model(inputs) - inputs[:, :1]).square().mean().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return model


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# -- steps --------------------------------------------------------------------


@pytest.mark.parametrize("name", tw.optimizers.names())
def test_a_step_is_apply_gradients(name: str) -> None:
    model, optimizer = make(name)
    train(model, optimizer, range(5))
    other, _ = make()
    plain = tw.optimizers.get(name)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(8, 4, generator=generator, dtype=torch.float64)
        loss = (other(inputs) - inputs[:, :1]).square().mean()
        plain.minimize(loss, list(other.parameters()))
    assert equal(model, other)
    assert int(optimizer.iterations) == 5


@pytest.mark.parametrize("name", tw.optimizers.names())
def test_a_run_from_a_file_has_the_same_bits(name: str) -> None:
    straight, optimizer = make(name)
    train(straight, optimizer, range(12), LR.CosineAnnealingLR(optimizer, 12))

    model, optimizer = make(name)
    scheduler = LR.CosineAnnealingLR(optimizer, 12)
    train(model, optimizer, range(5), scheduler)
    saved = [part.state_dict() for part in (model, optimizer, scheduler)]
    saved = through_a_file(saved)
    model, optimizer = make(name)
    scheduler = LR.CosineAnnealingLR(optimizer, 12)
    for part, state in zip((model, optimizer, scheduler), saved, strict=True):
        part.load_state_dict(state)
    assert int(optimizer.iterations) == 5
    train(model, optimizer, range(5, 12), scheduler)
    assert equal(model, straight)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copy_goes_on_alike(copied: Any) -> None:
    model, optimizer = make("nadam")
    train(model, optimizer, range(3))
    twin, twin_optimizer = copied((model, optimizer))
    train(model, optimizer, range(3, 6))
    train(twin, twin_optimizer, range(3, 6))
    assert equal(model, twin)
    assert twin_optimizer.wrapped is not optimizer.wrapped
    assert int(twin_optimizer.iterations) == 6


def test_a_closure_is_called_once_with_gradients_enabled() -> None:
    model, optimizer = make("sgd")
    calls = []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = model(torch.ones(1, 4, dtype=torch.float64)).square().sum()
        loss.backward()
        return loss

    before = copy.deepcopy(model)
    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert loss is not None
    assert not equal(model, before)


def test_hooks_run() -> None:
    model, optimizer = make("sgd")
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(model, optimizer, range(1))
    assert seen == ["before", "after"]


def test_without_gradients_nothing_happens() -> None:
    _, optimizer = make()
    assert optimizer.step() is None
    assert optimizer.state == {}


def test_parameters_without_a_gradient_stay() -> None:
    model, optimizer = make()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    train(model, optimizer, range(2))
    assert torch.equal(model[0].weight, before)
    assert model[0].weight not in optimizer.state
    model[0].weight.requires_grad_(True)
    train(model, optimizer, range(2, 4))
    assert not torch.equal(model[0].weight, before)
    assert optimizer.state[model[0].weight]["m"].any()


def test_sparse_gradients() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    before = table.weight.detach().clone()
    optimizer = as_torch(tw.optimizers.Adam(0.5), table)
    table(torch.tensor([1, 3])).sum().backward()
    optimizer.step()
    moved = (table.weight != before).any(dim=1)
    assert moved.tolist() == [False, True, False, True, False]


def test_grad_scaler_skips_a_step() -> None:
    model, optimizer = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, steps in ((math.inf, 0), (1.0, 1)):
        optimizer.zero_grad()
        loss = model(torch.ones(1, 4, dtype=torch.float64)).sum() * factor
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert int(optimizer.iterations) == steps


def test_a_step_left_out_is_said() -> None:
    model, optimizer = make("adam", nonfinite="skip")
    train(model, optimizer, range(1))
    assert optimizer.last_step_applied
    torch.nn.init.constant_(model[0].weight.grad, math.nan)
    optimizer.step()
    assert not optimizer.last_step_applied
    assert int(optimizer.iterations) == 1


def test_a_compiled_step_is_the_step() -> None:
    model, optimizer = make()
    other, other_optimizer = make()
    train(other, other_optimizer, range(2))
    train(model, optimizer, range(1))
    train(model, _Compiled(optimizer), range(1, 2))
    assert equal(model, other)


class _Compiled:
    def __init__(self, optimizer: TorchFace) -> None:
        self.zero_grad = optimizer.zero_grad
        self.step = torch.compile(optimizer.step, backend="eager")


# -- groups -------------------------------------------------------------------


def test_groups_have_torchs_names() -> None:
    _, optimizer = make("adamw", learning_rate=0.5, beta_2=0.99, weight_decay=0.25)
    (group,) = optimizer.param_groups
    numbers = {"lr": 0.5, "betas": (0.9, 0.99), "eps": 1e-7, "weight_decay": 0.25}
    assert optimizer.defaults == numbers
    assert {name: group[name] for name in numbers} == numbers
    assert group["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_scheduler_changes_the_rate() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = as_torch(tw.optimizers.SGD(0.5), [weight])
    scheduler = LR.LambdaLR(optimizer, lambda step: 0.5**step)
    for expected in (0.5, 0.25, 0.125):
        weight.grad = torch.ones(1)
        optimizer.step()
        scheduler.step()
        assert weight.item() == expected
    assert optimizer.wrapped.learning_rate == 0.125  # the last step's


def test_one_cycle_moves_the_betas() -> None:
    model, optimizer = make("adam")
    scheduler = LR.OneCycleLR(optimizer, 0.1, total_steps=10)
    train(model, optimizer, range(3), scheduler)
    beta = optimizer.param_groups[0]["betas"][0]
    assert beta != 0.9
    train(model, optimizer, range(3, 4))
    assert optimizer.wrapped.beta_1 == beta


def test_a_rate_may_be_a_tensor() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = as_torch(tw.optimizers.SGD(0.5), [weight])
    optimizer.param_groups[0]["lr"] = torch.tensor(0.25)
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == 0.75
    optimizer.wrapped.learning_rate = 0.5
    optimizer.step()
    assert weight.item() == 0.25
    assert optimizer.param_groups[0]["lr"] == torch.tensor(0.5)


def test_each_group_has_its_numbers() -> None:
    first, second = (nn.Parameter(torch.ones(1)) for _ in range(2))
    groups = [{"params": [first]}, {"params": [second], "lr": 0.25}]
    optimizer = as_torch(tw.optimizers.SGD(0.5), groups)
    scheduler = LR.ExponentialLR(optimizer, 0.5)
    for expected in ((0.5, 0.75), (0.25, 0.625)):
        for weight in (first, second):
            weight.grad = torch.ones(1)
        optimizer.step()
        scheduler.step()
        assert (first.item(), second.item()) == expected


def test_a_group_may_come_later_and_groups_are_resumed() -> None:
    def start() -> tuple[nn.Sequential, TorchFace]:
        model, _ = make()
        optimizer = as_torch(tw.optimizers.Adam(0.01), model[0].named_parameters())
        return model, optimizer

    def widen(model: nn.Sequential, optimizer: TorchFace) -> None:
        named = list(model[2].named_parameters("2"))
        optimizer.add_param_group({"params": named, "lr": 0.1, "betas": (0.5, 0.9)})

    straight, optimizer = start()
    train(straight, optimizer, range(2))
    before = copy.deepcopy(straight[2])
    widen(straight, optimizer)
    train(straight, optimizer, range(2, 4))
    assert not equal(straight[2], before)
    saved = copy.deepcopy((straight.state_dict(), optimizer.state_dict()))
    train(straight, optimizer, range(4, 8))

    model, optimizer = start()
    widen(model, optimizer)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(model, optimizer, range(4, 8))
    assert equal(model, straight)


def test_per_variable_settings_come_on_top_of_a_group() -> None:
    first, second = (nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = as_torch(
        tw.optimizers.SGD(0.5, per_variable={"second": {"learning_rate": tw.scale(2)}}),
        [
            {"params": [("first", first)]},
            {"params": [("second", second)], "lr": 0.25},
        ],
    )
    for weight in (first, second):
        weight.grad = torch.ones(1)
    optimizer.step()
    assert (first.item(), second.item()) == (0.5, 0.5)


def test_a_schedule_of_keras_is_shown_and_not_overwritten() -> None:
    schedule = tw.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    weight = nn.Parameter(torch.ones(1))
    optimizer = as_torch(tw.optimizers.SGD(schedule), [weight])
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == 0.5
    assert optimizer.param_groups[0]["lr"] == 0.25
    optimizer.param_groups[0]["lr"] = 0.125
    with pytest.raises(ValueError, match="no other number than the schedule's"):
        optimizer.step()
    assert weight.item() == 0.5
    saved = optimizer.state_dict()
    other = as_torch(tw.optimizers.SGD(schedule), [weight])
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize(
    ("entry", "value", "error"),
    [("lr", -1.0, ValueError), ("lr", math.nan, ValueError), ("lr", "x", TypeError)],
)
def test_a_wrong_number_is_refused_and_changes_nothing(
    entry: str, value: Any, error: type[Exception]
) -> None:
    model, optimizer = make()
    train(model, optimizer, range(1))
    before = copy.deepcopy(model)
    optimizer.param_groups[0][entry] = value
    with pytest.raises(error, match=r"lr|learning_rate"):
        optimizer.step()
    assert equal(model, before)
    assert int(optimizer.iterations) == 1


def test_a_refused_group_is_not_added() -> None:
    _, optimizer = make()
    whole = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
    with pytest.raises(ValueError, match="floating"):
        optimizer.add_param_group({"params": [("whole", whole)]})
    assert len(optimizer.param_groups) == 1


def test_an_optimizer_of_torch_is_refused() -> None:
    model, optimizer = make()
    with pytest.raises(TypeError, match="one of torch already"):
        as_torch(optimizer, model)


# -- state --------------------------------------------------------------------


def test_state_shows_slots_and_the_count() -> None:
    model, optimizer = make()
    train(model, optimizer, range(2))
    state = optimizer.state[model[0].weight]
    assert list(state) == ["step", "m", "v"]
    assert state["m"] is optimizer.wrapped.get_slot(model[0].weight, "m")
    assert int(state["step"]) == 2
    saved = optimizer.state_dict()["state"][0]
    assert {type(value) for value in saved.values()} == {torch.Tensor}


def test_an_empty_round_trip_does_nothing() -> None:
    model, optimizer = make()
    other, other_optimizer = make()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.state == {}
    train(model, optimizer, range(2))
    train(other, other_optimizer, range(2))
    assert equal(model, other)


def test_an_empty_state_begins_anew() -> None:
    model, optimizer = make("nadam")
    empty = optimizer.state_dict()
    fresh = copy.deepcopy(model)
    train(model, optimizer, range(3))
    optimizer.load_state_dict(empty)
    assert int(optimizer.iterations) == 0
    model.load_state_dict(fresh.state_dict())
    train(model, optimizer, range(3))
    other, other_optimizer = make("nadam")
    train(other, other_optimizer, range(3))
    assert equal(model, other)


def test_state_is_found_by_name() -> None:
    model, optimizer = make()
    train(model, optimizer, range(3))
    turned = list(reversed(list(model.named_parameters())))
    other = as_torch("adam", turned)
    other.load_state_dict(optimizer.state_dict())
    for parameter in model.parameters():
        for key in ("m", "v"):
            assert torch.equal(
                other.state[parameter][key], optimizer.state[parameter][key]
            )


def test_names_that_are_missing_are_said() -> None:
    model, optimizer = make()
    train(model, optimizer, range(1))
    other = as_torch("adam", model[0].named_parameters("0"))
    with pytest.raises(ValueError, match=r"unexpected \['2.weight', '2.bias'\]"):
        other.load_state_dict(optimizer.state_dict())


def test_state_of_another_class_or_shape_changes_nothing() -> None:
    model, optimizer = make()
    train(model, optimizer, range(1))
    before = copy.deepcopy(optimizer.state_dict())
    saved = torch.optim.Adam(model.parameters()).state_dict()
    saved["state"] = {0: {"exp_avg": torch.zeros(8, 4)}}
    with pytest.raises(ValueError, match="exp_avg"):
        optimizer.load_state_dict(saved)
    saved["state"] = {0: {"m": torch.zeros(4, 8)}}
    with pytest.raises(ValueError, match=r"\(4, 8\) for \(8, 4\)"):
        optimizer.load_state_dict(saved)
    saved["state"] = {}
    saved["param_groups"][0]["lr"] = -1.0
    with pytest.raises(ValueError, match=">= 0"):
        optimizer.load_state_dict(saved)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for number, own in before["state"].items():
        for key, value in own.items():
            assert torch.equal(after["state"][number][key], value)


def in_two_groups(lr: float) -> tuple[torch.nn.Module, Any]:
    """A model whose two groups name their parameters alike."""
    torch.manual_seed(4)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    rates = zip(model, (lr, lr / 2), strict=True)
    groups = [{"params": part.named_parameters(), "lr": rate} for part, rate in rates]
    return model, as_torch("adam", groups)


def test_groups_whose_names_are_alike_resume_to_the_bit() -> None:
    (model, optimizer), (other_model, other) = in_two_groups(0.5), in_two_groups(0.25)
    for number in range(2):
        for held, owner in ((model, optimizer), (other_model, other)):
            owner.zero_grad()
            held(torch.full((2, 3), number + 1.0)).square().sum().backward()
            owner.step()
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        other_model.load_state_dict(saved[0])
        other.load_state_dict(saved[1])
        assert [group["lr"] for group in other.param_groups] == [0.5, 0.25]
        for ours, theirs in zip(
            optimizer.state.values(), other.state.values(), strict=True
        ):
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    "state", [{9: {}}, {0: {"m": 1.0}}, {0: {"m": torch.ones(1)}}, {0: {"step": None}}]
)
def test_state_that_does_not_fit_leaves_the_numbers_alone(state: Any) -> None:
    (_, optimizer), (_, other) = in_two_groups(0.5), in_two_groups(0.25)
    saved = {**optimizer.state_dict(), "state": state}
    with pytest.raises(ValueError, match=r"Adam\.load_state_dict: expected"):
        other.load_state_dict(saved)
    assert [group["lr"] for group in other.param_groups] == [0.25, 0.125]
    assert (other.wrapped.learning_rate, dict(other.state)) == (0.001, {})


def test_no_tensor_is_cast() -> None:
    def start(slot_dtypes: Any) -> tuple[nn.Linear, TorchFace]:
        layer = nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
        optimizer = tw.optimizers.Adam(slot_dtypes=slot_dtypes)
        face = as_torch(optimizer, layer)
        layer.weight.grad = torch.ones_like(layer.weight)
        face.step()
        return layer, face

    layer, optimizer = start(None)
    other, loaded = start("variable")
    assert loaded.state[other.weight]["m"].dtype == torch.bfloat16
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.state[other.weight]["m"].dtype == torch.float32
    assert torch.equal(
        loaded.state[other.weight]["m"], optimizer.state[layer.weight]["m"]
    )
    assert len(loaded.wrapped.weights) == 3


def test_state_that_was_replaced_is_taken_over() -> None:
    model, optimizer = make()
    train(model, optimizer, range(2))
    in_place, in_place_optimizer = copy.deepcopy((model, optimizer))
    for own in in_place_optimizer.state.values():
        own["m"].zero_()
    for own in optimizer.state.values():
        own["m"] = torch.zeros_like(own["m"])
        own["v"] = own["v"].clone()
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    train(in_place, in_place_optimizer, range(2, 4))
    train(model, optimizer, range(2, 4))
    train(twin, twin_optimizer, range(2, 4))
    assert equal(model, in_place)
    assert equal(twin, in_place)
    weight = model[0].weight
    assert optimizer.state[weight]["m"] is optimizer.wrapped.get_slot(weight, "m")


def test_a_probe_for_state_changes_no_bit() -> None:
    model, optimizer = make("nadam")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(closure=None)
    optimizer.param_groups[0]["lr"] = 0.001
    assert len(optimizer.state) == 4
    assert int(optimizer.iterations) == 0
    other, other_optimizer = make("nadam")
    train(model, optimizer, range(3))
    train(other, other_optimizer, range(3))
    assert equal(model, other)


def test_parameters_may_be_swapped_before_the_first_step() -> None:
    model, optimizer = make()
    group = optimizer.param_groups[0]["params"]
    group[:] = [torch.empty(1) for _ in group]
    new, _ = make()
    group[:] = list(new.parameters())
    train(new, optimizer, range(2))
    train(model, as_torch("adam", model), range(2))
    assert equal(model, new)


def test_a_wrapper_that_never_ran_the_constructor_steps() -> None:
    class Wrapper:
        def __init__(self, optimizer: Any) -> None:
            self._optimizer = optimizer
            self.__class__ = type("Wrapped", (Wrapper, type(optimizer)), {})

        def __getattr__(self, name: str) -> Any:
            return getattr(self._optimizer, name)

        def step(self, closure: Any = None) -> Any:
            return self._optimizer.step(closure)

    model, optimizer = make()
    wrapper: Any = Wrapper(optimizer)
    assert isinstance(wrapper, TorchFace)
    train(model, wrapper, range(2))
    assert int(wrapper.iterations) == 2
    assert wrapper.state_dict()["state"][0]["step"] == 2


def test_a_checkpoint_holds_it(tmp_path: Any) -> None:
    model, optimizer = make()
    train(model, optimizer, range(3))
    tw.Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "there")
    straight = copy.deepcopy((model, optimizer))
    train(*straight, range(3, 6))
    model, optimizer = make()
    checkpoint = tw.Checkpoint(model=model, optimizer=optimizer)
    checkpoint.restore(tmp_path / "there").assert_consumed()
    train(model, optimizer, range(3, 6))
    assert equal(model, straight[0])


@pytest.mark.parametrize("saved", [False, True])
def test_a_state_dict_says_in_which_formula_it_is(saved: bool) -> None:
    """The momentum of Keras has the learning rate inside, torch's has not."""
    options = {"learning_rate": 0.1, "momentum": 0.9}
    model, optimizer = make("sgd", torch_formula=saved, **options)
    train(model, optimizer, range(3))
    other, again = make("sgd", torch_formula=not saved, **options)
    other.load_state_dict(model.state_dict())
    content = through_a_file(optimizer.state_dict())
    assert [group["torch_formula"] for group in content["param_groups"]] == [saved]
    again.load_state_dict(content)
    assert again.wrapped.hyperparameters()["torch_formula"] is saved
    assert "torch_formula" not in again.param_groups[0]
    for group in (optimizer.param_groups[0], again.param_groups[0]):
        group["lr"] = 0.01
    assert equal(train(model, optimizer, range(3, 6)), train(other, again, range(3, 6)))
    del content["param_groups"][0]["torch_formula"]
    again.load_state_dict(content)  # as from elsewhere: what it was stays
    assert again.wrapped.hyperparameters()["torch_formula"] is saved


@pytest.mark.parametrize("how", ["module", "pairs"])
def test_names_of_parameters_have_their_dots(how: str) -> None:
    model, _ = make()
    settings = {"*.bias": {"learning_rate": 0.0}, "0.weight": {"learning_rate": 0.5}}
    plain = tw.optimizers.SGD(0.1, per_variable=settings)
    given = model if how == "module" else list(model.named_parameters())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, as_torch(plain, given), range(1))
    for name, parameter in model.named_parameters():
        assert tw.state.name_of(parameter) == name
        assert torch.equal(parameter, before[name]) == name.endswith("bias")
