"""Options that hold for the whole optimizer, and settings for single variables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

import torch

from thalweg import schedules
from thalweg.errors import message, nearest
from thalweg.optimizers.declarations import (
    OPTION_BOUNDS,
    Hyper,
    Scale,
    plain_number,
    scale,
)
from thalweg.state import name_of
from thalweg.step import LOW_PRECISION_COPY, NonFinite
from thalweg.step.rounding import checked_rounding
from thalweg.step.slot_dtypes import (
    DTYPES,
    SlotDtypes,
    checked_slot_dtypes,
    dtype_among,
    dtype_name,
)

__all__ = ["Override", "Settings", "match_patterns"]

SPARSE_UPDATES = ("rows", "exact", "keras")
NONFINITE = ("off", "skip", "error")
_PLAIN = (
    *("sparse_update", "nonfinite"),
    *("ema_overwrite_frequency", "gradient_accumulation_steps"),
    *("stochastic_rounding", "rounding_seed"),
)


@dataclass(frozen=True)
class Override:
    """Replaces or scales one hyperparameter for some variables."""

    name: str
    value: Any


@dataclass
class Settings:
    """The options of an optimizer beside its hyperparameters and clips.

    Attributes:
        per_variable: Name pattern to {hyperparameter: value or `scale`}.
        sparse_update: ``"rows"``, ``"exact"`` or ``"keras"``.
        slot_dtypes: None, ``"variable"``, a dtype, or slot name to dtype.
        nonfinite: ``"off"``, ``"skip"`` or ``"error"``.
        ema_overwrite_frequency: Steps between two overwrites by averages, or None.
        low_precision_copy: Dtype of a copy of every variable, or None.
        gradient_accumulation_steps: Gradients that are applied together, or None.
        stochastic_rounding: Whether bfloat16 is rounded by chance.
        rounding_seed: Seed of that chance.
    """

    per_variable: dict[str, dict[str, Any]] = field(default_factory=dict)
    sparse_update: str = "rows"
    slot_dtypes: SlotDtypes = None
    nonfinite: NonFinite = "off"
    ema_overwrite_frequency: int | None = None
    low_precision_copy: torch.dtype | None = None
    gradient_accumulation_steps: int | None = None
    stochastic_rounding: bool = False
    rounding_seed: int = 0

    @classmethod
    def checked(
        cls, where: str, options: dict[str, Any], hypers: Mapping[str, Hyper]
    ) -> Settings:
        """Take the options that belong here out of a constructor's keywords.

        Args:
            where: Name of the optimizer, for messages.
            options: Keywords; those that belong here are removed.
            hypers: Declared hyperparameters by name.

        Returns:
            The checked settings.

        Raises:
            ValueError: If a value or name is unknown.
            TypeError: If a table is not a mapping of mappings, or for a
                ``loss_scale_factor``, which is a wrapper here.
        """
        _refuse_factor(where, options.pop("loss_scale_factor", None))
        names = {"stochastic_rounding": False, "rounding_seed": None}
        given = [options.pop(name, default) for name, default in names.items()]
        rounding = map(plain_number, given)
        return cls(
            _checked_patterns(where, options.pop("per_variable", None), hypers),
            _checked_choice(where, "sparse_update", options, SPARSE_UPDATES),
            checked_slot_dtypes(where, options.pop("slot_dtypes", None)),
            cast("NonFinite", _checked_choice(where, "nonfinite", options, NONFINITE)),
            _checked_count(where, "ema_overwrite_frequency", options, least=1),
            _checked_copy(where, options.pop("low_precision_copy", None)),
            _checked_count(where, "gradient_accumulation_steps", options, least=2),
            *checked_rounding(where, *rounding),
        )

    def may_exceed_0(self, name: str, common: Any) -> bool:
        """Whether a hyperparameter is positive for some variable, in some step.

        Args:
            name: Its name.
            common: What holds where no pattern says otherwise.
        """
        if callable(common) or float(common) > 0:
            return True
        given = [t[name] for t in self.per_variable.values() if name in t]
        own = [value for value in given if not isinstance(value, Scale)]
        return any(callable(value) or float(value) > 0 for value in own)

    def refuse_scaled_decay(self, where: str) -> None:
        """Refuse factors on a weight decay that is not there.

        Args:
            where: Name of the optimizer, for messages.

        Raises:
            ValueError: If a pattern scales it.
        """
        name = "weight_decay"
        for pattern, table in self.per_variable.items():
            if isinstance(table.get(name), Scale):
                raise ValueError(
                    message(
                        f"{where}: per_variable[{pattern!r}]",
                        "a weight_decay of the optimizer, which the factor scales",
                        "none",
                        f"Pass weight_decay=… to {where}, or a number in place of "
                        "the factor.",
                    )
                )

    def get_config(self, plain: Callable[[str, Any], Any]) -> dict[str, Any]:
        """The options that are not at their default, as JSON values.

        Args:
            plain: Makes a JSON value of a hyperparameter's name and an override.
        """
        config: dict[str, Any] = {}
        if self.per_variable:
            config["per_variable"] = {
                pattern: {name: plain(name, value) for name, value in table.items()}
                for pattern, table in self.per_variable.items()
            }
        for name in _PLAIN:
            if getattr(self, name) != getattr(Settings, name):
                config[name] = getattr(self, name)
        if isinstance(self.slot_dtypes, dict):
            dtypes = self.slot_dtypes.items()
            config["slot_dtypes"] = {n: dtype_name(d) for n, d in dtypes}
        elif isinstance(self.slot_dtypes, torch.dtype):
            config["slot_dtypes"] = dtype_name(self.slot_dtypes)
        elif self.slot_dtypes is not None:
            config["slot_dtypes"] = self.slot_dtypes
        if self.low_precision_copy is not None:
            config["low_precision_copy"] = dtype_name(self.low_precision_copy)
        return config

    def check_slot_names(self, where: str, known: Iterable[str]) -> None:
        """Refuse dtypes of slots that do not exist.

        Args:
            where: Name of the optimizer, for messages.
            known: Names of its slots.

        Raises:
            ValueError: If ``slot_dtypes`` names another one.
        """
        names = list(known)
        given = self.slot_dtypes if isinstance(self.slot_dtypes, dict) else {}
        for name in given:
            if name not in names:
                raise ValueError(
                    message(
                        f"{where}: slot_dtypes",
                        "the name of a slot",
                        repr(name),
                        nearest(name, names),
                    )
                )

    def slot_dtype(
        self, slot: str, declared: torch.dtype | str | None, variable: torch.dtype
    ) -> torch.dtype:
        """Storage dtype of a slot for a variable of some dtype."""
        if isinstance(self.slot_dtypes, dict) and slot in self.slot_dtypes:
            return self.slot_dtypes[slot]
        if slot == LOW_PRECISION_COPY and self.low_precision_copy is not None:
            return self.low_precision_copy
        if isinstance(self.slot_dtypes, torch.dtype):
            return self.slot_dtypes
        if self.slot_dtypes == "variable":
            return variable
        if declared is not None:
            return dtype_among(DTYPES, slot, declared)
        return (
            torch.float32 if variable in (torch.float16, torch.bfloat16) else variable
        )


def match_patterns(
    where: str,
    per_variable: Mapping[str, Mapping[str, Any]],
    variables: Iterable[torch.Tensor],
) -> list[tuple[Override, ...]]:
    """Find out which overrides hold for each variable.

    Args:
        where: Name of the optimizer, for messages.
        per_variable: Name pattern (as of a shell) to overrides; a later pattern wins.
        variables: The variables, whose names must be known.

    Returns:
        For each variable the overrides that hold for it.

    Raises:
        ValueError: If a pattern matches no variable.
    """
    names = [name_of(variable) or "" for variable in variables]
    unmatched = [p for p in per_variable if not any(fnmatchcase(n, p) for n in names)]
    if unmatched:
        raise ValueError(
            message(
                f"{where}: per_variable",
                "patterns that each match a variable",
                f"{unmatched}, while they are {[n or 'nameless' for n in names]}",
                "Call optimizer.build(model) first, so that the names are known.",
            )
        )
    return [
        tuple(
            Override(hyper, value)
            for pattern, table in per_variable.items()
            if fnmatchcase(name, pattern)
            for hyper, value in table.items()
        )
        for name in names
    ]


def _checked_patterns(
    where: str, table: Any, hypers: Mapping[str, Hyper]
) -> dict[str, dict[str, Any]]:
    if table is None:
        return {}
    if not isinstance(table, Mapping) or not all(
        isinstance(t, Mapping) for t in table.values()
    ):
        raise TypeError(
            message(
                f"{where}: per_variable",
                "a mapping from name pattern to {hyperparameter: value}",
                repr(table),
                'For example {"*bias": {"weight_decay": 0}}.',
            )
        )
    return {
        str(pattern): {
            name: _checked_override(
                f"{where}: per_variable[{pattern!r}]", name, value, hypers
            )
            for name, value in overrides.items()
        }
        for pattern, overrides in table.items()
    }


def _checked_override(
    where: str, name: str, value: Any, hypers: Mapping[str, Hyper]
) -> Any:
    known = {"weight_decay": OPTION_BOUNDS["weight_decay"], **hypers}
    if name not in known:
        raise ValueError(
            message(
                where,
                "the name of a hyperparameter",
                repr(name),
                nearest(name, known),
            )
        )
    if isinstance(value, Mapping) and set(value) == {"scale"}:
        value = scale(value["scale"])
    elif isinstance(value, Mapping) and {"class_name", "config"} <= value.keys():
        value = schedules.deserialize(value)
    return value if isinstance(value, Scale) else known[name].check(where, value)


def _checked_choice(
    where: str, name: str, options: dict[str, Any], choices: tuple[str, ...]
) -> str:
    """One of some words, the first of them by default."""
    given = options.pop(name, choices[0])
    if given not in choices:
        raise ValueError(
            message(
                f"{where}: {name}",
                f"one of {choices}",
                repr(given),
                nearest(str(given), choices),
            )
        )
    return given


def _checked_count(
    where: str, name: str, options: dict[str, Any], *, least: int
) -> int | None:
    """A whole number of steps, or None."""
    given = plain_number(options.pop(name, None))
    is_count = isinstance(given, int) and not isinstance(given, bool) and given >= least
    if given is not None and not is_count:
        raise ValueError(
            message(
                f"{where}: {name}",
                f"a whole number of steps >= {least}, or None",
                repr(given),
                "Leave it out, or pass such a number.",
            )
        )
    return given


def _refuse_factor(where: str, given: Any) -> None:
    """Keras 3 has a loss scale in every optimizer; None is its word for none."""
    if given is not None:
        wrapped = f"{where}(...), dynamic=False, initial_scale={given!r}"
        raise TypeError(
            message(
                f"{where}: loss_scale_factor",
                "None",
                repr(given),
                f"Write tw.LossScaleOptimizer({wrapped}), which scales the loss so.",
            )
        )


def _checked_copy(where: str, given: Any) -> torch.dtype | None:
    if given is None:
        return None
    return dtype_among(DTYPES[:-1], f"{where}: low_precision_copy", given)
