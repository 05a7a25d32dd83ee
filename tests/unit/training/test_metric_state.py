"""What a metric holds goes into another one, which goes on from there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import thalweg as tw
from thalweg.training.metric_state import put_state, state_of

MAKE: list[Callable[[], tw.metrics.Metric]] = [
    lambda: tw.metrics.Mean(),
    lambda: tw.metrics.get("accuracy"),
    lambda: tw.metrics.get("precision"),
]


@pytest.mark.parametrize("make", MAKE)
def test_another_metric_goes_on(make: Callable[[], tw.metrics.Metric]) -> None:
    first, second = make(), make()
    batches = [(torch.tensor([0.0, 1.0]), torch.tensor([0.25, 0.75]))]
    batches.append((torch.tensor([1.0, 1.0]), torch.tensor([0.25, 1.0])))
    one_argument = type(first) is tw.metrics.Mean

    def update(metric: tw.metrics.Metric, batch: tuple[torch.Tensor, ...]) -> None:
        metric.update_state(*(batch[1:] if one_argument else batch))

    update(first, batches[0])
    put_state(second, state_of(first), torch.device("cpu"))
    for metric in (first, second):
        update(metric, batches[1])
    assert float(second.result()) == float(first.result())
    fresh = make()
    update(fresh, batches[1])
    assert float(fresh.result()) != float(first.result())
