"""What loops and callbacks need of a model."""

from __future__ import annotations

from typing import Any, Protocol

from thalweg.training.compiled import LossesContainer, MetricsContainer
from thalweg.training.data_position import DataPosition
from thalweg.training.mean_metrics import Metric


class Trained(Protocol):
    """A model as its training loop sees it; `Model` is one."""

    stop_training: bool
    compiled_loss: LossesContainer
    compiled_metrics: MetricsContainer
    data_position: DataPosition
    history: Any

    @property
    def optimizer(self) -> Any:
        """What updates the variables."""
        ...

    @property
    def metrics(self) -> list[Metric]:
        """What is measured."""
        ...

    def reset_metrics(self) -> None:
        """Forget the batches seen."""
        ...

    def train_step(self, data: Any) -> dict[str, Any]:
        """Train on a batch."""
        ...

    def test_step(self, data: Any) -> dict[str, Any]:
        """Measure a batch."""
        ...

    def predict_step(self, data: Any) -> Any:
        """Compute a batch's outputs."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Set the mode."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return tensors by name."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Copy tensors by name."""
        ...
