"""Metrics of classification; binary ones compare LOGITS with 0 by default."""

from __future__ import annotations

from typing import Any

import torch

from thalweg.training.alignment import aligned, weighted
from thalweg.training.loss_adapters import TorchLoss
from thalweg.training.losses import IGNORED_LABEL, BinaryCrossentropy
from thalweg.training.mean_metrics import Mean, MeanOf, Metric, Reduce

Tensor = torch.Tensor


class SparseCategoricalAccuracy(MeanOf):
    """How often the largest output is at the label's place (classes last)."""

    def __init__(self, name: str = "sparse_categorical_accuracy") -> None:
        super().__init__(name, _is_label_largest)
        self.labels_are_clean = False

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> None:
        """Add one batch; items with the label −100 do not count."""
        if not self.labels_are_clean:
            kept = y_true.reshape(y_pred.shape[:-1]) != IGNORED_LABEL
            sample_weight = kept if sample_weight is None else kept * sample_weight
            sample_weight = sample_weight.to(torch.get_default_dtype())
        super().update_state(y_true, y_pred, sample_weight)


class CategoricalAccuracy(MeanOf):
    """How often targets and outputs have their largest number in the same place."""

    def __init__(self, name: str = "categorical_accuracy") -> None:
        super().__init__(name, _is_largest_same)


class BinaryAccuracy(MeanOf):
    """How often outputs fall on the target's side of a threshold.

    Args:
        name: The key in logs and histories.
        threshold: 0.0 for logits (default); 0.5 for probabilities.
    """

    def __init__(self, name: str = "binary_accuracy", threshold: float = 0.0) -> None:
        super().__init__(name, self._is_on_side)
        self.threshold = threshold

    def _is_on_side(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        truth = aligned(self.name, y_true, y_pred) > 0.5
        return truth == (y_pred > self.threshold)


class TopKCategoricalAccuracy(MeanOf):
    """How often the label is among the `k` largest outputs.

    Labels are class numbers, or one-hot rows of the outputs' shape.
    """

    def __init__(self, k: int = 5, name: str | None = None) -> None:
        super().__init__(
            f"top_{k}_categorical_accuracy" if name is None else name, self._is_in_top
        )
        self.k = k

    def _is_in_top(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        labels = y_true.argmax(-1) if y_true.shape == y_pred.shape else y_true
        labels = labels.reshape(y_pred.shape[:-1])
        top = y_pred.topk(min(self.k, y_pred.shape[-1]), -1).indices
        return (top == labels.unsqueeze(-1)).any(-1)


class Accuracy(Metric):
    """How often the output is right, in the sense that targets and outputs call for.

    The first batch decides: binary where the loss is, or where the last axis of the
    outputs has one element; class numbers where targets have an axis less (or one
    element there); one-hot rows otherwise.

    Args:
        name: The key in logs and histories.
        loss: The model's Loss.
    """

    def __init__(self, name: str = "accuracy", loss: Any = None) -> None:
        super().__init__(name)
        self._loss = loss
        self._metric: MeanOf | None = None
        self._is_class_second = False
        self.labels_are_clean = False

    @property
    def is_empty(self) -> bool:
        """Whether there was no batch yet."""
        return self._metric is None or self._metric.is_empty

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> None:
        """Add one batch."""
        if self._metric is None:
            self._metric = self._choose(y_true, y_pred)
        if self._is_class_second:
            y_pred = y_pred.movedim(1, -1)
        if type(self._metric) is SparseCategoricalAccuracy:
            self._metric.labels_are_clean = self.labels_are_clean
        self._metric.update_state(y_true, y_pred, sample_weight)

    def _choose(self, y_true: Tensor, y_pred: Tensor) -> MeanOf:
        if is_binary_loss(self._loss) or y_pred.ndim < 2 or y_pred.shape[-1] == 1:
            return BinaryAccuracy(self.name, threshold_for(self._loss))
        torch_loss = isinstance(self._loss, TorchLoss)
        self._is_class_second = torch_loss and y_pred.ndim > 2
        if y_true.ndim < y_pred.ndim or y_true.shape[-1] == 1:
            return SparseCategoricalAccuracy(self.name)
        return CategoricalAccuracy(self.name)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave, the decision included."""
        for kind in (BinaryAccuracy, CategoricalAccuracy, SparseCategoricalAccuracy):
            if f"_metric {kind.__name__}" in state_dict and self._metric is None:
                self._metric = kind(self.name)
        super().load_state_dict(state_dict)

    def result(self) -> Tensor:
        """Return the share of right outputs, 0 before the first batch."""
        return torch.zeros(()) if self._metric is None else self._metric.result()

    def reset_state(self) -> None:
        """Forget all batches."""
        if self._metric is not None:
            self._metric.reset_state()

    def result_over_ranks(self, reduce: Reduce | None) -> Tensor:
        """Return the share over all ranks."""
        return (self._metric or Mean()).result_over_ranks(reduce)


class _Counted(Metric):
    """A quotient of two counts of right positive predictions."""

    def __init__(self, name: str, threshold: float = 0.0) -> None:
        super().__init__(name)
        self.threshold = threshold
        self._mean = Mean(name)

    @property
    def is_empty(self) -> bool:
        """Whether there was no batch yet."""
        return self._mean.is_empty

    def _denominator(self, truth: Tensor, guess: Tensor) -> Tensor:
        raise NotImplementedError

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> None:
        """Add one batch of yes-or-no targets and scores."""
        truth = aligned(self.name, y_true, y_pred) > 0.5
        guess = y_pred > self.threshold
        dtype = torch.get_default_dtype()
        hits = weighted((truth & guess).to(dtype), sample_weight)
        of = weighted(self._denominator(truth, guess).to(dtype), sample_weight)
        self._mean.add(hits.sum(), of.sum())

    def result(self) -> Tensor:
        """Return the quotient, 0 if there was nothing to count."""
        return self._mean.result()

    def reset_state(self) -> None:
        """Forget all batches."""
        self._mean.reset_state()

    def result_over_ranks(self, reduce: Reduce | None) -> Tensor:
        """Return the quotient over all ranks."""
        return self._mean.result_over_ranks(reduce)


class Precision(_Counted):
    """The share of true targets among the outputs above the threshold.

    Args:
        name: The key in logs and histories.
        threshold: 0.0 for logits (default); 0.5 for probabilities.
    """

    def __init__(self, name: str = "precision", threshold: float = 0.0) -> None:
        super().__init__(name, threshold)

    def _denominator(self, truth: Tensor, guess: Tensor) -> Tensor:
        del truth
        return guess


class Recall(_Counted):
    """The share of outputs above the threshold among the true targets.

    Args:
        name: The key in logs and histories.
        threshold: 0.0 for logits (default); 0.5 for probabilities.
    """

    def __init__(self, name: str = "recall", threshold: float = 0.0) -> None:
        super().__init__(name, threshold)

    def _denominator(self, truth: Tensor, guess: Tensor) -> Tensor:
        del guess
        return truth


def is_binary_loss(loss: Any) -> bool:
    """Return whether a loss is of yes-or-no outputs."""
    module = getattr(loss, "module", None)
    kinds = (torch.nn.BCELoss, torch.nn.BCEWithLogitsLoss)
    return isinstance(loss, BinaryCrossentropy) or isinstance(module, kinds)


def threshold_for(loss: Any) -> float:
    """Return what divides yes from no: 0.5 for probabilities, else 0."""
    is_probability = getattr(loss, "from_logits", True) is False
    module = getattr(loss, "module", None)
    return 0.5 if is_probability or isinstance(module, torch.nn.BCELoss) else 0.0


def _is_label_largest(y_true: Tensor, y_pred: Tensor) -> Tensor:
    if y_true.shape != y_pred.shape[:-1]:
        y_true = y_true.reshape(y_pred.shape[:-1])
    return y_pred.argmax(-1) == y_true


def _is_largest_same(y_true: Tensor, y_pred: Tensor) -> Tensor:
    return y_pred.argmax(-1) == y_true.argmax(-1)
