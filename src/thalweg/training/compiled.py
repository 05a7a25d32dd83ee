"""What `Model.compile` makes of losses and metrics: the two containers.

The loss container is the one place where a sum over items is divided, once, by the
number of items of all replicas and micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from thalweg.errors import message
from thalweg.training import loss_adapters, metrics
from thalweg.training.loss_adapters import FunctionLoss, num_rows
from thalweg.training.losses import Loss
from thalweg.training.mean_metrics import Mean, Metric
from thalweg.training.replicas import Replicas
from thalweg.training.structure import map_structure

Tensor = torch.Tensor


class LossesContainer:
    """The compiled loss of a model, with its running mean.

    Args:
        loss: A name, function or `torch.nn` loss as `losses.get` takes it, or None
            for a model that only has losses of its own.

    Attributes:
        loss: The Loss, or None.
        metric: The running mean, over items, of what was returned.

    Example:
        >>> container = LossesContainer("mse")
        >>> container(torch.zeros(2, 1), torch.tensor([[1.0], [3.0]])).item()
        5.0
    """

    def __init__(self, loss: Any = None) -> None:
        self.loss: Loss | None = None if loss is None else loss_adapters.get(loss)
        # A function or class of the user's may do without.
        is_ours = type(self.loss).__module__.startswith("thalweg.")
        self._needs_targets = is_ours and type(self.loss) is not FunctionLoss
        self.metric = Mean("loss")
        self._replicas = Replicas()
        self._labels_are_clean = False
        self._global_rows: int | None = None
        self._was_called = False
        self._choose_path()

    def prepare(self, replicas: Replicas, labels_are_clean: bool = False) -> None:
        """Say who trains, and whether labels are known to hold none to be ignored."""
        self._replicas = replicas
        self._labels_are_clean = labels_are_clean
        self._global_rows = None
        self._choose_path()

    def expect_rows(self, global_rows: int | None) -> None:
        """Say how many samples the next batch has on all replicas, if it is known."""
        self._global_rows = global_rows

    @property
    def metrics(self) -> list[Metric]:
        """The running mean, once there is something to average."""
        return [self.metric] if self.loss is not None or self._was_called else []

    def __call__(
        self,
        y_true: Any,
        y_pred: Any,
        sample_weight: Tensor | None = None,
        regularization_losses: Sequence[Tensor] | None = None,
        item_count: int | Tensor | None = None,
    ) -> Tensor:
        """Return the loss to differentiate, and add it to the running mean.

        Args:
            y_true: Targets.
            y_pred: Outputs of the model.
            sample_weight: Weights of the samples; they weight the sum, not the count.
            regularization_losses: Scalars added to the mean, once over all replicas.
            item_count: What to divide by instead of the number of items of this call
                on all replicas: the number of all items of a step that is made of
                several micro-batches.

        Returns:
            A scalar whose gradient, reduced over the replicas as the model's wrapper
            or strategy does, is that of the mean over all items.

        Raises:
            ValueError: If there is neither a compiled loss nor a regularization loss,
                or targets, outputs and weights do not fit.
        """
        self._was_called = True
        extra = _sum(regularization_losses) if regularization_losses else None
        loss = self.loss
        if loss is None:
            return self._only(extra, y_true, y_pred)
        targets: object = y_true
        if targets is None and self._needs_targets:
            action = "Pass y to fit, or data of (x, y)."
            raise ValueError(message(loss.name, "targets", "none", action))
        if not self._is_plain or sample_weight is not None or item_count is not None:
            return self._divided(loss, y_true, y_pred, sample_weight, extra, item_count)
        value, count = loss.mean(y_true, y_pred)
        if extra is not None:
            value = value + extra
        self.metric.add_mean(value, count)  # pyright: ignore[reportArgumentType]
        return value

    def reset_state(self) -> None:
        """Forget the running mean."""
        self.metric.reset_state()

    def _choose_path(self) -> None:
        """Decide once whether the loss's own mean is the mean to return."""
        loss = self.loss
        self._is_plain = (
            loss is not None
            and loss.is_averaged
            and not loss.has_class_weights
            and (self._labels_are_clean or not loss.has_ignored_items)
            and self._replicas.count == 1
        )

    def _divided(
        self,
        loss: Loss,
        y_true: Any,
        y_pred: Any,
        sample_weight: Tensor | None,
        extra: Tensor | None,
        item_count: int | Tensor | None,
    ) -> Tensor:
        """Divide the sum over items once, by the count over all replicas."""
        total, count = loss.total(y_true, y_pred, sample_weight)
        counts_all = self._labels_are_clean and not loss.has_class_weights
        if counts_all and isinstance(count, torch.Tensor):
            count = y_true.numel()
        if loss.is_averaged:
            value = total / self._divisor(loss, count, item_count, y_true, y_pred)
            self._record(total, count, extra)
        else:
            value, rows = total, num_rows(y_true, y_pred)
            self._record(total * rows, rows, extra)
        if extra is not None:
            value = value + extra / self._replicas.count
        return value * self._replicas.loss_scale

    def _record(self, total: Tensor, count: int | Tensor, extra: Tensor | None) -> None:
        total = total.detach()
        self.metric.add(
            total if extra is None else total + extra.detach() * count, count
        )

    def _divisor(
        self,
        loss: Loss,
        count: int | Tensor,
        item_count: int | Tensor | None,
        y_true: Any,
        y_pred: Any,
    ) -> int | Tensor:
        if item_count is not None:
            divisor = item_count
        elif self._global_rows is None or not isinstance(count, int):
            divisor = self._replicas.total(count)
        else:
            # All samples have as many items, so the ranks need not ask each other;
            # one without any samples may divide its zero by anything.
            rows = num_rows(y_true, y_pred)
            per_row = count // rows if rows else 1
            divisor = per_row * self._global_rows
        if isinstance(divisor, torch.Tensor):
            return torch.where(divisor == 0, 1, divisor)
        return max(divisor, 1)

    def _only(self, extra: Tensor | None, y_true: Any, y_pred: Any) -> Tensor:
        if extra is None:
            raise ValueError(
                message(
                    "compiled_loss",
                    "a loss",
                    "a model compiled without one",
                    "Pass loss= to compile(), or call add_loss() in the forward pass.",
                )
            )
        self.metric.add_mean(extra, num_rows(y_true, y_pred))
        return extra * (self._replicas.loss_scale / self._replicas.count)


class MetricsContainer:
    """The compiled metrics of a model.

    Args:
        specifications: Names, functions, Metrics or torchmetrics objects; one or
            several, or None.
        loss: The compiled Loss, which decides what "accuracy" means.
    """

    def __init__(self, specifications: Any = None, loss: Loss | None = None) -> None:
        several = isinstance(specifications, (list, tuple))
        listed = specifications if several else [specifications]
        made = [metrics.get(one, loss) for one in listed if one is not None]
        self.metrics: list[Metric] = _with_own_names(made)
        # Means read one number of what they are given; others may keep all of it.
        self._detaches = not all(type(one) in _READERS for one in self.metrics)

    def update_state(
        self, y_true: Any, y_pred: Any, sample_weight: Tensor | None = None
    ) -> None:
        """Add one batch to every metric. As in Keras, weights do not count here."""
        del sample_weight
        if not self.metrics:
            return
        if self._detaches:
            y_pred = map_structure(torch.Tensor.detach, y_pred)
        for metric in self.metrics:
            metric.update_state(y_true, y_pred)

    def prepare(self, labels_are_clean: bool) -> None:
        """Say whether labels are known to hold none to be ignored."""
        for metric in self.metrics:
            if hasattr(metric, "labels_are_clean"):
                metric.labels_are_clean = labels_are_clean  # pyright: ignore[reportAttributeAccessIssue]

    def reset_state(self) -> None:
        """Forget all batches."""
        for metric in self.metrics:
            metric.reset_state()


_READERS = (metrics.Accuracy, metrics.MeanOf)


def _sum(losses: Sequence[Tensor]) -> Tensor:
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def _with_own_names(made: list[Metric]) -> list[Metric]:
    """Number the names that come twice, or that the loss has."""
    taken = {"loss"}
    for metric in made:
        base, number = metric.name, 0
        while metric.name in taken:
            number += 1
            metric.name = f"{base}_{number}"
        taken.add(metric.name)
    return made
