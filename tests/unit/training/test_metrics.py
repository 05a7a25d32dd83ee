"""Metrics: running means, accuracies, torchmetrics objects, the lookup."""

from __future__ import annotations

import pytest
import torch
import torchmetrics
from torch import nn
from torchmetrics.classification import MulticlassF1Score

from thalweg.training import loss_adapters, metrics
from thalweg.training.losses import BinaryCrossentropy

LOGITS = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 4.0, 1.0]])


def test_mean_is_weighted_by_items():
    mean = metrics.Mean("m")
    assert mean.is_empty
    assert mean.result().item() == 0.0
    mean.add_mean(torch.tensor(2.0), 3)
    mean.add(torch.tensor(4.0), torch.tensor(1))
    mean.update_state([1.0, 3.0], sample_weight=torch.tensor([0.0, 2.0]))
    assert mean.result().item() == pytest.approx((6 + 4 + 6) / 6)
    mean.reset_state()
    assert mean.is_empty
    assert mean.result().item() == 0.0


def test_mean_over_ranks_adds_what_they_hold():
    mean = metrics.Mean()
    mean.add_mean(torch.tensor(2.0), 3)
    assert mean.result_over_ranks(None).item() == 2.0
    others = torch.tensor([6.0, 1.0], dtype=torch.float64)
    assert mean.result_over_ranks(lambda state: state + others).item() == 3.0
    assert metrics.Mean().result_over_ranks(lambda state: state).item() == 0.0


def test_mean_holds_no_graph():
    mean = metrics.Mean()
    mean.add(torch.ones((), requires_grad=True) * 2, 1)
    assert not mean.result().requires_grad


@pytest.mark.parametrize(
    ("loss", "y_true", "y_pred", "expected"),
    [
        (None, torch.tensor([0, 2, 0]), LOGITS, 2 / 3),
        (None, torch.tensor([[0], [2], [0]]), LOGITS, 2 / 3),
        (None, torch.tensor([0, 2, -100]), LOGITS, 1.0),
        (None, torch.eye(3), LOGITS, 1 / 3),
        (None, torch.tensor([1, 0, 0]), torch.tensor([[2.0], [-1.0], [1.0]]), 2 / 3),
        (BinaryCrossentropy(), torch.eye(3), LOGITS - 2.5, 6 / 9),
        (BinaryCrossentropy(False), torch.ones(2), torch.tensor([0.4, 0.6]), 0.5),
        (nn.BCELoss(), torch.ones(2), torch.tensor([0.4, 0.6]), 0.5),
        (nn.BCEWithLogitsLoss(), torch.ones(2), torch.tensor([0.4, -0.6]), 0.5),
    ],
)
def test_accuracy_follows_loss_and_shapes(loss, y_true, y_pred, expected):
    metric = metrics.get("accuracy", None if loss is None else loss_adapters.get(loss))
    metric.update_state(y_true, y_pred)
    assert metric.result().item() == pytest.approx(expected)
    metric.reset_state()
    assert metric.result().item() == 0.0


def test_accuracy_of_torchs_class_axis():
    metric = metrics.get("accuracy", loss_adapters.get(nn.CrossEntropyLoss()))
    labels = torch.tensor([[0, 1], [1, 0]])
    metric.update_state(labels, torch.nn.functional.one_hot(labels, 3).movedim(-1, 1))
    assert metric.result().item() == 1.0


def test_named_metrics():
    truth = torch.tensor([1.0, 1.0, 0.0, 0.0])
    score = torch.tensor([2.0, -1.0, 1.0, -3.0])
    for name, expected in [("precision", 0.5), ("recall", 0.5), ("mse", 2.5)]:
        metric = metrics.get(name)
        metric.update_state(truth, score)
        value = metric.result().item()
        reference = (
            (truth - score).square().mean().item() if name == "mse" else expected
        )
        assert value == pytest.approx(reference)
    top = metrics.TopKCategoricalAccuracy(k=2)
    top.update_state(torch.tensor([2, 1, 2]), LOGITS)
    assert top.result().item() == pytest.approx(2 / 3)


def test_functions_give_items_or_means():
    items = metrics.get(lambda y_true, y_pred: (y_true - y_pred).abs())
    items.update_state(torch.zeros(3), torch.tensor([1.0, 2.0, 6.0]))
    assert items.result().item() == 3.0

    def half(y_true, y_pred):
        return (y_true - y_pred).abs().mean() / 2

    mean = metrics.get(half)
    assert mean.name == "half"
    mean.update_state(torch.zeros(2), torch.tensor([1.0, 3.0]))
    mean.update_state(torch.zeros(1), torch.tensor([7.0]))
    assert mean.result().item() == pytest.approx((2 * 1 + 3.5) / 3)


@pytest.mark.parametrize("value", [1.0, None])
def test_a_function_that_returns_no_tensor_is_named(value):
    def mine(y_true, y_pred):
        return value

    pattern = "mine: expected a tensor; got (1.0 .float.|None). Return one number"
    for metric in (metrics.get(mine), metrics.MeanOf("mine", mine)):
        with pytest.raises(TypeError, match=pattern):
            metric.update_state(torch.ones(2), torch.ones(2))
        assert metric.is_empty


def test_torchmetrics_objects_have_the_face():
    metric = metrics.get(MulticlassF1Score(num_classes=3))
    assert metric.name == "multiclass_f1_score"
    assert metric.result().item() == 0.0
    metric.update_state(torch.tensor([0, 2, 1]), LOGITS)
    assert metric.result().item() == 1.0
    assert metric.result_over_ranks(None).item() == 1.0
    metric.update_state(torch.tensor([]), torch.empty(0, 3))
    metric.reset_state()
    assert metric.is_empty


def test_torchmetrics_collections_give_several():
    metric = metrics.get(
        torchmetrics.MetricCollection(
            [torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError()]
        )
    )
    metric.update_state(torch.zeros(2), torch.tensor([1.0, 3.0]))
    assert {k: v.item() for k, v in metric.result().items()} == {
        "MeanSquaredError": 5.0,
        "MeanAbsoluteError": 2.0,
    }


def test_lookup():
    own = metrics.Mean("own")
    assert metrics.get(own) is own
    assert metrics.get(metrics.Recall).name == "recall"
    with pytest.raises(ValueError, match="Did you mean 'accuracy'"):
        metrics.get("acuracy")
    with pytest.raises(TypeError, match="a metric"):
        metrics.get(4)


def test_a_metric_of_your_own_has_to_be_complete():
    metric = metrics.Metric("x")
    for call in (metric.update_state, metric.result, metric.reset_state):
        with pytest.raises(NotImplementedError):
            call()
