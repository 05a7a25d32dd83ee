"""Losses: each gives one number an item, a sum over items, and how many there are.

A mean over a global batch is the sum of what every rank and micro-batch has, divided
once by the number of all items; so a loss hands out the sum and the count, and the
division happens in one place (`training.compiled`).

Classification losses take LOGITS by default, in torch's manner; `from_logits=False`
takes probabilities, Keras's default. The class axis is the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from thalweg.errors import describe, message
from thalweg.training.alignment import aligned, no_tensor, weighted

__all__ = [
    "IGNORED_LABEL",
    "NAMES",
    "BinaryCrossentropy",
    "CategoricalCrossentropy",
    "CosineSimilarity",
    "ElementwiseLoss",
    "Huber",
    "KLDivergence",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "SparseCategoricalCrossentropy",
]

Tensor = torch.Tensor
_EPSILON = 1e-7
IGNORED_LABEL = -100


class Loss:
    """A loss with one number for every item of a batch.

    Documented for subclassing: override `items`.

    Args:
        name: What messages and configurations call it.

    Example:
        >>> class Cubic(Loss):
        ...     def items(self, y_true, y_pred):
        ...         return (y_true - y_pred).abs() ** 3
        >>> Cubic()(torch.zeros(2), torch.tensor([1.0, 2.0])).item()
        4.5
    """

    # False for a loss that is meant as a sum and must not be divided.
    is_averaged = True
    # Whether some labels may not count, and whether labels count differently.
    has_ignored_items = False
    has_class_weights = False

    def __init__(self, name: str | None = None) -> None:
        self.name = type(self).__name__ if name is None else name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def __call__(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the weighted items divided by their number."""
        total, count = self.total(y_true, y_pred, sample_weight)
        return total / max(count, 1) if isinstance(count, int) else total / count

    def items(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return one number an item, of shape (batch, ...). The hook."""
        raise NotImplementedError(
            message(type(self).__name__, "a method items", "none", "Define it.")
        )

    def total(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> tuple[Tensor, int | Tensor]:
        """Return the (weighted) sum over the items and how many items there are.

        Args:
            y_true: Targets.
            y_pred: Outputs of the model.
            sample_weight: Shape (batch,) or that of the items; weights the sum, not
                the count, as Keras has it.
        """
        items = self.items(y_true, y_pred)
        if not isinstance(items, Tensor):
            raise no_tensor(self.name, items)
        return weighted(items, sample_weight).sum(), items.numel()

    def mean(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, int | Tensor]:
        """Return the mean over the items and their number, in the quickest way."""
        items = self.items(y_true, y_pred)
        if not isinstance(items, Tensor):
            raise no_tensor(self.name, items)
        return items.mean(), items.numel()

    def label_limit(self, y_pred: Tensor) -> int | None:
        """How many classes labels may name, or None where they are no classes."""
        del y_pred
        return None


class ElementwiseLoss(Loss):
    """The mean over the last axis of a function of every pair of numbers.

    Args:
        name: Keras's name.
        function: (y_true, y_pred) of one shape to numbers of that shape.
    """

    def __init__(self, name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(name)
        self._function = function

    def items(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Average the function over the last axis of inputs with several axes."""
        elements = self._function(aligned(self.name, y_true, y_pred), y_pred)
        return elements.mean(-1) if elements.ndim > 1 else elements

    def mean(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, int | Tensor]:
        """Average over all elements at once: every item has as many of them."""
        elements = self._function(aligned(self.name, y_true, y_pred), y_pred)
        last = elements.shape[-1] if elements.ndim > 1 else 1
        return elements.mean(), elements.numel() // max(last, 1)


class BinaryCrossentropy(ElementwiseLoss):
    """Cross-entropy of independent yes-or-no outputs.

        loss = −y·log p − (1 − y)·log(1 − p), averaged over the last axis

    Args:
        from_logits: True (default) if the outputs are logits, False if they are
            probabilities p.
    """

    def __init__(self, from_logits: bool = True) -> None:
        super().__init__("binary_crossentropy", self._elements)
        self.from_logits = from_logits

    def _elements(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if self.from_logits:
            return functional.binary_cross_entropy_with_logits(
                y_pred, y_true, reduction="none"
            )
        clipped = y_pred.clamp(_EPSILON, 1 - _EPSILON)
        return -(y_true * clipped.log() + (1 - y_true) * (1 - clipped).log())

    def label_limit(self, y_pred: Tensor) -> int | None:
        """Targets lie between 0 and 1."""
        del y_pred
        return 2


class CategoricalCrossentropy(Loss):
    """Cross-entropy against a distribution over the classes, such as one-hot rows.

        loss = −Σ yₖ·log pₖ

    Args:
        from_logits: True (default) if the outputs are logits, False if they are
            probabilities p.
        label_smoothing: The share of every target that is spread over all classes.
    """

    def __init__(self, from_logits: bool = True, label_smoothing: float = 0.0) -> None:
        super().__init__("categorical_crossentropy")
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing

    def items(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Sum over the class axis."""
        if y_true.ndim != y_pred.ndim:
            expected = f"one distribution a row, of shape {tuple(y_pred.shape)}"
            action = "Use 'sparse_categorical_crossentropy' for class numbers."
            raise ValueError(message(self.name, expected, describe(y_true), action))
        targets = aligned(self.name, y_true, y_pred)
        if self.label_smoothing:
            share = self.label_smoothing
            targets = targets * (1 - share) + share / y_pred.shape[-1]
        return -(targets * _log_probabilities(y_pred, self.from_logits)).sum(-1)


class SparseCategoricalCrossentropy(Loss):
    """Cross-entropy against class numbers.

        loss = −log p[label]

    Args:
        from_logits: True (default) if the outputs are logits, False if they are
            probabilities p.
        ignore_class: Items of this label add neither to the sum nor to the count;
            torch's −100 by default.
    """

    def __init__(
        self, from_logits: bool = True, ignore_class: int = IGNORED_LABEL
    ) -> None:
        super().__init__("sparse_categorical_crossentropy")
        self.from_logits = from_logits
        self.ignore_class = ignore_class

    has_ignored_items = True

    def items(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Take the logarithm at the label's place; ignored items are 0."""
        scores, labels = self._flat(y_true, y_pred)
        losses = self._cross_entropy(scores, labels, "none")
        return losses.reshape(y_pred.shape[:-1])

    def total(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> tuple[Tensor, int | Tensor]:
        """Sum over, and count, the items that are not ignored."""
        items = self.items(y_true, y_pred)
        count = (y_true != self.ignore_class).sum()
        return weighted(items, sample_weight).sum(), count

    def mean(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, int | Tensor]:
        """Average over all items; only for labels none of which is ignored."""
        if y_pred.ndim == 2 and y_true.ndim == 1 and self.from_logits:
            labels = y_true if y_true.dtype is torch.int64 else y_true.long()
            return functional.cross_entropy(y_pred, labels), labels.shape[0]
        scores, labels = self._flat(y_true, y_pred)
        return self._cross_entropy(scores, labels, "mean"), labels.shape[0]

    def label_limit(self, y_pred: Tensor) -> int | None:
        """The size of the class axis."""
        return y_pred.shape[-1]

    def _cross_entropy(self, scores: Tensor, labels: Tensor, reduction: str) -> Tensor:
        if not self.from_logits:
            scores = scores.clamp(_EPSILON, 1 - _EPSILON).log()
            return functional.nll_loss(
                scores, labels, ignore_index=self.ignore_class, reduction=reduction
            )
        return functional.cross_entropy(
            scores, labels, ignore_index=self.ignore_class, reduction=reduction
        )

    def _flat(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
        if y_true.dtype != torch.int64:
            y_true = y_true.to(torch.int64)
        if y_pred.ndim == 2 and y_true.shape == y_pred.shape[:1]:
            return y_pred, y_true
        if y_true.ndim == y_pred.ndim and y_true.shape[-1] == 1:
            y_true = y_true.squeeze(-1)
        if y_true.shape != y_pred.shape[:-1]:
            expected = f"class numbers of shape {tuple(y_pred.shape[:-1])}"
            action = "Use 'categorical_crossentropy' for one-hot rows."
            raise ValueError(message(self.name, expected, describe(y_true), action))
        return y_pred.reshape(-1, y_pred.shape[-1]), y_true.reshape(-1)


class Huber(ElementwiseLoss):
    """Squared near zero, linear beyond `delta`.

    e = y_pred − y_true;  loss = ½e² if |e| ≤ delta else delta·(|e| − ½delta)
    """

    def __init__(self, delta: float = 1.0) -> None:
        super().__init__("huber", self._elements)
        self.delta = delta

    def _elements(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return functional.huber_loss(y_pred, y_true, reduction="none", delta=self.delta)


class MeanSquaredError(ElementwiseLoss):
    """Mean over the last axis of (y_true − y_pred)²."""

    def __init__(self) -> None:
        super().__init__("mean_squared_error", _squared_error)


class MeanAbsoluteError(ElementwiseLoss):
    """Mean over the last axis of |y_true − y_pred|."""

    def __init__(self) -> None:
        super().__init__("mean_absolute_error", _absolute_error)


class CosineSimilarity(Loss):
    """Minus the cosine of the angle between targets and outputs (last axis)."""

    def __init__(self) -> None:
        super().__init__("cosine_similarity")

    def items(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """One cosine for every vector along the last axis."""
        targets = aligned(self.name, y_true, y_pred)
        return -functional.cosine_similarity(targets, y_pred, dim=-1)


class KLDivergence(Loss):
    """Σ y·log(y / p) over the last axis, of probabilities."""

    def __init__(self) -> None:
        super().__init__("kl_divergence")

    def items(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """One divergence for every distribution along the last axis."""
        targets = aligned(self.name, y_true, y_pred).clamp(_EPSILON, 1)
        return (targets * (targets / y_pred.clamp(_EPSILON, 1)).log()).sum(-1)


def _log_probabilities(y_pred: Tensor, from_logits: bool) -> Tensor:
    if from_logits:
        return y_pred.log_softmax(-1)
    return (y_pred / y_pred.sum(-1, keepdim=True)).clamp(_EPSILON, 1 - _EPSILON).log()


def _squared_error(y_true: Tensor, y_pred: Tensor) -> Tensor:
    return functional.mse_loss(y_pred, y_true, reduction="none")


def _absolute_error(y_true: Tensor, y_pred: Tensor) -> Tensor:
    return functional.l1_loss(y_pred, y_true, reduction="none")


def _percentage_error(y_true: Tensor, y_pred: Tensor) -> Tensor:
    return 100.0 * (y_true - y_pred).abs() / y_true.abs().clamp_min(_EPSILON)


def _squared_logarithmic_error(y_true: Tensor, y_pred: Tensor) -> Tensor:
    return (y_true.clamp_min(0).log1p() - y_pred.clamp_min(0).log1p()).square()


def _log_cosh(y_true: Tensor, y_pred: Tensor) -> Tensor:
    error = y_pred - y_true
    return error + functional.softplus(-2.0 * error) - math.log(2.0)


def _hinge(y_true: Tensor, y_pred: Tensor) -> Tensor:
    signs = torch.where(y_true == 0, -1.0, y_true)
    return (1.0 - signs * y_pred).clamp_min(0)


def _poisson(y_true: Tensor, y_pred: Tensor) -> Tensor:
    return y_pred - y_true * (y_pred + _EPSILON).log()


def _elementwise(
    name: str, function: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[], Loss]:
    return lambda: ElementwiseLoss(name, function)


_ELEMENTWISE = {
    "mean_absolute_percentage_error": _percentage_error,
    "mean_squared_logarithmic_error": _squared_logarithmic_error,
    "log_cosh": _log_cosh,
    "hinge": _hinge,
    "poisson": _poisson,
}
_CLASSES: dict[str, Callable[[], Loss]] = {
    "mean_squared_error": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
    "huber": Huber,
    "binary_crossentropy": BinaryCrossentropy,
    "categorical_crossentropy": CategoricalCrossentropy,
    "sparse_categorical_crossentropy": SparseCategoricalCrossentropy,
    "cosine_similarity": CosineSimilarity,
    "kl_divergence": KLDivergence,
}
_ALIASES = {
    "mse": "mean_squared_error",
    "mae": "mean_absolute_error",
    "mape": "mean_absolute_percentage_error",
    "msle": "mean_squared_logarithmic_error",
    "logcosh": "log_cosh",
    "bce": "binary_crossentropy",
    "kld": "kl_divergence",
    "cross_entropy": "sparse_categorical_crossentropy",
}
NAMES: dict[str, Callable[[], Loss]] = _CLASSES | {
    name: _elementwise(name, function) for name, function in _ELEMENTWISE.items()
}
NAMES |= {alias: NAMES[name] for alias, name in _ALIASES.items()}


def __dir__() -> list[str]:
    return sorted(__all__)
