"""torchmetrics's objects with this package's face; torchmetrics is not imported."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from thalweg.training.mean_metrics import Metric, Reduce

Tensor = torch.Tensor


class TorchMetric(Metric):
    """An object with torchmetrics's `update`, `compute` and `reset`.

    Values of single steps are those of this rank; at the end of an epoch the object
    gathers its state over the ranks itself.

    Args:
        metric: For example `torchmetrics.AUROC(task="binary")`.
        name: The key in logs; the class name in small letters by default.
    """

    def __init__(self, metric: Any, name: str | None = None) -> None:
        own = getattr(metric, "name", None)
        default = own if isinstance(own, str) else _snake_case(type(metric).__name__)
        super().__init__(default if name is None else name)
        self.metric = metric
        self._is_fresh = True
        self._device: torch.device | None = None
        self._set_syncing(False)

    @property
    def is_empty(self) -> bool:
        """Whether there was no batch yet."""
        return self._is_fresh

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> None:
        """Add one batch; weights are not known to torchmetrics and are left out."""
        del sample_weight
        if y_pred.device != self._device:
            self._device = y_pred.device
            if hasattr(self.metric, "to"):
                self.metric = self.metric.to(y_pred.device)
        self._is_fresh = False
        if len(y_pred):
            self.metric.update(y_pred, y_true)

    def result(self) -> Any:
        """Return what the object computes, 0 before the first batch."""
        return torch.zeros(()) if self._is_fresh else self.metric.compute()

    def reset_state(self) -> None:
        """Reset the object."""
        self.metric.reset()
        self._is_fresh = True

    def result_over_ranks(self, reduce: Reduce | None) -> Any:
        """Return what the object computes from the state of all ranks."""
        if reduce is None:
            return self.result()
        self._set_syncing(True)
        try:
            return self.metric.compute()
        finally:
            self._set_syncing(False)

    def _set_syncing(self, is_syncing: bool) -> None:
        for one in self._objects():
            if hasattr(one, "_to_sync"):
                one._to_sync = is_syncing
                one._computed = None

    def _objects(self) -> list[Any]:
        """The object, or those of a collection."""
        metric = self.metric
        return list(metric.values()) if hasattr(metric, "values") else [metric]

    @override
    def _parts(self) -> dict[str, Any]:
        # torchmetrics's own `state_dict` leaves out what is not `persistent`.
        parts = super()._parts()
        for number, one in enumerate(self._objects()):
            modules = one.named_modules() if isinstance(one, nn.Module) else [("", one)]
            parts |= {f"{number} {path}": module for path, module in modules}
        return parts


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
