"""Runs that are stopped after a random step and resumed, against one that is not.

Every optimizer, with what it can keep besides its slots, over float32 and bfloat16
variables: what counts is whether all bits of the ends of both runs are the same.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

import thalweg as tw
from tests.contract import test_resume as contract
from tests.unit.checkpoint.slot_keeper import same_bits

STEPS: Final = 16
STOPS: Final = 5
VARIANTS: Final = ("plain", "small slots", "everything", "accumulation", "loss scale")
NO_OPTIMIZERS: Final = ("DropIn", "Extras")
DROP_INS: Final = tuple(n for n in tw.optim.__all__ if n not in NO_OPTIMIZERS)

Make = Callable[[nn.Module], Any]


def runs(quick: bool) -> Iterator[tuple[str, Make, torch.dtype]]:
    """Each optimizer in each way, with the dtype of its variables."""
    names = tw.optimizers.names()
    for dtype in contract.DTYPES:
        for variant in VARIANTS[-2:] if quick else VARIANTS:
            for name in names[:2] if quick else names:
                yield f"{name}, {variant}", partial(_keras, name, variant), dtype
        for name in DROP_INS[:2] if quick else DROP_INS:
            yield f"optim.{name}", partial(_drop_in, name), dtype


def _keras(name: str, variant: str, model: nn.Module) -> Any:
    del model
    return contract.make_optimizer(name, variant)


def _drop_in(name: str, model: nn.Module) -> Any:
    return getattr(tw.optim, name)(model.named_parameters(), ema_decay=0.9)


def stopped_and_resumed(quick: bool) -> tuple[int, list[str]]:
    """How many runs were resumed, and which of them ended with other bits."""
    trials, wrong = 0, []
    for number, (name, make, dtype) in enumerate(runs(quick)):
        stops = random.Random(number).sample(range(STEPS), STOPS)
        with tempfile.TemporaryDirectory() as folder:
            wrong += [
                f"{name} over {dtype} after {stop}"
                for stop in _other_bits(make, dtype, Path(folder), stops)
            ]
        trials += STOPS
    return trials, wrong


def _other_bits(
    make: Make, dtype: torch.dtype, folder: Path, stops: list[int]
) -> Iterator[int]:
    model, optimizer, checkpoint = _new(make, dtype)
    torch.manual_seed(1)
    for step in range(STEPS):
        if step in stops:
            checkpoint.save(folder / str(step))
        _train(model, optimizer, 1)
    expected = contract.bits_of(model=model, optimizer=optimizer)
    for stop in stops:
        model, optimizer, checkpoint = _new(make, dtype)
        torch.manual_seed(99)
        checkpoint.restore(folder / str(stop)).assert_consumed()
        _train(model, optimizer, STEPS - stop)
        found = contract.bits_of(model=model, optimizer=optimizer)
        same = found.keys() == expected.keys()
        if not (same and all(same_bits(found[k], expected[k]) for k in found)):
            yield stop


def _new(make: Make, dtype: torch.dtype) -> tuple[nn.Module, Any, tw.Checkpoint]:
    model = contract.make_model(dtype)
    optimizer = make(model)
    objects = {"model": model, "optimizer": optimizer, "random": tw.RandomState()}
    return model, optimizer, tw.Checkpoint(**objects)


def _train(model: nn.Module, optimizer: Any, steps: int) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        contract.train(model, optimizer, range(steps))
        return
    for _ in range(steps):
        optimizer.zero_grad()
        dtype = next(model.parameters()).dtype
        (model(torch.randn(4, 3).to(dtype)) ** 2).mean().backward()
        if isinstance(optimizer, tw.optim.SparseAdam):
            for parameter in model.parameters():
                # As of an embedding of which all rows were looked up.
                dense: Any = parameter.grad
                parameter.grad = dense.to_sparse(1)
        optimizer.step()
