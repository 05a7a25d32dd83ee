"""Metrics: running means that stay on the device until somebody reads them.

`update_state` never waits for a device: sums stay there, and only those of the host are
plain numbers. `result` returns a 0-d tensor. At the end of an epoch the ranks add up
what they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from thalweg.errors import message
from thalweg.training.alignment import no_tensor, weighted
from thalweg.training.loss_adapters import num_rows
from thalweg.training.structure import map_structure

Tensor = torch.Tensor
# Sums a tensor over the ranks and returns the sum, on the device of the argument.
Reduce = Callable[[Tensor], Tensor]


class Metric:
    """Something that is measured over many batches.

    Documented for subclassing: override `update_state`, `result` and `reset_state`,
    and `state_dict` and `load_state_dict` if what it holds is more than numbers and
    tensors in attributes.

    Args:
        name: The key in logs and histories.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = type(self).__name__.lower() if name is None else name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def is_empty(self) -> bool:
        """Whether there was no batch yet; False if the metric does not know."""
        return False

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Take in one batch: (y_true, y_pred, sample_weight=None)."""
        raise NotImplementedError(
            message(type(self).__name__, "a method update_state", "none", "Define it.")
        )

    def result(self) -> Any:
        """Return the value so far: a 0-d tensor, a number, or a dict of them."""
        raise NotImplementedError(
            message(type(self).__name__, "a method result", "none", "Define it.")
        )

    def reset_state(self) -> None:
        """Forget all batches."""
        raise NotImplementedError(
            message(type(self).__name__, "a method reset_state", "none", "Define it.")
        )

    def result_over_ranks(self, reduce: Reduce | None) -> Any:
        """Return the value over all ranks; that of this one if `reduce` is None."""
        del reduce
        return self.result()

    def state_dict(self) -> dict[str, Any]:
        """Return what it holds: numbers and tensors in attributes, by part and name.

        Parts are the metric itself, which is called "", and metrics in attributes.
        """
        return {
            part: {name: one for name, one in vars(holder).items() if _is_number(one)}
            for part, holder in self._parts().items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave; parts that are not here are left out."""
        parts = self._parts()
        for part, values in state_dict.items():
            for name, value in values.items() if part in parts else ():
                setattr(parts[part], name, map_structure(_copied, value))

    def _parts(self) -> dict[str, Any]:
        """The metric and what within it holds numbers, by name."""
        inner = {n: one for n, one in vars(self).items() if isinstance(one, Metric)}
        return {"": self} | {f"{n} {type(m).__name__}": m for n, m in inner.items()}


def _is_number(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(one, Tensor) for one in value)
    return isinstance(value, (bool, int, float, Tensor))


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


class Mean(Metric):
    """The weighted mean of numbers.

    Args:
        name: The key in logs and histories.

    Example:
        >>> mean = Mean("loss")
        >>> mean.update_state(torch.tensor([1.0, 3.0]))
        >>> mean.update_state(torch.tensor(8.0), sample_weight=2)
        >>> mean.result().item()
        5.0
    """

    def __init__(self, name: str = "mean") -> None:
        super().__init__(name)
        self.reset_state()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added."""
        return self._is_empty

    def update_state(
        self,
        values: Tensor | float | Sequence[float],
        sample_weight: Tensor | float | None = None,
    ) -> None:
        """Add numbers, each with a weight of 1 if none is given."""
        values = torch.as_tensor(values).detach()
        if sample_weight is None:
            self.add(values.sum(), values.numel())
        elif not isinstance(sample_weight, Tensor):
            self.add(values.sum() * sample_weight, values.numel() * sample_weight)
        else:
            ones = torch.ones_like(values, dtype=sample_weight.dtype)
            self.add(
                weighted(values, sample_weight).sum(),
                weighted(ones, sample_weight).sum(),
            )

    def add(self, total: Tensor, count: float | Tensor) -> None:
        """Add a sum of `count` numbers."""
        self._is_empty = False
        if total.is_cpu:
            # Reading costs nothing here, and Python adds in float64.
            self._total += total.item()
            self._count += count.item() if isinstance(count, Tensor) else count
        else:
            self._device_total(total.device).add_(total.detach())
            self._count = self._count + count

    def add_mean(self, mean: Tensor, count: int) -> None:
        """Add a mean of `count` numbers, in one operation."""
        self._is_empty = False
        if mean.is_cpu:
            self._total += mean.item() * count
        else:
            self._device_total(mean.device).add_(mean.detach(), alpha=count)
        self._count += count

    def result(self) -> Tensor:
        """Return the mean, 0 if nothing was added."""
        total, count = self._total, self._count
        if not isinstance(total, Tensor) and not isinstance(count, Tensor):
            value = total / count if count else 0.0
            return torch.scalar_tensor(value, dtype=torch.float64)
        if isinstance(count, Tensor):
            return torch.where(count == 0, 0.0, total / count)
        return torch.as_tensor(total / max(count, 1))

    def reset_state(self) -> None:
        """Forget all numbers."""
        self._is_empty = True
        # A number as long as everything added lies on the host, else a tensor.
        self._total: float | Tensor = 0.0
        self._count: float | Tensor = 0

    def result_over_ranks(self, reduce: Reduce | None) -> Tensor:
        """Return the mean over the numbers of all ranks; the state is left alone."""
        if reduce is None:
            return self.result()
        dtype = torch.float64
        if isinstance(self._total, Tensor):
            dtype = self._total.dtype
        total = torch.as_tensor(self._total, dtype=dtype)
        count = torch.as_tensor(self._count, dtype=dtype, device=total.device)
        state = reduce(torch.stack([total, count]))
        return torch.where(state[1] == 0, 0.0, state[0] / state[1])

    def _device_total(self, device: torch.device) -> Tensor:
        if not isinstance(self._total, Tensor):
            # Apple's GPUs have no float64; in float32 counts stop at 16 million.
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._total = torch.full((), self._total, dtype=dtype, device=device)
        return self._total


class MeanOf(Mean):
    """The mean over items of a function of targets and outputs.

    Args:
        name: The key in logs and histories.
        function: (y_true, y_pred) to one number an item.
    """

    def __init__(self, name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(name)
        self._function = function

    def update_state(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> None:
        """Add the items of one batch."""
        items = self._function(y_true, y_pred)
        if not isinstance(items, Tensor):
            raise no_tensor(self.name, items)
        if sample_weight is None and items.ndim:
            # Counting is quicker than adding up ones.
            is_yes = items.dtype == torch.bool
            total = torch.count_nonzero(items) if is_yes else items.sum()
            self.add(total, items.numel())
        elif sample_weight is None:
            self.add_mean(items, num_rows(y_true, y_pred))
        else:
            super().update_state(items.to(torch.get_default_dtype()), sample_weight)
