"""States of torch's optimizers for those with Keras's interface, and back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import thalweg as tw
from thalweg.errors import CheckpointError
from thalweg.interop import as_torch, load_torch_state, torch_state
from thalweg.schedules import ExponentialDecay

opt = tw.optimizers
# torch's class and options, this package's, and how far twelve steps may be apart.
CASES: list[tuple[str, dict[str, Any], Any, float]] = [
    ("SGD", {"lr": 0.05}, lambda: opt.SGD(), 1e-12),
    ("SGD", {"lr": 0.05, "momentum": 0.8}, lambda: opt.SGD(momentum=0.5), 1e-12),
    (
        "SGD",
        {"lr": 0.05, "momentum": 0.8, "nesterov": True},
        lambda: opt.SGD(momentum=0.5, nesterov=True),
        1e-12,
    ),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.2}, lambda: opt.Adagrad(), 1e-12),
    ("Adadelta", {"lr": 0.5, "rho": 0.8}, lambda: opt.Adadelta(), 1e-12),
    ("NAdam", {"lr": 0.05, "momentum_decay": 0.01}, lambda: opt.Nadam(), 1e-6),
    (
        "NAdam",
        {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True},
        lambda: opt.Nadam(weight_decay=0.5),
        1e-6,
    ),
    ("RMSprop", {"lr": 0.01, "alpha": 0.8}, lambda: opt.RMSprop(), 1e-12),
    (
        "RMSprop",
        {"lr": 0.01, "centered": True},
        lambda: opt.RMSprop(centered=True),
        1e-10,
    ),
    ("Adamax", {"lr": 0.05, "eps": 1e-3}, lambda: opt.Adamax(), 1e-12),
    (
        "RMSprop",
        {"lr": 0.01, "momentum": 0.8, "eps": 1e-3},
        lambda: opt.RMSprop(momentum=0.5),
        1e-12,
    ),
    (
        "RMSprop",
        {"lr": 0.01, "momentum": 0.8, "centered": True, "eps": 1e-3},
        lambda: opt.RMSprop(momentum=0.5, centered=True),
        1e-12,
    ),
    ("Adam", {"lr": 0.05, "betas": (0.8, 0.99)}, lambda: opt.Adam(), 1e-12),
    (
        "Adam",
        {"lr": 0.05, "amsgrad": True, "eps": 1e-3},
        lambda: opt.Adam(amsgrad=True),
        1e-12,
    ),
    (
        "AdamW",
        {"lr": 0.05, "weight_decay": 0.2, "eps": 1e-3},
        lambda: opt.AdamW(),
        1e-12,
    ),
]


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    model.zero_grad()
    (model(inputs) - inputs[:, :1]).square().mean().backward()


def train_torch(model: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        gradients(model, step)
        optimizer.step()


def train_keras(model: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        gradients(model, step)
        optimizer.apply_gradients([(p.grad, p) for p in model.parameters()])


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def trained(name: str, options: dict[str, Any], named: bool = True) -> Any:
    model = make_model()
    parameters = model.named_parameters() if named else model.parameters()
    optimizer = getattr(torch.optim, name)(parameters, **options)
    train_torch(model, optimizer, range(6))
    return model, optimizer


@pytest.mark.parametrize("named", [True, False], ids=["names", "positions"])
@pytest.mark.parametrize(("name", "options", "make", "bound"), CASES)
def test_training_goes_on_with_the_same_numbers(
    name: str, options: dict[str, Any], make: Any, bound: float, named: bool
) -> None:
    model, theirs = trained(name, options, named)
    other, ours = copy.deepcopy(model), make()
    load_torch_state(ours, theirs.state_dict(), other)
    if name != "SGD":
        assert int(ours.iterations) == 6
    train_torch(model, theirs, range(6, 12))
    train_keras(other, ours, range(6, 12))
    assert distance(model, other) <= bound


@pytest.mark.parametrize(("name", "options", "make", "bound"), CASES)
def test_and_back(name: str, options: dict[str, Any], make: Any, bound: float) -> None:
    model, theirs = trained(name, options)
    other, ours = copy.deepcopy(model), make()
    load_torch_state(ours, theirs.state_dict(), other)
    train_keras(other, ours, range(6, 9))
    again = getattr(torch.optim, name)(other.named_parameters(), lr=7.0)
    again.load_state_dict(torch_state(ours, other))
    for key, value in options.items():
        assert again.param_groups[0][key] == pytest.approx(value), key
    train_torch(other, again, range(9, 12))
    train_torch(model, theirs, range(6, 12))
    assert distance(model, other) <= 2 * bound


def test_a_state_dict_that_was_given_is_a_copy() -> None:
    model, theirs = trained("Adam", {"lr": 0.1})
    ours = opt.Adam()
    saved = theirs.state_dict()
    load_torch_state(ours, saved, model)
    given = torch_state(ours, model)
    before = copy.deepcopy(given)
    train_keras(model, ours, range(2))
    for number, own in before["state"].items():
        assert torch.equal(own["exp_avg"], given["state"][number]["exp_avg"])
        assert torch.equal(own["exp_avg"], saved["state"][number]["exp_avg"])
        assert type(given["state"][number]["exp_avg"]) is torch.Tensor
    assert given["param_groups"][0]["param_names"] == [
        n for n, _ in model.named_parameters()
    ]


def test_names_count_not_positions() -> None:
    model = make_model()
    pairs = list(model.named_parameters())[::-1]
    theirs = torch.optim.Adam(pairs, lr=0.05, eps=0.0)
    train_torch(model, theirs, range(3))
    other, ours = copy.deepcopy(model), opt.Adam()
    load_torch_state(ours, theirs.state_dict(), other)
    train_torch(model, theirs, range(3, 6))
    train_keras(other, ours, range(3, 6))
    assert distance(model, other) <= 1e-12


def test_groups_that_are_alike_become_one() -> None:
    model = make_model()
    halves = [{"params": list(model[i].named_parameters(f"{i}"))} for i in (2, 0)]
    theirs = torch.optim.Adam(halves, lr=0.05, eps=0.0)
    train_torch(model, theirs, range(3))
    other, ours = copy.deepcopy(model), opt.Adam()
    load_torch_state(ours, theirs.state_dict(), other)
    train_torch(model, theirs, range(3, 6))
    train_keras(other, ours, range(3, 6))
    assert distance(model, other) <= 1e-12


def groups_of(model: nn.Sequential, **options: Any) -> list[dict[str, Any]]:
    return [
        {"params": list(model[0].parameters()), **options},
        {"params": list(model[2].parameters()), "lr": 0.2},
    ]


def test_groups_that_differ_go_into_a_face() -> None:
    model = make_model()
    theirs = torch.optim.SGD(groups_of(model), lr=0.05, momentum=0.5)
    train_torch(model, theirs, range(3))
    other = copy.deepcopy(model)
    face = as_torch(opt.SGD(momentum=0.9), groups_of(other))
    load_torch_state(face, theirs.state_dict())
    assert [group["lr"] for group in face.param_groups] == [0.05, 0.2]
    train_torch(model, theirs, range(3, 6))
    train_torch(other, face, range(3, 6))
    assert distance(model, other) <= 1e-12
    again = torch.optim.SGD(groups_of(model), lr=1.0)
    again.load_state_dict(torch_state(face))
    assert [group["lr"] for group in again.param_groups] == [0.05, 0.2]
    buffers = [theirs.state[p]["momentum_buffer"] for p in model.parameters()]
    for parameter, buffer in zip(model.parameters(), buffers, strict=True):
        torch.testing.assert_close(again.state[parameter]["momentum_buffer"], buffer)


def test_an_optimizer_that_had_a_state_loses_it() -> None:
    model = make_model()
    ours = opt.Adam()
    train_keras(model, ours, range(3))
    load_torch_state(
        ours, torch.optim.Adam(model.parameters(), lr=0.3).state_dict(), model
    )
    assert int(ours.iterations) == 0
    assert ours.learning_rate == 0.3
    other, fresh = copy.deepcopy(model), opt.Adam.from_config(ours.get_config())
    assert (fresh.learning_rate, fresh.epsilon) == (0.3, 1e-8)
    train_keras(model, ours, range(3))
    train_keras(other, fresh, range(3))
    assert distance(model, other) == 0


def test_what_changes_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model, theirs = trained("RMSprop", {"lr": 0.25, "momentum": 0.8})
    ours = opt.RMSprop(momentum=0.8, epsilon=1e-8)
    load_torch_state(ours, theirs.state_dict(), model)
    told = [record.getMessage().partition("first: ")[2] for record in caplog.records]
    assert told == [
        "learning_rate: 0.25 in the state dict, 0.001 in the optimizer",
        "rho: 0.99 in the state dict, 0.9 in the optimizer",
        "torch_formula: True in the state dict, False in the optimizer",
    ]
    caplog.clear()
    load_torch_state(ours, theirs.state_dict(), model)
    assert not caplog.records


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_without_torchs_formula_the_export_is_near(momentum: float) -> None:
    model, ours = make_model(), opt.RMSprop(momentum=momentum, epsilon=1e-14)
    train_keras(model, ours, range(6))
    given = torch_state(ours, model)
    inside = momentum > 0  # Keras's epsilon is inside the root then
    expected = pytest.approx(1e-7 if inside else 1e-14)
    assert given["param_groups"][0]["eps"] == expected
    other = copy.deepcopy(model)
    theirs = torch.optim.RMSprop(other.named_parameters(), momentum=momentum)
    theirs.load_state_dict(given)
    train_keras(model, ours, range(6, 12))
    train_torch(other, theirs, range(6, 12))
    assert distance(model, other) <= 1e-5


def test_a_schedule_stays() -> None:
    model, theirs = trained("Adam", {"lr": 0.1})
    schedule = ExponentialDecay(0.5, 10, 0.5)
    ours = opt.Adam(schedule)
    load_torch_state(ours, theirs.state_dict(), model)
    assert ours._hyper["learning_rate"] is schedule


def test_different_steps_are_refused_where_they_are_read() -> None:
    model, theirs = trained("Adam", {"lr": 0.1})
    first = next(model.parameters())
    theirs.state[first]["step"] += 1
    with pytest.raises(CheckpointError, match=r"the same 'step'.*from 6 to 7"):
        load_torch_state(opt.Adam(), theirs.state_dict(), model)
    model, theirs = trained("RMSprop", {"lr": 0.1})
    theirs.state[next(model.parameters())]["step"] += 1
    ours = opt.RMSprop()
    load_torch_state(ours, theirs.state_dict(), model)
    assert int(ours.iterations) == 7


REFUSED: list[tuple[str, dict[str, Any], Any, str]] = [
    ("Adam", {"weight_decay": 0.1}, lambda: opt.Adam(), "L2 penalty of 0.1"),
    ("Adam", {"maximize": True}, lambda: opt.Adam(), "maximize=False; got True"),
    ("Adam", {"amsgrad": True}, lambda: opt.Adam(), "amsgrad=False; got True"),
    (
        "Adam",
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
        lambda: opt.Adam(),
        "no weight decay; got weight_decay=0.1",
    ),
    ("Adam", {}, lambda: opt.SGD(), "of SGD; got a group of Adam or AdamW, with"),
    ("Adam", {}, lambda: opt.Adamax(), "of Adamax; got a group of Adam or AdamW"),
    ("Adam", {}, lambda: opt.Ftrl(), "Adadelta, Adagrad, Adam, AdamW, Adamax, Nadam"),
    ("Adam", {}, lambda: opt.Adam(decay=0.1), "no decay of the rate; got 0.1"),
    ("SGD", {"momentum": 0.5}, lambda: opt.SGD(), "no momentum; got momentum=0.5"),
    ("SGD", {"momentum": 0.5, "dampening": 0.5}, lambda: opt.SGD(), "dampening=0"),
    ("SGD", {}, lambda: opt.SGD(momentum=0.5), "momentum; got momentum=0.0"),
    ("Adam", {"lr": -0.0}, lambda: "adam", "an optimizer of thalweg.optimizers"),
]


@pytest.mark.parametrize(("name", "options", "make", "text"), REFUSED)
def test_what_has_no_counterpart_is_refused(
    name: str, options: dict[str, Any], make: Any, text: str
) -> None:
    model, theirs = trained(name, {"lr": 0.1, **options})
    ours = make()
    with pytest.raises(CheckpointError, match=text):
        load_torch_state(ours, theirs.state_dict(), model)
    if isinstance(ours, tw.Optimizer):
        assert int(ours.iterations) == 0
        assert list(ours.slot_variables()) == []


def broken(change: Any) -> Any:
    model, theirs = trained("Adam", {"lr": 0.1})
    saved = copy.deepcopy(theirs.state_dict())
    change(saved)
    return model, saved


BROKEN: list[tuple[Any, str]] = [
    (lambda saved: saved.pop("state"), r"a dictionary of \['param_groups'\]"),
    (lambda saved: saved.update(state=[]), "a dictionary of"),
    (lambda saved: saved["param_groups"].clear(), "a dictionary of"),
    (lambda saved: saved["param_groups"][0].update(params=None), "a dictionary of"),
    (lambda saved: saved["param_groups"][0].update(params=[0] * 4), "a dictionary of"),
    (lambda saved: saved["param_groups"][0].update(lr="fast"), "fast"),
    (lambda saved: saved["param_groups"][0].update(lr=-1.0), "learning_rate"),
    (lambda saved: saved["param_groups"][0].update(betas=3), "betas"),
    (lambda saved: saved["param_groups"][0].pop("eps"), r"a group without \['eps'\]"),
    (lambda saved: saved["param_groups"][0]["params"].pop(), "a dictionary of"),
    (lambda saved: saved["state"][1].update(step="x"), "x"),
    (lambda saved: saved["state"][1].update(step=0.5), "0.5 is no number of steps"),
    (lambda saved: saved["state"][1].update(step=float("nan")), "no number of steps"),
    (lambda saved: saved["state"][1].update(step=torch.ones(3)), "only one element"),
    (lambda saved: saved["state"][1].update(exp_avg=torch.ones(1)), r"\(1,\).*\(8,\)"),
    (lambda saved: saved["state"][1].update(exp_avg=3.0), "floating tensors"),
    (lambda saved: saved["state"][1].update(more=torch.ones(8)), "'more'"),
    (lambda saved: saved["state"][1].pop("exp_avg"), "of 1"),
    (
        lambda saved: saved["param_groups"][0]["param_names"].__setitem__(0, "other"),
        "missing.*0.weight.*unexpected.*other",
    ),
]


@pytest.mark.parametrize(("change", "text"), BROKEN)
def test_a_broken_state_changes_nothing(change: Any, text: str) -> None:
    model, saved = broken(change)
    ours = opt.Adam(0.25)
    train_keras(model, ours, range(2))
    slots = {(id(v), n): s.detach().clone() for v, n, s in ours.slot_variables()}
    with pytest.raises(CheckpointError, match=text):
        load_torch_state(ours, saved, model)
    assert ours.learning_rate == 0.25
    assert int(ours.iterations) == 2
    for variable, name, slot in ours.slot_variables():
        assert torch.equal(slot, slots[id(variable), name])


def test_what_is_no_state_dict_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"a list of 1 item"):
        load_torch_state(opt.Adam(), [1], make_model())


def test_groups_without_names_are_refused() -> None:
    model = make_model()
    theirs = torch.optim.SGD(groups_of(model), lr=0.05)
    with pytest.raises(CheckpointError, match="2 groups without names"):
        load_torch_state(opt.SGD(), theirs.state_dict(), model)
    with pytest.raises(CheckpointError, match=r"as_torch\(optimizer, groups\)"):
        load_torch_state(opt.SGD(), theirs.state_dict(), groups_of(model))
    pairs = [
        {"params": list(model[0].named_parameters("0"))},
        {"params": list(model[2].named_parameters("2")), "lr": 1.0},
    ]
    theirs = torch.optim.SGD(pairs, lr=0.05)
    with pytest.raises(CheckpointError, match="groups with the same numbers"):
        load_torch_state(opt.SGD(), theirs.state_dict(), model)
    with pytest.raises(CheckpointError, match="a model; got none"):
        load_torch_state(opt.SGD(), theirs.state_dict())
    pairs = [{"params": list(model[i].named_parameters())} for i in (2, 0)]
    theirs = torch.optim.SGD(pairs, lr=0.05)
    with pytest.raises(CheckpointError, match="names that occur once, or one group"):
        load_torch_state(opt.SGD(), theirs.state_dict(), list(model.parameters()))


def test_keras_momentum_at_rate_0_cannot_be_told() -> None:
    model, theirs = trained("SGD", {"lr": 0.05, "momentum": 0.5})
    ours = opt.SGD(momentum=0.5)
    theirs.param_groups[0]["lr"] = 0.0
    load_torch_state(ours, theirs.state_dict(), model)
    given = torch_state(ours, model)["state"]
    for number, state in theirs.state_dict()["state"].items():
        buffers = given[number]["momentum_buffer"], state["momentum_buffer"]
        assert torch.equal(*buffers)
    ours.torch_formula = False
    with pytest.raises(CheckpointError, match="a learning rate above 0"):
        torch_state(ours, model)


def test_what_torch_lacks_is_not_given() -> None:
    model = make_model()
    with pytest.raises(CheckpointError, match="no weight decay"):
        torch_state(opt.SGD(weight_decay=0.1), model)
    with pytest.raises(CheckpointError, match=r"decay=0\.5"):
        torch_state(opt.Adam(decay=0.5), model)
    with pytest.raises(CheckpointError, match="Lion"):
        torch_state(opt.Lion(), model)
    given = torch_state(opt.Adam(weight_decay=0.1), model)
    assert given["param_groups"][0]["decoupled_weight_decay"] is True
    assert given["state"] == {}
