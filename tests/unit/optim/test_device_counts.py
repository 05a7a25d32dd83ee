"""Steps of torch's kind that a device counts: no waiting, and captured."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.unit.optim.twins import TWINS, Parameters, assert_alike, parameters, twin
from tests.unit.step.pretended_device import (
    DEVICE,
    PretendedDevice,
    WaitedError,
)
from thalweg import optim

CAPTURABLE = [name for name in TWINS if name not in ("SGD", "Adagrad")]


def there(held: Sequence[torch.Tensor]) -> Parameters:
    return [torch.nn.Parameter(p.detach().to(DEVICE)) for p in held]


def give(
    number: int, *models: Sequence[torch.Tensor], unused: int = -1, bad: bool = False
) -> None:
    """Give all models the same gradients, each where it is."""
    generator = torch.Generator().manual_seed(number)
    for i, same in enumerate(zip(*models, strict=True)):
        shape = same[0].shape
        grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        if bad:
            grad.view(-1)[-1:] = torch.nan
        for parameter in same:
            parameter.grad = None if i == unused else grad.to(parameter.device)


def back(held: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [parameter.detach().cpu() for parameter in held]


def pair_of(name: str, **options: Any) -> tuple[Any, Any, Parameters, Parameters]:
    """torch's optimizer on the host, ours on the device."""
    torch_class, own_class = twin(name)
    here = parameters()
    own = there(here)
    takes = {} if name == "SGD" else {"capturable": True}
    return torch_class(here, **options), own_class(own, **takes, **options), here, own


@pytest.mark.parametrize("name", [*CAPTURABLE, "SGD"])
def test_the_device_counts_as_torch_does(name: str, device: PretendedDevice) -> None:
    options: dict[str, Any] = {"momentum": 0.9, "dampening": 0.5}
    theirs, own, here, held = pair_of(
        name, lr=0.05, **(options if name == "SGD" else {})
    )
    for number, unused in enumerate((-1, 1, -1, 1, -1)):
        give(number, here, held, unused=unused)
        theirs.step()
        if number < 2:
            own.step()
            continue
        with device.no_waiting():
            own.step()
    assert_alike(back(held), here, 1e-6 if name in ("NAdam", "ASGD") else 1e-10)
    for parameter, twin_of_it in zip(held, here, strict=True):
        step = own.state[parameter].get("step")
        assert name == "SGD" or step.device == DEVICE
        assert name == "SGD" or step.cpu() == theirs.state[twin_of_it]["step"]


def test_a_rate_on_the_device_follows_its_scheduler(device: PretendedDevice) -> None:
    here = parameters()
    held = there(here)
    theirs = torch.optim.AdamW(here, lr=0.1)
    groups: list[Any] = [{"params": held[:2]}, {"params": held[2:], "lr": 0.1}]
    own = optim.AdamW(groups, lr=torch.tensor(0.1).to(DEVICE), capturable=True)
    rate = own.param_groups[0]["lr"]
    for number in range(4):
        give(number, here, held)
        theirs.step()
        if number == 0:
            own.step()
        else:
            with device.no_waiting():
                own.step()
        with device.no_waiting():
            rate.mul_(0.5)
        theirs.param_groups[0]["lr"] = own.param_groups[1]["lr"] = 0.1 * 0.5 ** (
            number + 1
        )
    assert_alike(back(held), here, 1e-6)  # a rate in float32


def test_the_device_leaves_steps_out(device: PretendedDevice) -> None:
    theirs, _, here, held = pair_of("NAdam")
    own = optim.NAdam(held, capturable=True, nonfinite="skip", max_grad_norm=100.0)
    for number, bad in enumerate((False, True, False, True)):
        give(number, here, held, bad=bad)
        if not bad:
            theirs.step()
        if number == 0:
            own.step()
            continue
        with device.no_waiting():
            own.step()
        assert own.last_step_applied is not bad
    assert_alike(back(held), here, 1e-6)
    assert own.state[held[0]]["step"].item() == 2
    assert pickle.loads(pickle.dumps(own._status)) == own._status


def test_a_capture_follows_a_step(device: PretendedDevice) -> None:
    theirs, own, here, held = pair_of("Adam", lr=0.1)
    give(0, here, held)
    with device.capture(), pytest.raises(RuntimeError, match="a step before it"):
        own.step()
    for number in range(3):
        give(number, here, held)
        theirs.step()
        if number == 1:
            with device.capture():
                own.step()
        else:
            own.step()
    assert_alike(back(held), here)
    give(3, held, unused=0)
    with device.capture(), pytest.raises(RuntimeError, match="of another kind"):
        own.step()


def test_what_the_host_counts_is_not_captured(device: PretendedDevice) -> None:
    held = there(parameters())
    for optimizer in (optim.Adam(held), optim.Adagrad(held)):
        give(0, held)
        optimizer.step()
        with device.capture(), pytest.raises(RuntimeError, match="keeps count"):
            optimizer.step()
        assert optimizer.state[held[0]]["step"].item() == 1


@pytest.mark.parametrize("way", ["option", "state_dict", "deepcopy", "cell"])
def test_counts_move_between_host_and_device(way: str, device: PretendedDevice) -> None:
    theirs, own, here, held = pair_of("Adam", lr=0.1)
    for number in range(4):
        give(number, here, held)
        theirs.step()
        own.step()
        if way == "option":
            own.param_groups[0]["capturable"] = number % 2 == 1
        elif way == "state_dict":
            saved = own.state_dict()
            own = optim.Adam(held, capturable=number % 2 == 1)
            saved["param_groups"][0]["capturable"] = number % 2 == 1
            own.load_state_dict(saved)
        elif way == "deepcopy":
            held, own = copy.deepcopy((held, own))
        else:
            for optimizer, model in ((theirs, here), (own, held)):
                optimizer.state[model[1]]["step"].fill_(7)
    assert_alike(back(held), here)


# -- what a device finds out about gradients ----------------------------------


def give_rows(
    number: int, *models: Sequence[torch.Tensor], bad: bool = False, row: int = 4
) -> None:
    """Rows for the first parameter of each model, the whole for the others."""
    generator = torch.Generator().manual_seed(number)
    for i, same in enumerate(zip(*models, strict=True)):
        shape = same[0].shape
        grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        for parameter in same:
            parameter.grad = grad.to(parameter.device)
            if i == 0:
                parameter.grad = coo(parameter, grad[:3], bad=bad, row=row)


def coo(parameter: torch.Tensor, values: Any, *, bad: bool, row: int) -> torch.Tensor:
    values = values.clone()
    values[1, 0] = torch.nan if bad else values[1, 0]
    place, indices = parameter.device, torch.tensor([[row, 1, row]])
    return torch.sparse_coo_tensor(
        indices.to(place), values.to(place), parameter.shape, check_invariants=False
    )


def tables(place: Any) -> Parameters:
    starts = [torch.ones(6, 4), torch.ones(5), torch.ones(3, 2)]
    return [torch.nn.Parameter(s.double().to(place)) for s in starts]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Adam", {"max_grad_norm": 0.5}),
        ("SGD", {"max_grad_norm": 0.5, "nonfinite": "skip"}),
        ("AdamW", {"nonfinite": "error", "max_grad_norm": 0.5}),
        ("Adam", {"nonfinite": "skip", "sparse_update": "exact"}),
        ("LAMB", {"lr": 0.1, "nonfinite": "skip"}),
    ],
)
def test_checks_and_norms_of_rows_wait_for_nothing(
    name: str, options: dict[str, Any], device: PretendedDevice
) -> None:
    make = getattr(optim, name)
    here, held = tables("cpu"), tables(DEVICE)
    own_takes = {} if name in ("SGD", "LAMB") else {"capturable": True}
    theirs, own = make(here, **options), make(held, **options, **own_takes)
    for group in own.param_groups:
        group["capturable"] = True
    policy = options.get("nonfinite")
    for number in range(4):
        bad = policy == "skip" and number in (1, 3)
        give_rows(number, here, held, bad=bad)
        theirs.step()
        if number < 2:
            own.step()
            continue
        with device.no_waiting():
            own.step()
        assert own.last_step_applied is theirs.last_step_applied is not bad
    assert_alike(back(held), here, 1e-6)


@pytest.mark.parametrize("rows", [False, True])
def test_an_error_is_raised_by_the_next_step(
    rows: bool, device: PretendedDevice
) -> None:
    make = give_rows if rows else give
    here, held = tables("cpu"), tables(DEVICE)
    theirs = optim.Adam(here, lr=0.1)
    own = optim.Adam(held, lr=0.1, capturable=True, nonfinite="error")
    for number in range(4):
        if number > 1:
            make(number, held, bad=True)
            with device.no_waiting():
                own.step()
            make(number, here, held)
            with device.no_waiting(), pytest.raises(FloatingPointError):
                own.step()
        make(number, here, held)
        theirs.step()
        own.step()
    assert own.state[held[0]]["step"].item() == 4
    assert_alike(back(held), here)
    make(9, held, bad=True)
    own.step()
    for way in (own.state_dict, lambda: own.last_step_applied):
        if way == own.state_dict:
            with pytest.raises(FloatingPointError, match="inf or NaN"):
                way()
        way()


@pytest.mark.parametrize("capturable", [False, True])
def test_a_wrong_index_stops_the_dense_part_of_its_step(
    capturable: bool, device: PretendedDevice
) -> None:
    held, others = tables(DEVICE), tables(DEVICE)
    own = optim.Adam(held, lr=0.1, capturable=capturable)
    other = optim.Adam(others, lr=0.1, capturable=capturable)
    for number in range(2):
        give_rows(number, held, others)
        own.step()
        other.step()
    before = list(map(device.look, held))
    give_rows(2, held, row=6)
    give_rows(2, others)
    with device.no_waiting():
        own.step()
        other.step()
    assert all(map(torch.equal, map(device.look, held), before))
    other.state_dict()
    give_rows(3, held)
    with device.no_waiting():
        with pytest.raises(IndexError, match="that step has changed nothing"):
            own.step()
        own.step()
    # Without `capturable` the host counts, which had not heard of it yet.
    count = own.state[held[1]]["step"].item()
    assert count == (3 if capturable else 4)


def test_without_capturable_the_host_decides(device: PretendedDevice) -> None:
    for policy in ("skip", "error"):
        held = tables(DEVICE)
        own = optim.Adam(held, nonfinite=policy)
        give(0, held)
        own.step()
        with device.no_waiting(), pytest.raises(WaitedError):
            own.step()
        give(1, held, bad=True)
        if policy == "skip":
            own.step()
        else:
            with pytest.raises(FloatingPointError):
                own.step()
        assert own.state[held[0]]["step"].item() == 1
