"""The keywords that every optimizer takes beside torch's own."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch

from thalweg.errors import message, nearest
from thalweg.step import NonFinite, Transforms
from thalweg.step.rounding import checked_rounding
from thalweg.step.slot_dtypes import SlotDtypes, SlotDtypesGiven, checked_slot_dtypes

__all__ = ["NO_TRANSFORMS", "Extras", "Options"]

SparseUpdate = Literal["rows", "exact"]
NO_TRANSFORMS = Transforms()
_HALVES = (torch.float16, torch.bfloat16)


class Extras(TypedDict, total=False):
    """Keywords beside torch's.

    Attributes:
        max_grad_norm: Bound of the norm of all gradients together, as
            `torch.nn.utils.clip_grad_norm_` has it, but inside the step: no gradient
            is written.
        ema_decay: Keeps a moving average of every parameter in its state, under
            ``"average"``; `ema_scope` puts the averages into the parameters.
        nonfinite: ``"skip"`` leaves a step with an inf or NaN in a gradient out,
            ``"error"`` raises before anything is written, ``"off"`` does not look. On
            a GPU the host waits for the answer in every step, unless all groups are
            ``capturable`` (`SGD` is so anyway): then the device decides, nothing waits,
            and a later step, `last_step_applied` or `state_dict` raises the error.
        slot_dtypes: ``"variable"``, one dtype, or state key to dtype, as torch dtypes
            or by name. By default state has the parameter's dtype, and float32 beside a
            half-precision one.
        sparse_update: What a sparse gradient does: ``"rows"`` touches the rows it
            names, ``"exact"`` is the dense update with zero rows.
        stochastic_rounding: Whether bfloat16 parameters and state are rounded up or
            down by chance, so that updates too small for them are not lost on average.
        rounding_seed: Seed of that chance, a whole number >= 0; 0 if left out.
    """

    max_grad_norm: float | None
    ema_decay: float | None
    nonfinite: NonFinite
    slot_dtypes: SlotDtypesGiven
    sparse_update: SparseUpdate
    stochastic_rounding: bool
    rounding_seed: int


@dataclass(frozen=True)
class Options:
    """The checked keywords."""

    max_grad_norm: float | None = None
    ema_decay: float | None = None
    nonfinite: NonFinite = "off"
    slot_dtypes: SlotDtypes = None
    sparse_update: SparseUpdate = "rows"
    transforms: Transforms = NO_TRANSFORMS
    stochastic_rounding: bool = False
    rounding_seed: int = 0

    @classmethod
    def checked(cls, owner: type, extras: Mapping[str, Any]) -> Options:
        """Check keywords.

        Args:
            owner: Class of the optimizer, whose name is in messages.
            extras: The keywords.

        Returns:
            The options.

        Raises:
            TypeError: If a keyword is unknown, or ``stochastic_rounding`` no bool.
            ValueError: If a value is out of range.
        """
        where = owner.__name__
        for name in extras:
            if name not in Extras.__annotations__:
                action = nearest(name, _keywords_of(owner))
                raise TypeError(
                    message(where, "one of its keywords", repr(name), action)
                )
        norm, decay = extras.get("max_grad_norm"), extras.get("ema_decay")
        if norm is not None and not norm > 0:
            _refuse(where, "max_grad_norm", "a number > 0 or None", norm)
        if decay is not None and not 0 <= decay <= 1:
            _refuse(where, "ema_decay", "a number in [0, 1] or None", decay)
        nonfinite = extras.get("nonfinite", "off")
        _check_choice(where, "nonfinite", nonfinite, ("off", "skip", "error"))
        sparse = extras.get("sparse_update", "rows")
        _check_choice(where, "sparse_update", sparse, ("rows", "exact"))
        transforms = Transforms(global_clipnorm=norm, nonfinite=nonfinite)
        return cls(
            None if norm is None else float(norm),
            None if decay is None else float(decay),
            nonfinite,
            checked_slot_dtypes(where, extras.get("slot_dtypes")),
            sparse,
            NO_TRANSFORMS if transforms == NO_TRANSFORMS else transforms,
            *checked_rounding(
                where,
                extras.get("stochastic_rounding", False),
                extras.get("rounding_seed"),
            ),
        )

    def check_slot_names(self, where: str, known: Iterable[str]) -> None:
        """Refuse dtypes of state that no group keeps.

        Args:
            where: Name of the class, for messages.
            known: Keys of the state of all groups.

        Raises:
            ValueError: If ``slot_dtypes`` names another one.
        """
        given = self.slot_dtypes if isinstance(self.slot_dtypes, dict) else {}
        for name in given.keys() - set(known):
            action = "Pass one of these, or turn on in a group what brings this one."
            expected = f"state keys among {sorted(known)}"
            _refuse(where, "slot_dtypes", expected, name, action)

    def dtype_of(self, key: str, parameter: torch.dtype) -> torch.dtype:
        """The dtype of new state of a parameter.

        Args:
            key: The state's key.
            parameter: The parameter's dtype.

        Returns:
            A floating dtype.
        """
        policy = self.slot_dtypes
        if isinstance(policy, torch.dtype):
            return policy
        if isinstance(policy, dict) and key in policy:
            return policy[key]
        is_half = parameter in _HALVES and policy != "variable"
        return torch.float32 if is_half else parameter


def _keywords_of(owner: type) -> set[str]:
    """What a class's constructor takes: torch's names, and those beside them."""
    constructors = [
        inspect.signature(vars(kind)["__init__"]).parameters.values()
        for kind in owner.__mro__
        # torch's own constructor may take more than the class here hands on.
        if "__init__" in vars(kind) and not kind.__module__.startswith("torch.")
    ]
    named = {
        parameter.name
        for parameters in constructors
        for parameter in parameters
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    return (named - {"self"}) | Extras.__annotations__.keys()


def _check_choice(where: str, name: str, got: Any, known: tuple[str, ...]) -> None:
    if got not in known:
        _refuse(where, name, f"one of {list(known)}", got)


def _refuse(
    where: str, name: str, expected: str, got: Any, action: str = "Pass one of these."
) -> None:
    raise ValueError(message(f"{where}: {name}", expected, repr(got), action))
