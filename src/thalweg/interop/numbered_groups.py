"""Parameter groups that show hyperparameters, and put in force what is written there.

The first group stands for the optimizer's own numbers, a further one for those of its
parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from thalweg.errors import message
from thalweg.interop.group_numbers import (
    GroupNumber,
    entries_of,
    numbers_of,
    numbers_shown,
    plain_number,
)
from thalweg.optimizers import Optimizer

__all__ = ["NumberedGroups"]

_PARAMETERS = ("params", "param_names")


class NumberedGroups:
    """The part of `TorchFace` that keeps groups and hyperparameters the same.

    Attributes:
        param_groups: As in `torch.optim`.
    """

    param_groups: list[dict[str, Any]]
    _wrapped: Optimizer
    _shown: dict[str, float]
    _overrides: list[dict[str, GroupNumber]]

    def _follows(self, name: str) -> bool:
        """Whether a hyperparameter follows a schedule or callable."""
        return callable(self._wrapped._hyper[name])

    def _checked_numbers(self, group: dict[str, Any]) -> dict[str, float]:
        """The numbers of a group, within their bounds."""
        numbers = numbers_of(group, self._shown)
        for name, number in numbers.items():
            if number == self._shown[name]:
                continue
            if self._follows(name):
                raise ValueError(
                    message(
                        f"param_groups: {name}",
                        "no other number than the schedule's",
                        f"{number} in place of {self._shown[name]}",
                        "Make the optimizer with a number, and let one scheduler "
                        "change it.",
                    )
                )
            self._check_bounds(name, number)
        return numbers

    def _check_bounds(self, name: str, number: float) -> None:
        self._wrapped._number(name, lambda: number)

    def _take_numbers(self) -> None:
        """Put what groups say in force."""
        numbers = [self._checked_numbers(group) for group in self.param_groups]
        for name, number in numbers[0].items():
            if number != self._shown[name]:
                setattr(self._wrapped, name, number)
        for own, table in zip(numbers, self._overrides, strict=True):
            for name, cell in table.items():
                cell.value = own[name]

    def _show_numbers(self) -> None:
        """Write what has changed behind the face into the groups."""
        new = numbers_shown(self._wrapped)
        if new == self._shown:
            return
        changed = {n for n, number in new.items() if number != self._shown.get(n)}
        for group, own in zip(self.param_groups, self._overrides, strict=True):
            numbers = {**numbers_of(group, self._shown), **new}
            kept = {n: cell.value for n, cell in own.items()}
            for entry, value in entries_of({**numbers, **kept}).items():
                if isinstance(group.get(entry), torch.Tensor):
                    group[entry].fill_(value)
                elif changed:
                    group[entry] = value
        self._shown = new

    def _load_groups(self, groups: list[dict[str, Any]]) -> None:
        """Put saved groups in force; schedules and callables stay."""
        numbers = [numbers_of(group, self._shown) for group in groups]
        for own, table in zip(numbers, self._overrides, strict=True):
            for name in table:
                self._check_bounds(name, own[name])
        self._wrapped.restore_hyperparameters(numbers[0])
        self.param_groups = groups
        self._shown = dict(numbers[0])
        for own, table in zip(numbers, self._overrides, strict=True):
            for name, cell in table.items():
                cell.value = own[name]

    # -- for a checkpoint -----------------------------------------------------

    def own_numbers(self) -> dict[str, Any]:
        """What a checkpoint of the optimizer lacks, by number of the group and name.

        Returns:
            Numbers of further groups, under Keras's names, and entries such as
            ``initial_lr`` that others have put into a group.
        """
        known = {*_PARAMETERS, *entries_of(self._shown)}
        found: dict[str, Any] = {}
        for number, (group, own) in enumerate(self._groups()):
            for name, cell in own.items():
                found[f"{number}.{name}"] = cell.value
            for entry, value in group.items():
                if entry not in known:
                    is_tensor = isinstance(value, torch.Tensor)
                    found[f"{number}.{entry}"] = value.item() if is_tensor else value
        return found

    def restore_own_numbers(self, values: Mapping[str, Any]) -> None:
        """Take over what `own_numbers` gave; what it does not name stays.

        Args:
            values: The numbers.

        Raises:
            TypeError: If one is no number.
            ValueError: If there is no such group, or a number is out of range; nothing
                is changed then.
        """
        numbers: list[tuple[GroupNumber, float]] = []
        entries: list[tuple[dict[str, Any], str, Any]] = []
        for key, value in values.items():
            group, own, name = self._place_of(key)
            if name in own:
                number = plain_number(name, value)
                self._check_bounds(name, number)
                numbers.append((own[name], number))
            elif name not in self._shown:
                entries.append((group, name, value))
        for cell, number in numbers:
            cell.value = number
        for group, own in self._groups():
            kept = {name: cell.value for name, cell in own.items()}
            shown = entries_of({**numbers_of(group, self._shown), **kept})
            entries.extend((group, *item) for item in shown.items() if own)
        for group, name, value in entries:
            if isinstance(group.get(name), torch.Tensor):
                group[name].fill_(value)
            else:
                group[name] = value

    def _groups(self) -> Iterator[tuple[dict[str, Any], dict[str, GroupNumber]]]:
        return zip(self.param_groups, self._overrides, strict=True)

    def _place_of(self, key: str) -> tuple[dict[str, Any], dict[str, GroupNumber], str]:
        number, _, name = key.partition(".")
        if not number.isdecimal() or int(number) >= len(self.param_groups):
            raise ValueError(
                message(
                    type(self._wrapped).__name__,
                    f"numbers of {len(self.param_groups)} parameter groups",
                    repr(key),
                    "Restore into an optimizer with the same groups.",
                )
            )
        return self.param_groups[int(number)], self._overrides[int(number)], name
