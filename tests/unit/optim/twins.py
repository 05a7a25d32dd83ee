"""The twins of torch's optimizers, and problems on which both are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from thalweg import optim

TWINS = (
    *("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta"),
    *("RMSprop", "ASGD", "Rprop"),
)
OWN = ("Lion", "LAMB", "RowWiseAdagrad")
SHAPES = ((4, 3), (5,), (), (2, 3, 2))

Parameters = list[torch.nn.Parameter]


def twin(name: str) -> tuple[Any, Any]:
    """torch's class, and the one here."""
    return getattr(torch.optim, name), getattr(optim, name)


def parameters(
    shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float64
) -> Parameters:
    """The same values at every call."""
    generator = torch.Generator().manual_seed(3)
    values = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [torch.nn.Parameter(value.to(dtype)) for value in values]


def set_gradients(number: int, *models: Sequence[torch.Tensor]) -> None:
    """Give all models the gradients of a step; every fifth time one has none."""
    generator = torch.Generator().manual_seed(1000 + number)
    for i, same in enumerate(zip(*models, strict=True)):
        shape = same[0].shape
        grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        for parameter in same:
            is_unused = number % 5 == 3 and i == 1
            own = grad.to(parameter.dtype, copy=True)
            parameter.grad = None if is_unused else own


def run(
    optimizers: Sequence[torch.optim.Optimizer],
    models: Sequence[Sequence[torch.Tensor]],
    steps: int = 50,
    after: Callable[[int], None] | None = None,
) -> None:
    """Take the same steps with all optimizers."""
    for number in range(steps):
        set_gradients(number, *models)
        for optimizer in optimizers:
            optimizer.step()
        if after is not None:
            after(number)


def assert_alike(
    own: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], bound: float = 1e-12
) -> None:
    """Parameters differ by at most a share of their largest element."""
    for a, b in zip(own, theirs, strict=True):
        assert bool(torch.isfinite(a).all())
        scale = b.detach().abs().max().clamp(min=1e-30)
        assert float((a - b).detach().abs().max() / scale) <= bound


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch keeps products and rates of a parameter in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
