"""What a metric holds in the midst of an epoch, as it is saved with a position."""

from __future__ import annotations

from typing import Any

import torch

from thalweg.training.mean_metrics import Metric
from thalweg.training.structure import map_structure

__all__ = ["put_state", "state_of"]

Figures = dict[str, Any]


def state_of(metric: Metric) -> Figures:
    """What a metric holds; that of a class with a form of its own under "own"."""
    held = metric.state_dict()
    is_own = type(metric).state_dict is not Metric.state_dict
    return {"own": held} if is_own else held


def put_state(metric: Metric, state: Figures, device: torch.device) -> None:
    """Give a metric what it held."""

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    if "own" in state:
        metric.load_state_dict(state["own"])
    else:
        metric.load_state_dict(map_structure(moved, state))
