"""A variable that was given memory of another shape: kernels would leave its slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import thalweg as tw

SHAPES = [(40, 2), (3, 4), (2, 2), (6, 1)]


def all_optimizers() -> list[str]:
    """The names of all optimizers that keep something of a variable's shape."""
    kinds = vars(tw.optimizers).values()
    classes = [k for k in kinds if isinstance(k, type) and issubclass(k, tw.Optimizer)]
    names = {k.__name__ for k in classes} - {"Optimizer", "RowWiseAdagrad", "SGD"}
    return sorted(names - {"LossScaleOptimizer"})


def dense(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.ones(shape)


def rows(shape: tuple[int, ...]) -> tw.IndexedSlices:
    values = torch.ones(1, *shape[1:])
    return tw.IndexedSlices(values, torch.tensor([shape[0] - 1]), shape)


@pytest.mark.parametrize("gradient", [dense, rows])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", all_optimizers())
def test_a_step_is_refused_and_changes_nothing(
    name: str, shape: tuple[int, int], gradient: Callable[[tuple[int, ...]], Any]
) -> None:
    variable = tw.Variable(torch.zeros(3, 2))
    optimizer = getattr(tw.optimizers, name)()
    for _ in range(3):
        optimizer.apply_gradients([(gradient((3, 2)), variable)])
    variable.data = torch.zeros(shape)
    before = [weight.copy() for weight in optimizer.get_weights()]
    with pytest.raises(ValueError, match="shape"):
        optimizer.apply_gradients([(gradient(shape), variable)])
    assert not variable.detach().any()
    for old, new in zip(before, optimizer.get_weights(), strict=True):
        assert (old == new).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sum_of_gradients_is_not_left(shape: tuple[int, int]) -> None:
    variable = tw.Variable(torch.zeros(3, 2))
    optimizer = tw.optimizers.SGD(gradient_accumulation_steps=4)
    for _ in range(6):
        optimizer.apply_gradients([(torch.ones(3, 2), variable)])
    variable.data = torch.zeros(shape)
    with pytest.raises(ValueError, match="resized"):
        optimizer.apply_gradients([(torch.ones(shape), variable)])


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_drop_in_refuses_it(shape: tuple[int, int], *, is_sparse: bool) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = tw.optim.Adagrad([parameter])

    def gradient(size: tuple[int, ...]) -> torch.Tensor:
        return rows(size).to_sparse() if is_sparse else dense(size)

    for _ in range(3):
        parameter.grad = gradient((3, 2))
        optimizer.step()
    parameter.grad = None
    parameter.data = torch.zeros(shape)
    parameter.grad = gradient(shape)
    with pytest.raises(ValueError, match="shape"):
        optimizer.step()
    assert not parameter.detach().any()


@pytest.mark.parametrize("shape", [(3, 2), (2, 3)])
def test_new_memory_of_the_old_shape_is_taken(shape: tuple[int, int]) -> None:
    variable = tw.Variable(torch.zeros(shape))
    optimizer = tw.optimizers.Adam()
    for _ in range(3):
        optimizer.apply_gradients([(torch.ones(shape), variable)])
    variable.data = torch.zeros(shape)
    optimizer.apply_gradients([(torch.ones(shape), variable)])
    assert variable.detach().all()
