"""The rules that only `thalweg.optim` has equal their formulas in float64 NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from thalweg.compiler.rule import Rule
from thalweg.rules.penalty import l2_penalty
from thalweg.rules.radam import radam
from thalweg.rules.rprop import rprop
from thalweg.step import launch_dense


def arrays(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(11)
    values = [random.standard_normal((7, 3)) for _ in range(count)]
    values[2] = np.abs(values[2])
    return values


def launched(rule: Any, values: list[np.ndarray], **scalars: float) -> list[np.ndarray]:
    tensors = [torch.tensor(value) for value in values]
    launch_dense(Rule.of(rule), {}, tensors, scalars)
    return [tensor.numpy() for tensor in tensors[:-1]]


@pytest.mark.parametrize("step", [1, 3, 5, 6, 50, 5000])
def test_radam(step: int) -> None:
    var, m, v, grad = values = arrays(4)
    beta1, beta2, rate, epsilon = 0.9, 0.99, 0.1, 1e-3
    first, second = beta1**step, beta2**step
    new_m = beta1 * m + (1 - beta1) * grad
    new_v = beta2 * v + (1 - beta2) * grad**2
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * second / (1 - second)
    gain: Any = 1.0
    if length > 5:
        rectified = (length - 4) * (length - 2) * longest
        rectified /= (longest - 4) * (longest - 2) * length
        gain = np.sqrt(rectified * (1 - second)) / (np.sqrt(new_v) + epsilon)
    expected = [var - rate * new_m / (1 - first) * gain, new_m, new_v]
    scalars = {"beta1": beta1, "beta2": beta2, "lr": rate, "epsilon": epsilon}
    powers = {"beta1_power": first, "beta2_power": second, "global_step": float(step)}
    for own, wanted in zip(
        launched(radam, values, **scalars, **powers), expected, strict=True
    ):
        np.testing.assert_allclose(own, wanted, rtol=1e-12, atol=1e-13)


def test_rprop() -> None:
    var, prev, size, grad = values = arrays(4)
    grad[0] = 0.0
    turned = grad * prev < 0
    factor = np.where(grad * prev > 0, 1.2, np.where(turned, 0.5, 1.0))
    new_size = np.clip(size * factor, 0.1, 1.0)
    kept = np.where(turned, 0.0, grad)
    expected = [var - np.sign(kept) * new_size, kept, new_size]
    bounds = {"shrink": 0.5, "grow": 1.2, "smallest": 0.1, "largest": 1.0}
    for own, wanted in zip(launched(rprop, values, **bounds), expected, strict=True):
        np.testing.assert_array_equal(own, wanted)


def test_l2_penalty() -> None:
    grad, var = torch.tensor([1.0, 2.0]), torch.tensor([4.0, -4.0])
    assert l2_penalty(grad, var, weight_decay=0.5).tolist() == [3.0, 0.0]
