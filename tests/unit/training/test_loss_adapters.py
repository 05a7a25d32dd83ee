"""Functions and torch modules as losses, and the lookup."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.errors import describe
from thalweg.training.loss_adapters import FunctionLoss, TorchLoss, get
from thalweg.training.losses import Loss, MeanSquaredError

TRUE, PRED = torch.zeros(4, 2), torch.arange(8.0).reshape(4, 2)
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0], [1.0, 1.0, 1.0]])
LABELS = torch.tensor([0, 2, -100])


def test_torch_functions_are_called_in_torchs_order():
    seen = get(functional.cross_entropy)
    expected = functional.cross_entropy(LOGITS[:2], LABELS[:2])
    torch.testing.assert_close(seen(LABELS[:2], LOGITS[:2]), expected)


def test_own_functions_are_called_in_kerass_order():
    loss = get(lambda y_true, y_pred: (y_pred - 2 * y_true).mean(-1))
    assert loss(TRUE + 1, PRED).item() == 1.5
    assert loss.total(TRUE, PRED)[1] == 4


@pytest.mark.parametrize("value", [3.0, None, numpy.float64(2.0), (PRED,)])
@pytest.mark.parametrize("call", ["total", "mean", "__call__"])
def test_what_returns_no_tensor_is_named(value, call):
    def mine(y_true, y_pred):
        return value

    class Mine(Loss):
        def items(self, y_true, y_pred):
            return value

    class MyModule(nn.Module):
        forward = staticmethod(mine)

    for loss in (mine, Mine(), MyModule()):
        name = get(loss).name
        with pytest.raises(TypeError) as caught:
            getattr(get(loss), call)(TRUE, PRED)
        assert str(caught.value) == (
            f"{name}: expected a tensor; got {describe(value)}. Return one number an "
            "item, or their mean."
        )


def test_a_mean_counts_as_many_items_as_samples():
    loss = FunctionLoss(lambda y_true, y_pred: (y_pred - y_true).mean())
    total, count = loss.total(TRUE, PRED)
    assert (total.item(), count) == (14.0, 4)
    total, count = loss.total(TRUE[:0], PRED[:0])
    assert (total.item(), count) == (0.0, 0)
    with pytest.raises(ValueError, match="one number an item"):
        loss.total(TRUE, PRED, torch.ones(4))


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 5.0])])
def test_cross_entropy_module_sum_and_count_give_its_mean(weight):
    module = nn.CrossEntropyLoss(weight=weight)
    loss = get(module)
    total, count = loss.total(LABELS, LOGITS)
    torch.testing.assert_close(total / count, module(LOGITS, LABELS))
    assert loss.label_limit(LOGITS) == 3
    assert loss.has_class_weights == (weight is not None)


def test_cross_entropy_module_of_distributions():
    module, targets = nn.CrossEntropyLoss(), LOGITS.softmax(-1)
    total, count = get(module).total(targets, LOGITS)
    torch.testing.assert_close(total / count, module(LOGITS, targets))
    mean, count = get(module).mean(targets, LOGITS)
    torch.testing.assert_close(mean, module(LOGITS, targets))
    assert count == 3


def test_sum_reduction_is_never_divided():
    loss = get(nn.MSELoss(reduction="sum"))
    assert not loss.is_averaged
    assert loss.total(TRUE, PRED)[0].item() == (PRED * PRED).sum().item()


@pytest.mark.parametrize("module", [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss()])
def test_other_modules(module):
    loss = get(module)
    total, count = loss.total(TRUE, PRED)
    torch.testing.assert_close(total / count, module(PRED, TRUE))
    assert loss.label_limit(PRED) is None


def test_a_module_without_reduction():
    class Own(nn.Module):
        def forward(self, outputs, targets):
            return (outputs - targets).mean()

    total, count = TorchLoss(Own()).total(TRUE, PRED)
    assert (total.item(), count) == (14.0, 4)


def test_lookup():
    assert get("MeanSquaredError").name == "mean_squared_error"
    assert get("MSE").name == "mean_squared_error"
    own = MeanSquaredError()
    assert get(own) is own
    assert isinstance(get(MeanSquaredError), MeanSquaredError)
    assert isinstance(get(nn.MSELoss), TorchLoss)


def test_lookup_refuses():
    with pytest.raises(ValueError, match="Did you mean 'mean_squared_error'"):
        get("mean_sqared_error")
    with pytest.raises(TypeError, match=r"a loss; got 3 \(int\)"):
        get(3)  # pyright: ignore[reportArgumentType]
