"""What a metric holds goes into another one, which goes on from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchmetrics

import thalweg as tw
from thalweg.training.metric_state import put_state, state_of

CPU = torch.device("cpu")
BATCHES = [
    (torch.tensor([0.0, 1.0]), torch.tensor([0.25, 0.75])),
    (torch.tensor([1.0, 1.0]), torch.tensor([0.25, 1.0])),
]


class Kept(tw.metrics.Metric):
    """A metric of somebody's own that keeps tensors."""

    def __init__(self) -> None:
        super().__init__("kept")
        self.total, self.seen = torch.zeros(2), [torch.zeros(())]

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        del sample_weight
        self.total.add_(y_true + y_pred)
        self.seen.append(y_pred.sum())

    def result(self) -> Any:
        return self.total.sum() + 10 * torch.stack(self.seen).sum()


class Counted(Kept):
    """One that gives its state itself."""

    def state_dict(self) -> dict[str, Any]:
        return {"of mine": (self.total.clone(), list(self.seen))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total, self.seen = state_dict["of mine"]


MAKE: dict[str, Callable[[], tw.metrics.Metric]] = {
    "mean": lambda: tw.metrics.Mean(),
    "accuracy": lambda: tw.metrics.get("accuracy"),
    "precision": lambda: tw.metrics.get("precision"),
    "mae": lambda: tw.metrics.get("mae"),
    "torchmetrics": lambda: tw.metrics.get(torchmetrics.MeanSquaredError()),
    "collection": lambda: tw.metrics.TorchMetric(
        torchmetrics.MetricCollection([torchmetrics.MeanAbsoluteError()])
    ),
    "kept": Kept,
    "counted": Counted,
}


def update(metric: tw.metrics.Metric, batch: tuple[torch.Tensor, ...]) -> None:
    metric.update_state(*(batch[1:] if type(metric) is tw.metrics.Mean else batch))


def value_of(metric: tw.metrics.Metric) -> float:
    found = metric.result()
    return float(sum(found.values()) if isinstance(found, dict) else found)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("is_saved", [True, False])
def test_another_metric_goes_on(kind: str, is_saved: bool) -> None:
    first, second, fresh = (MAKE[kind]() for _ in range(3))
    update(first, BATCHES[0])
    if is_saved:
        put_state(second, state_of(first), CPU)
    else:
        second.load_state_dict(first.state_dict())
    for metric in (first, second):
        update(metric, BATCHES[1])
    assert value_of(second) == value_of(first)
    update(fresh, BATCHES[1])
    assert value_of(fresh) != value_of(first)


MEAN = {"_is_empty": False, "_total": 1.0, "_count": 2}
SAVED: dict[str, Any] = {
    "mean": {"": MEAN},
    "accuracy": {
        "": {"_is_class_second": False, "labels_are_clean": False},
        "_metric BinaryAccuracy": {**MEAN, "_total": 2, "threshold": 0.0},
    },
    "precision": {"": {"threshold": 0.0}, "_mean Mean": MEAN},
    "mae": {"": {**MEAN, "_total": 0.5}},
}


@pytest.mark.parametrize("kind", SAVED)
def test_a_checkpoint_holds_the_same_as_ever(kind: str) -> None:
    metric, other = MAKE[kind](), MAKE[kind]()
    y_true, y_pred = BATCHES[0]
    update(metric, (y_true, y_pred - 0.5) if kind == "accuracy" else BATCHES[0])
    assert state_of(metric) == SAVED[kind]
    put_state(other, SAVED[kind], CPU)
    assert value_of(other) == value_of(metric)


def test_a_state_of_a_class_s_own_stands_under_its_name() -> None:
    metric, other = Counted(), Counted()
    update(metric, BATCHES[0])
    assert list(state_of(metric)) == ["own"]
    put_state(other, {"own": metric.state_dict()}, CPU)
    assert value_of(other) == value_of(metric)


def test_what_was_taken_is_a_copy() -> None:
    first, second = Kept(), Kept()
    update(first, BATCHES[0])
    second.load_state_dict(first.state_dict())
    before = value_of(first)
    update(second, BATCHES[1])
    assert value_of(first) == before
