"""Counts of steps on a device, so that a captured step of torch's kind goes on.

With ``capturable=True`` torch keeps the step of a parameter where the parameter is. So
the table of counters is there, too; a step reads its numbers from it, and counts on in
it, without the host. A learning rate or beta that is a tensor on the device is read
there as well: a scheduler fills it, and replays of a CUDA graph see that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from thalweg.optim.counters import Counters
from thalweg.optim.described import Described, Settings
from thalweg.step import STEP
from thalweg.step.captures import keep_captured
from thalweg.step.device_kernel import Mirror, has_device_kernels
from thalweg.step.device_step import StepClock

__all__ = [
    "CounterClock",
    "DeviceCounters",
    "asks_device",
    "counting_device",
    "device_numbers",
    "settings_of",
]

_COLUMNS = {"lr": ("learning_rate",), "betas": ("beta1", "beta2")}
"""Options that may be tensors, and their columns."""


def asks_device(optimizer: Described) -> bool:
    """Whether steps shall be counted where the parameters are.

    Args:
        optimizer: The optimizer.

    Returns:
        True if all groups are ``capturable``, or need not be: no step is counted in
        the state.
    """
    default = not optimizer.counts_in_state
    return all(group.get("capturable", default) for group in optimizer.param_groups)


def counting_device(
    optimizer: Described, parameters: Sequence[Tensor]
) -> torch.device | None:
    """The device that counts the steps of an optimizer; None if the host does.

    Args:
        optimizer: The optimizer.
        parameters: All its parameters.

    Returns:
        The one that all parameters are on, if it has kernels, if `asks_device`, and if
        counters follow from each other by operators, not by functions of NumPy.
    """
    if not asks_device(optimizer):
        return None
    devices = {parameter.device for parameter in parameters}
    if len(devices) != 1 or not has_device_kernels(*devices):
        return None
    return devices.pop() if _counts_anywhere(optimizer) else None


def _counts_anywhere(optimizer: Described) -> bool:
    """Whether `next_counters` takes tensors of any device."""
    names = (*optimizer.all_columns(), *optimizer.counters)
    values: Any = {name: torch.ones(1, device="meta") for name in names}
    try:
        found = optimizer.next_counters(values)
    except (TypeError, NotImplementedError, RuntimeError):
        return False
    return all(isinstance(value, Tensor) for value in found.values())


def settings_of(optimizer: Described, device: torch.device | None) -> Settings:
    """Numbers and choices of all groups; ½ stands for numbers that are on the device.

    Args:
        optimizer: The optimizer.
        device: The device that counts, or None.
    """
    if device is None:
        return optimizer.settings()
    decay = optimizer._options.ema_decay
    added = () if decay is None else (decay,)
    shown = map(_on_the_host, optimizer.param_groups)
    return [(optimizer.numbers(g) + added, optimizer.choices(g)) for g in shown]


def _on_the_host(group: dict[str, Any]) -> dict[str, Any]:
    """A group with ½, which chooses nothing, in place of numbers on a device."""
    found = {key: group[key] for key in _COLUMNS if key in group}
    shown = {
        key: tuple(map(_shown, value)) if isinstance(value, tuple) else _shown(value)
        for key, value in found.items()
    }
    return {**group, **shown}


def _shown(value: Any) -> Any:
    return 0.5 if isinstance(value, Tensor) and not value.is_cpu else value


def device_numbers(
    groups: Sequence[Mapping[str, Any]],
) -> dict[str, dict[int, Tensor]]:
    """Numbers of groups that are on a device.

    Args:
        groups: Parameter groups.

    Returns:
        For each column, which groups have such a number, and it.
    """
    found: dict[str, dict[int, Tensor]] = {}
    for position, group in enumerate(groups):
        for key, columns in _COLUMNS.items():
            value = group.get(key)
            values = value if isinstance(value, tuple) else (value,)
            for column, number in zip(columns, values, strict=False):
                if isinstance(number, Tensor) and not number.is_cpu:
                    found.setdefault(column, {})[position] = number
    return found


class DeviceCounters(Counters):
    """Counters on a device; a state holds a view of its cell there.

    Attributes:
        table: Shape (names, parameters), float64.

    Args:
        names: Names of the numbers.
        size: Number of parameters.
        device: Where they are.
    """

    def __init__(self, names: Sequence[str], size: int, device: torch.device) -> None:
        super().__init__(names, size)
        self._table = torch.zeros_like(self._table, device=device)
        self.device = device

    @property
    def table(self) -> Tensor:
        """All counters."""
        return self._table

    @override
    def __getitem__(self, name: str) -> Any:
        return self._table[self.names.index(name)]


class CounterClock(StepClock):
    """Counts the steps of some parameters in the table of all of them.

    Every parameter has a row of numbers of its own: whether two have counted alike is
    known on the device only.

    Args:
        optimizer: Says how counters go on.
        counters: The table.
        positions: The parameters of a step, by their columns of the table.
        group_of: For each of those its group.
        decides: Whether the device decides which steps are taken.
    """

    def __init__(
        self,
        optimizer: Described,
        counters: DeviceCounters,
        positions: np.ndarray,
        group_of: np.ndarray,
        *,
        decides: bool,
    ) -> None:
        super().__init__(counters.device, decides=decides)
        self._optimizer = optimizer
        self._counters = counters
        self._names = optimizer.all_columns()
        self._positions = torch.as_tensor(positions, device="cpu").to(self.device)
        self._group_of = torch.as_tensor(group_of, device="cpu").to(self.device)
        self._numbers = np.zeros((len(self._names), len(positions)))
        self._mirror = Mirror(self._numbers, self.device)
        self._values: dict[str, Tensor] = {}

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Take the host's numbers of the next step, one for each parameter."""
        for row, name in enumerate(self._names):
            self._numbers[row] = values[name]

    @override
    def begin(self, iterations: int) -> dict[str, Tensor]:
        del iterations
        keep_captured(self, self.device)
        self._mirror.refresh()
        values = dict(zip(self._names, self._mirror.table.unbind(), strict=True))
        given = device_numbers(self._optimizer.param_groups)
        for name in given.keys() & values.keys():
            for group, number in given[name].items():
                is_own = self._group_of == group
                own = number.detach().double().reshape(())
                values[name] = torch.where(is_own, own, values[name])
        held = self._counters.table.index_select(1, self._positions).unbind()
        counted = dict(zip(self._counters.names, held, strict=True))
        counted[STEP] = counted[STEP] + 1.0
        self._values = {**values, **counted}
        changed = {name: values[name] for name in given.keys() & values.keys()}
        self.scalars = {**counted, **changed}
        return dict(self.scalars)

    @override
    def finish(self, applies: Tensor | None = None) -> None:
        self._settle(applies)
        new = self._optimizer.next_counters(self._values)  # pyright: ignore[reportArgumentType] - operators of arrays and tensors are alike
        for row, name in enumerate(self._counters.names):
            value: Any = new[name]
            if self.was_applied is not None:
                old = self._counters.table[row].index_select(0, self._positions)
                value = torch.where(self.was_applied, value, old)
            self._counters.table[row].index_copy_(0, self._positions, value)
        self.cancel()

    @override
    def cancel(self) -> None:
        super().cancel()
        self._values = {}
