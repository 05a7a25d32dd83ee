"""Steps of torch's kind that a device counts: no waiting, and captured."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from tests.unit.optim.twins import TWINS, Parameters, assert_alike, parameters, twin
from tests.unit.step.pretended_device import (
    DEVICE,
    PretendedDevice,
    pretended_device,
)
from thalweg import optim

CAPTURABLE = [name for name in TWINS if name not in ("SGD", "Adagrad")]


@pytest.fixture(scope="module")
def shared() -> Iterator[PretendedDevice]:
    with pretended_device() as found:
        yield found


@pytest.fixture
def device(shared: PretendedDevice) -> PretendedDevice:
    return shared


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
