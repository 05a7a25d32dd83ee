"""The numbers of a step: one column per hyperparameter, one row per setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from thalweg.optimizers.per_variable import Override, Scale

__all__ = ["ScalarTable"]

Number = Callable[[str, Any], float]


class ScalarTable:
    """Settings, and how each hyperparameter's column follows from its number.

    A setting is what ``per_variable`` says of a variable: a tuple of overrides. The
    empty one is row 0. A column is ``number · factor``, or a fixed value, or the
    value of a schedule, row by row; the first two are computed at once.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[Override, ...], int] = {(): 0}
        self._columns: dict[str, _Column] = {}
        self._numbers: dict[str, float] = {}
        self._values: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __copy__(self) -> ScalarTable:
        copied = ScalarTable()
        for setting in self._rows:
            copied.row_of(setting)
        return copied

    @property
    def names(self) -> list[str]:
        """Hyperparameters that some setting overrides."""
        return list(self._columns)

    @property
    def varying(self) -> list[str]:
        """Those that a schedule or callable overrides."""
        return [name for name, column in self._columns.items() if column.is_varying]

    def row_of(self, overrides: tuple[Override, ...]) -> int:
        """The row of a setting; a new one is added.

        Args:
            overrides: The setting.

        Returns:
            Its row.
        """
        if overrides not in self._rows:
            self._rows[overrides] = len(self._rows)
            names = {o.name for setting in self._rows for o in setting}
            self._columns = {n: _Column(n, list(self._rows)) for n in sorted(names)}
            self._numbers.clear()
        return self._rows[overrides]

    def values(
        self, numbers: Mapping[str, float], number_of: Number
    ) -> dict[str, np.ndarray]:
        """All columns.

        Args:
            numbers: The number in force of every hyperparameter.
            number_of: Gives the number of an override's value, given its name.

        Returns:
            For each name a float64 array with one number per setting; the same
            arrays as before where nothing changed.
        """
        for name, number in numbers.items():
            column = self._columns.get(name)
            if column is not None and column.is_varying:
                self._values[name] = column.values(number, number_of)
            elif self._numbers.get(name) != number:
                self._numbers[name] = number
                self._values[name] = (
                    np.full(len(self._rows), number)
                    if column is None
                    else column.values(number, number_of)
                )
        return self._values


class _Column:
    """One hyperparameter over all settings."""

    def __init__(self, name: str, settings: list[tuple[Override, ...]]) -> None:
        self._name = name
        self._factors = np.ones(len(settings))
        self._fixed = np.zeros(len(settings))
        self._varying: list[tuple[int, Any, float]] = []
        for row, setting in enumerate(settings):
            self._read(row, [o.value for o in setting if o.name == name])

    @property
    def is_varying(self) -> bool:
        """Whether a schedule or callable is among the overrides."""
        return bool(self._varying)

    def _read(self, row: int, overrides: list[Any]) -> None:
        """A later value replaces, a later scale multiplies."""
        value, factor = None, 1.0
        for override in overrides:
            if isinstance(override, Scale):
                factor *= override.factor
            else:
                value, factor = override, 1.0
        if value is None:
            self._factors[row] = factor
        elif isinstance(value, (int, float)):
            self._factors[row], self._fixed[row] = 0.0, value * factor
        else:
            self._varying.append((row, value, factor))

    def values(self, number: float, number_of: Number) -> np.ndarray:
        """The column, in a new array."""
        column = self._factors * number + self._fixed
        for row, value, factor in self._varying:
            column[row] = number_of(self._name, value) * factor
        return column
