"""What a metric holds in the midst of an epoch, for a run that goes on there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from thalweg.training.classification import (
    BinaryAccuracy,
    CategoricalAccuracy,
    SparseCategoricalAccuracy,
)
from thalweg.training.mean_metrics import Metric
from thalweg.training.structure import map_structure
from thalweg.training.torch_metric import TorchMetric

__all__ = ["put_state", "state_of"]

Figures = dict[str, Any]


def state_of(metric: Any) -> Figures:
    """What a metric holds: its own `state_dict`, or numbers and tensors."""
    if _is_stateful(metric):
        return {"own": metric.state_dict()}
    return {
        path: {name: one for name, one in vars(holder).items() if _is_number(one)}
        for path, holder in _holders(metric).items()
    }


def put_state(metric: Any, state: Figures, device: torch.device) -> None:
    """Give a metric what it held."""
    if _is_stateful(metric):
        metric.load_state_dict(state["own"])
        return
    for kind in _CHOSEN:
        # `Accuracy` chooses one of these when it sees its first batch.
        if f"_metric {kind.__name__}" in state and vars(metric)["_metric"] is None:
            vars(metric)["_metric"] = kind(metric.name)
    holders = _holders(metric)
    for path, values in state.items():
        for name, value in values.items() if path in holders else ():
            setattr(holders[path], name, map_structure(_to(device), value))


_CHOSEN = (BinaryAccuracy, CategoricalAccuracy, SparseCategoricalAccuracy)


def _is_stateful(metric: Any) -> bool:
    return hasattr(metric, "state_dict") and hasattr(metric, "load_state_dict")


def _holders(metric: Any) -> dict[str, Any]:
    """The metric and all within it that holds numbers, by path."""
    found = {"": metric}
    if isinstance(metric, TorchMetric):
        inner = metric.metric
        parts = list(inner.values()) if hasattr(inner, "values") else [inner]
        for number, part in enumerate(parts):
            modules = part.named_modules() if isinstance(part, nn.Module) else ()
            found |= {f"{number} {path}": one for path, one in modules or [("", part)]}
    for name, value in vars(metric).items():
        if isinstance(value, Metric):
            found[f"{name} {type(value).__name__}"] = value
    return found


def _is_number(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(one, torch.Tensor) for one in value)
    return isinstance(value, (bool, int, float, torch.Tensor))


def _to(device: torch.device) -> Callable[[Any], Any]:
    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return moved
