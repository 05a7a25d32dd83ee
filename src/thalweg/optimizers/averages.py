"""What follows a variable: its moving average, and its copy in another dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from thalweg.compiler import KernelKey, Rule
from thalweg.distribute import local_tensor
from thalweg.errors import message
from thalweg.optimizers.declarations import SLOTS_OF_OPTIONS, Slot, plain_number
from thalweg.optimizers.rule_pass import RulePass
from thalweg.optimizers.slots import Entry, SlotTable
from thalweg.rules.moving_average import moving_average
from thalweg.step import EMA, EMA_MOMENTUM, LOW_PRECISION_COPY

__all__ = ["FOLLOWING", "Averages"]

_DEFAULT_MOMENTUM = 0.99
FOLLOWING = Rule.of(moving_average)
"""How an average follows its variable."""
(_MOMENTUM,) = FOLLOWING.scalars
_FOLLOWS = Slot(initial="var")


class Averages(SlotTable):
    """The part of `Optimizer` that keeps averages and copies of the variables."""

    _averages_in_use: bool = False
    _values: Mapping[str, np.ndarray]
    _momentum_kept: Any = None

    def _construct_averages(self, options: Mapping[str, Any]) -> None:
        momentum = options.get("ema_momentum")
        use_ema = plain_number(options.get("use_ema"))
        if use_ema is not None and not isinstance(use_ema, bool):
            where, action = f"{type(self).__name__}: use_ema", "Pass True or False."
            raise TypeError(message(where, "a bool", repr(use_ema), action))
        frequency = self._settings.ema_overwrite_frequency
        if "use_ema" not in options and frequency is not None:
            raise ValueError(
                message(
                    type(self).__name__,
                    "`use_ema=True` beside ema_overwrite_frequency",
                    "it alone",
                    "Pass use_ema=True, or leave it out.",
                )
            )
        self._set_hyper(
            EMA_MOMENTUM, _DEFAULT_MOMENTUM if momentum is None else momentum
        )
        if not use_ema:  # checked, and as in Keras 3 kept without use
            self._momentum_kept = self._hyper.pop(EMA_MOMENTUM)
            self._settings.ema_overwrite_frequency = None

    @property
    def use_ema(self) -> bool:
        """Whether an exponential moving average of every variable is kept."""
        return EMA_MOMENTUM in self._hyper

    @property
    def _has_copies(self) -> bool:
        return self._settings.low_precision_copy is not None

    @override
    def get_config(self) -> dict[str, Any]:
        config, kept = super().get_config(), self._momentum_kept
        if self.use_ema:
            config["use_ema"] = True
        elif kept not in (None, _DEFAULT_MOMENTUM):
            config[EMA_MOMENTUM] = self._as_plain(EMA_MOMENTUM, kept)
        return config

    @override
    def active_slots(self) -> dict[str, Slot]:
        return {**super().active_slots(), **self._followers()}

    def _followers(self) -> dict[str, Slot]:
        """The slots that options ask for, whatever a class declares."""
        asked = {EMA: self.use_ema, LOW_PRECISION_COPY: self._has_copies}
        return {name: _FOLLOWS for name, is_asked in asked.items() if is_asked}

    @override
    def _create_all_weights(self, var_list: Sequence[torch.Tensor]) -> None:
        super()._create_all_weights(var_list)
        # An override of `_create_slots` need not know of them.
        for name, slot in self._followers().items():
            for variable in var_list:
                if name not in self._entry(variable).slots:
                    self._add_declared_slot(variable, name, slot)

    @override
    def _create_slots(self, var_list: Sequence[torch.Tensor]) -> None:
        self._settings.check_slot_names(
            type(self).__name__, {*self._slots_declared, *SLOTS_OF_OPTIONS}
        )
        super()._create_slots(var_list)

    @override
    def slot_variables(self) -> Iterator[tuple[torch.Tensor, str, Any]]:
        self._refuse_in_scope("saving")
        return super().slot_variables()

    # -- using averages -------------------------------------------------------

    @contextmanager
    def ema_scope(self) -> Iterator[None]:
        """Put the averages into the variables, for evaluation.

        Inside, every variable that was built holds its average; afterwards, also
        after an exception, the trained values are back, to the bit. Steps and
        checkpoints of the optimizer are refused inside.

        Raises:
            RuntimeError: If the optimizer keeps no averages, or is in this scope
                already.

        Example:
            >>> weight = tw.Variable([1.0])
            >>> optimizer = tw.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
            >>> for _ in range(2):
            ...     _ = optimizer.apply_gradients([(torch.ones(1), weight)])
            >>> with optimizer.ema_scope():
            ...     print(weight.numpy())
            [-0.5]
            >>> weight.numpy()
            array([-1.], dtype=float32)
        """
        if not self.use_ema:
            raise RuntimeError(
                message(
                    f"{self._name}.ema_scope",
                    "an optimizer that keeps averages",
                    "one without",
                    "Make it with use_ema=True.",
                )
            )
        self._refuse_in_scope("another ema_scope()")
        entries = [e for e in self._entries.values() if EMA in e.slots]
        trained = [e.variable.detach().clone() for e in entries]
        self._averages_in_use = True
        try:
            _copy_all(entries, [e.slots[EMA] for e in entries])
            yield
        finally:
            _copy_all(entries, trained)
            self._averages_in_use = False

    def finalize_variable_values(self, var_list: Iterable[torch.Tensor]) -> None:
        """Replace variables by their averages for good, at the end of training.

        Args:
            var_list: Variables that were built.

        Raises:
            KeyError: If one was not built; nothing is changed then.
        """
        if not self.use_ema:
            return
        variables = list(var_list)
        averages = [self.get_slot(variable, EMA) for variable in variables]
        _copy_all([self._built_entry(v) for v in variables], averages)
        self._refresh_copies(variables)

    def _refuse_in_scope(self, what: str) -> None:
        if self._averages_in_use:
            raise RuntimeError(
                message(
                    self._name,
                    f"{what} outside ema_scope()",
                    "it inside, where variables hold their averages",
                    "Leave the scope first.",
                )
            )

    # -- after a step ---------------------------------------------------------

    def _overwrite_by_averages(self, variables: Sequence[torch.Tensor]) -> bool:
        """Every so many steps a variable becomes its average; say whether it did."""
        frequency = self._settings.ema_overwrite_frequency
        if frequency is None:
            return False
        is_due, entries = self._is_due(frequency), list(map(self._entry, variables))
        if isinstance(is_due, torch.Tensor):
            _copy_where(is_due, entries)
        elif is_due:
            _copy_all(entries, [e.slots[EMA] for e in entries])
        return is_due is not False

    def _is_due(self, frequency: int) -> bool | torch.Tensor:
        """Whether the step under way is a multiple of so many.

        Returns:
            Where the device knows it, a bool of shape () there.
        """
        return (int(self.iterations) + 1) % frequency == 0

    def _refresh_copies(self, variables: Iterable[torch.Tensor]) -> None:
        """Copy variables that something else than their rule has written."""
        if not self._has_copies:
            return
        with torch.no_grad():
            for entry in map(self._entry, variables):
                entry.slots[LOW_PRECISION_COPY].copy_(entry.variable)

    def _follow(self, entries: Sequence[Entry]) -> None:
        """Average and copy what something else than a step's own kernels has written.

        Args:
            entries: What is kept for each variable that was written.
        """
        if self.use_ema:
            self._move_averages(entries)
        self._refresh_copies([entry.variable for entry in entries])

    def _move_averages(
        self,
        entries: Sequence[Entry],
        *,
        momentum: torch.Tensor | None = None,
        applies: torch.Tensor | None = None,
    ) -> None:
        """Let averages follow variables, in one launch.

        Args:
            entries: What is kept for each variable; each has an average.
            momentum: Shape (settings,), on a device, where that knows better.
            applies: Shape (), bool, on that device: whether anything moves at all.
        """
        values = {_MOMENTUM: self._values[EMA_MOMENTUM]}
        known = None if momentum is None else {_MOMENTUM: momentum}
        averages, variables = _averages_of(entries)
        settings = [e.setting for e in entries]
        given = averages, variables, settings, values
        self._pass_of(FOLLOWING)(*given, on_device=known, applies=applies)

    def _kernels_of_averages(self) -> list[KernelKey]:
        """What averages need in steps that do not update all variables."""
        entries = [e for e in self._entries.values() if EMA in e.slots]
        return self._pass_of(FOLLOWING).keys(*_averages_of(entries))

    def _pass_of(self, rule: Rule) -> RulePass:
        """The pass of a rule beside the update; made once."""
        passes = self.__dict__.setdefault("_passes", {})
        if rule.name not in passes:
            passes[rule.name] = RulePass(self._name, rule)
        return passes[rule.name]


def _averages_of(
    entries: Sequence[Entry],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The averages, and the variables that they follow."""
    return [e.slots[EMA] for e in entries], [e.variable for e in entries]


@torch.no_grad()
def _copy_where(is_due: torch.Tensor, entries: Sequence[Entry]) -> None:
    """Variables become their averages if the device says so; nothing waits."""
    for entry in entries:
        var, average = map(local_tensor, (entry.variable, entry.slots[EMA]))
        var.copy_(torch.where(is_due, average.to(var.dtype), var))


@torch.no_grad()
def _copy_all(entries: Sequence[Entry], values: Sequence[torch.Tensor]) -> None:
    for entry, value in zip(entries, values, strict=True):
        entry.variable.copy_(value)
