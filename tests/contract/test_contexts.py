"""Modes of torch that are in force around a step: it does what it does without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

import thalweg as tw
from tests.contract.test_optimizers import NEEDS_ALL_ROWS, every_optimizer
from tests.unit.optim.twins import TWINS
from thalweg import optim

OTHER_DEVICE = torch.device("meta")
"""Stands for any that is not the CPU: what is made there by mistake is of no use."""


@contextmanager
def other_default_device() -> Iterator[None]:
    torch.set_default_device(OTHER_DEVICE)
    try:
        yield
    finally:
        torch.set_default_device(None)


def tensor(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cpu")


def strided(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.t().contiguous().t()


def train(cls: Any, mode: AbstractContextManager[Any], *, is_sparse: bool) -> Any:
    """Two steps in the mode and one outside, over layouts that need copies."""
    held = [
        torch.nn.Parameter(value)
        for value in (tensor(3), strided(tensor(4, 3)), tensor(5, 6)[:, ::2])
    ]
    indices = torch.tensor([4, 1, 4], device="cpu")

    def take_step(optimizer: Any, seed: int) -> None:
        last: Any = tensor(5, 3, seed=seed)
        if is_sparse:
            last = tw.IndexedSlices(tensor(3, 3, seed=seed), indices, (5, 3))
        grads = [tensor(3, seed=seed), strided(tensor(4, 3, seed=seed)), last]
        optimizer.apply_gradients(zip(grads, held, strict=True))

    with mode:
        optimizer = cls(use_ema=True, global_clipnorm=1.0, nonfinite="skip")
        take_step(optimizer, 1)
        take_step(optimizer, 2)
    take_step(optimizer, 3)
    return held, [int(optimizer.iterations), *optimizer.get_weights()]


@every_optimizer
@pytest.mark.parametrize("mode", [torch.inference_mode, other_default_device])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_steps_begun_in_a_mode_go_on_outside(
    cls: Any, mode: Any, *, is_sparse: bool
) -> None:
    if is_sparse and cls.__name__ in NEEDS_ALL_ROWS:
        is_sparse = False
    expected, weights = train(cls, torch.enable_grad(), is_sparse=is_sparse)
    held, own = train(cls, mode(), is_sparse=is_sparse)
    assert all(map(torch.equal, held, expected))
    for mine, theirs in zip(own, weights, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=0.0)


def test_cycles_of_accumulation_know_no_default_device() -> None:
    variable = torch.nn.Parameter(torch.ones(3))
    with other_default_device():
        optimizer = tw.optimizers.SGD(1.0, gradient_accumulation_steps=2)
        for _ in range(4):
            optimizer.apply_gradients([(tensor(3), variable)])
    torch.testing.assert_close(variable.detach(), 1.0 - 2.0 * tensor(3))


# torch's own constructor makes the steps of Adagrad where the default is.
@pytest.mark.parametrize("name", [name for name in TWINS if name != "Adagrad"])
@pytest.mark.parametrize("mode", [torch.inference_mode, other_default_device])
def test_drop_ins_begun_in_a_mode_go_on_outside(name: str, mode: Any) -> None:
    found = []
    for context in (torch.enable_grad(), mode()):
        held = torch.nn.Parameter(strided(tensor(4, 3)))
        held.grad = tensor(4, 3, seed=2)
        optimizer = getattr(optim, name)([held], lr=0.1)
        with context:
            optimizer.step()
            optimizer.step()
        optimizer.step()
        found.append(held.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["ResourceApplyAdam", "ResourceApplyMomentum"])
def test_raw_ops_know_no_default_device(name: str) -> None:
    numbers = {"lr": 0.1, "momentum": 0.9}
    if name == "ResourceApplyAdam":
        numbers = {"beta1_power": 0.9, "beta2_power": 0.99, "lr": 0.1}
        numbers |= {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-7}
    slots = {"accum": 1} if "momentum" in numbers else {"m": 1, "v": 2}
    found = []
    for context in (torch.enable_grad(), other_default_device()):
        held = {n: tensor(3, seed=s).abs() for n, s in {"var": 3, **slots}.items()}
        with context:
            getattr(tw.raw_ops, name)(**held, **numbers, grad=tensor(3, seed=4))
        found.append(torch.stack(list(held.values())))
    assert torch.equal(*found)
