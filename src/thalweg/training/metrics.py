"""Metrics by name: the public names, and the lookup."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thalweg.errors import describe, message, nearest
from thalweg.training import loss_adapters
from thalweg.training.classification import (
    Accuracy,
    BinaryAccuracy,
    CategoricalAccuracy,
    Precision,
    Recall,
    SparseCategoricalAccuracy,
    TopKCategoricalAccuracy,
    threshold_for,
)
from thalweg.training.losses import NAMES as LOSS_NAMES
from thalweg.training.mean_metrics import Mean, MeanOf, Metric
from thalweg.training.torch_metric import TorchMetric

__all__ = [
    "NAMES",
    "Accuracy",
    "BinaryAccuracy",
    "CategoricalAccuracy",
    "Mean",
    "MeanOf",
    "Metric",
    "Precision",
    "Recall",
    "SparseCategoricalAccuracy",
    "TopKCategoricalAccuracy",
    "TorchMetric",
    "get",
]


def get(identifier: Any, loss: Any = None) -> Metric:
    """Return the metric that a name, a function or an object stands for.

    Args:
        identifier: A name of `metrics.NAMES` or of a loss, a Metric, a torchmetrics
            object, or a function of (y_true, y_pred).
        loss: The model's Loss; it decides what "accuracy" means, and the threshold of
            binary metrics (0.0 for logits, 0.5 for probabilities).

    Raises:
        ValueError: If the name is unknown; the nearest known one is said.
        TypeError: If it is none of these.

    Example:
        >>> get("mae").name, get("accuracy").name
        ('mae', 'accuracy')
    """
    if isinstance(identifier, str):
        return _by_name(identifier, loss)
    if isinstance(identifier, Metric):
        return identifier
    if isinstance(identifier, type) and issubclass(identifier, Metric):
        return identifier()
    if all(hasattr(identifier, name) for name in ("update", "compute", "reset")):
        return TorchMetric(identifier)
    if callable(identifier) and not isinstance(identifier, type):
        name = getattr(identifier, "__name__", type(identifier).__name__.lower())
        return MeanOf(name, loss_adapters.get(identifier).items)
    action = "Pass a name, a function of (y_true, y_pred) or a torchmetrics object."
    raise TypeError(message("metrics", "a metric", describe(identifier), action))


def _by_name(name: str, loss: Any) -> Metric:
    known = {one.replace("_", ""): one for one in NAMES}
    folded = known.get(name.lower().replace("_", ""))
    if folded is None:
        action = nearest(name, NAMES)
        raise ValueError(message("metrics", "a known name", repr(name), action))
    if folded in ("accuracy", "acc"):
        return Accuracy(name, loss)
    if folded in _BINARY:
        return _BINARY[folded](name, threshold_for(loss))
    if folded in _PLAIN:
        return _PLAIN[folded](name)
    return MeanOf(name, LOSS_NAMES[folded]().items)


_BINARY: dict[str, Callable[[str, float], Metric]] = {
    "binary_accuracy": BinaryAccuracy,
    "precision": Precision,
    "recall": Recall,
}
_PLAIN: dict[str, Callable[[str], Metric]] = {
    "categorical_accuracy": CategoricalAccuracy,
    "sparse_categorical_accuracy": SparseCategoricalAccuracy,
    "top_k_categorical_accuracy": lambda name: TopKCategoricalAccuracy(5, name),
}
NAMES = ("accuracy", "acc", *_BINARY, *_PLAIN, *LOSS_NAMES)


def __dir__() -> list[str]:
    return sorted(__all__)
