"""Every scheduler of torch drives these optimizers as it drives torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

from tests.unit.optim.twins import assert_alike, default_dtype, parameters, run, twin

Make = Callable[[torch.optim.Optimizer], Any]


def sequential(optimizer: torch.optim.Optimizer) -> Any:
    parts: list[Any] = [
        schedulers.LinearLR(optimizer, 0.1, total_iters=5),
        schedulers.CosineAnnealingLR(optimizer, 20),
    ]
    return schedulers.SequentialLR(optimizer, parts, [5])


def chained(optimizer: torch.optim.Optimizer) -> Any:
    constant: Any = schedulers.ConstantLR(optimizer, 0.5, total_iters=5)
    return schedulers.ChainedScheduler(
        [constant, schedulers.ExponentialLR(optimizer, 0.9)], optimizer
    )


MAKERS: dict[str, Make] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda n: 0.9**n),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda _: 0.95),
    "StepLR": lambda o: schedulers.StepLR(o, 7),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [5, 20]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.3, total_iters=9),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.1, total_iters=30),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 40, 2.0),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 25),
    "WarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 8),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.001, 0.1, 6),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=60),
    "SWALR": lambda o: SWALR(o, swa_lr=0.01),
    "SequentialLR": sequential,
    "ChainedScheduler": chained,
}


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("scheduler", list(MAKERS))
def test_a_scheduler(scheduler: str, name: str) -> None:
    options: dict[str, Any] = {"momentum": 0.9} if name == "SGD" else {}
    with default_dtype(torch.float64):
        theirs, own = parameters(), parameters()
        classes = zip(twin(name), (theirs, own), strict=True)
        pair = [c(held, lr=0.05, **options) for c, held in classes]
        rates = [MAKERS[scheduler](optimizer) for optimizer in pair]
        run(pair, (theirs, own), after=lambda _: [rate.step() for rate in rates])
    assert pair[1].param_groups[0]["lr"] == pair[0].param_groups[0]["lr"]
    assert_alike(own, theirs)


def test_one_cycle_moves_the_momentum() -> None:
    (weight,) = parameters(((2,),))
    _, make = twin("AdamW")
    optimizer = make([weight], lr=0.1)
    before = optimizer.param_groups[0]["betas"]
    schedulers.OneCycleLR(optimizer, 0.1, total_steps=10)
    assert optimizer.param_groups[0]["betas"] != before


def test_a_plateau_lowers_the_rate() -> None:
    (weight,) = parameters(((2,),))
    _, make = twin("AdamW")
    optimizer = make([weight], lr=0.1)
    plateau = schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    for _ in range(4):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        plateau.step(1.0)
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_a_tensor_rate_is_read_in_every_step() -> None:
    (weight,) = parameters(((2,),), torch.float32)
    _, make = twin("SGD")
    rate = torch.tensor(1.0)
    optimizer = make([weight], lr=rate)
    for value in (1.0, 0.5, 0.0):
        rate.fill_(value)
        before = weight.detach().clone()
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        torch.testing.assert_close(before - weight.detach(), torch.full((2,), value))


@pytest.mark.parametrize("is_first", [True, False])
def test_resuming_a_scheduler_before_or_after_the_optimizer(is_first: bool) -> None:
    def made() -> tuple[Any, Any, Any]:
        held = parameters(dtype=torch.float32)
        optimizer = twin("AdamW")[1](held, lr=0.1)
        return held, optimizer, schedulers.CosineAnnealingLR(optimizer, 30)

    held, optimizer, rate = made()
    run([optimizer], [held], 10, lambda _: rate.step())
    saved = optimizer.state_dict(), rate.state_dict()
    values = [p.detach().clone() for p in held]
    resumed, other, other_rate = made()
    with torch.no_grad():
        for parameter, value in zip(resumed, values, strict=True):
            parameter.copy_(value)
    if is_first:
        other_rate.load_state_dict(saved[1])
        other.load_state_dict(saved[0])
    else:
        other.load_state_dict(saved[0])
        other_rate.load_state_dict(saved[1])
    run([optimizer, other], [held, resumed], 1)
    for pair, scheduler in ((optimizer, rate), (other, other_rate)):
        scheduler.step()
        assert pair.param_groups[0]["initial_lr"] == 0.1
    run([optimizer, other], [held, resumed], 5)
    assert all(map(torch.equal, held, resumed))
