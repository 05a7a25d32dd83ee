"""Which of torch's optimizers a state dict is of, as far as its keys tell.

Options of several kinds are alike: an Adamax has nothing that an Adam has not. So a
state dict is of another kind if it lacks what every one of this kind has, if it holds
tensors that only others keep, or if another kind explains more of its options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from thalweg.errors import message

__all__ = ["KINDS", "Kind", "check_kind", "misfit"]


@dataclass(frozen=True)
class Kind:
    """The keys that an optimizer writes, in all versions of torch.

    Attributes:
        options: Options that every group has.
        later: Options that older versions do not have, to those younger than they are:
            where one of these is, the option is, too.
        slots: Keys of the state of every parameter that has one.
        may: Keys of state that some options bring.
        beside: Options of which there is one where ``maximize`` is.
    """

    options: frozenset[str]
    later: Mapping[str, frozenset[str]]
    slots: frozenset[str]
    may: frozenset[str]
    beside: frozenset[str]

    def lacks(self, options: Iterable[str]) -> list[str]:
        """What the options of a group would have to have, too."""
        has = set(options)
        old = {name for name, younger in self.later.items() if younger & has}
        if "maximize" in has and not self.beside & has:
            old |= self.beside
        return sorted((self.options | old) - has)

    def explained(self, options: Iterable[str]) -> frozenset[str]:
        """The options that are of this kind."""
        return (self.options | self.later.keys()) & frozenset(options)


def _kind(
    options: str,
    later: str = "",
    slots: str = "",
    may: str = "",
    older: Mapping[str, Iterable[str]] | None = None,
    beside: str = "",
) -> Kind:
    """A kind; of its later options those in ``older`` came before some others."""
    known = {name: frozenset((older or {}).get(name, ())) for name in later.split()}
    sets = (frozenset(names.split()) for names in (slots, may, beside))
    return Kind(frozenset(options.split()), known, *sets)


_SWITCHES: Final = "maximize foreach capturable differentiable"
_NEW: Final = frozenset({*_SWITCHES.split(), "fused"})
_ADAM: Final = _kind(
    "lr betas eps weight_decay",
    f"amsgrad {_SWITCHES} fused decoupled_weight_decay",
    slots="exp_avg exp_avg_sq",
    may="max_exp_avg_sq",
    older={"amsgrad": _NEW | {"decoupled_weight_decay"}},
)
_ADAGRAD: Final = "lr lr_decay eps weight_decay initial_accumulator_value"
KINDS: Final[Mapping[str, Kind]] = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "Adamax": _kind(
        "lr betas eps weight_decay",
        _SWITCHES,
        slots="exp_avg exp_inf",
        beside="foreach capturable differentiable",
    ),
    "NAdam": _kind(
        "lr betas eps weight_decay momentum_decay",
        f"{_SWITCHES} decoupled_weight_decay",
        slots="exp_avg exp_avg_sq mu_product",
    ),
    "RAdam": _kind(
        "lr betas eps weight_decay",
        f"{_SWITCHES} decoupled_weight_decay",
        slots="exp_avg exp_avg_sq",
        older={"decoupled_weight_decay": {"maximize", "capturable"}},
    ),
    "SparseAdam": _kind("lr betas eps", "maximize", slots="exp_avg exp_avg_sq"),
    "SGD": _kind(
        "lr momentum dampening weight_decay",
        "nesterov maximize foreach differentiable fused",
        may="momentum_buffer",
        older={"nesterov": _NEW},
    ),
    "RMSprop": _kind(
        "lr alpha eps weight_decay",
        f"momentum centered {_SWITCHES}",
        slots="square_avg",
        may="momentum_buffer grad_avg",
        older={"momentum": _NEW, "centered": _NEW},
    ),
    "Adagrad": _kind(
        _ADAGRAD,
        "maximize foreach differentiable fused",
        slots="sum",
        beside="foreach differentiable fused",
    ),
    "Adadelta": _kind(
        "lr rho eps weight_decay", _SWITCHES, slots="square_avg acc_delta"
    ),
    "ASGD": _kind("lr lambd alpha t0 weight_decay", _SWITCHES, slots="eta mu ax"),
    "Rprop": _kind("lr etas step_sizes", _SWITCHES, slots="prev step_size"),
    "Adafactor": _kind(
        "lr beta2_decay eps d weight_decay",
        "foreach maximize",
        may="row_var col_var variance",
    ),
    "Muon": _kind(
        "lr weight_decay momentum nesterov ns_coefficients eps ns_steps adjust_lr_fn",
        slots="momentum_buffer",
    ),
    "Lion": _kind("lr betas weight_decay", "maximize", slots="exp_avg"),
    "LAMB": _kind("lr betas eps weight_decay", "maximize", slots="exp_avg exp_avg_sq"),
    "RowWiseAdagrad": _kind(_ADAGRAD, "maximize", slots="sum"),
}
_SLOTS: Final = frozenset().union(*(kind.slots | kind.may for kind in KINDS.values()))
_LATER: Final = frozenset().union(*(kind.later for kind in KINDS.values()))
_MODULES: Final = ("torch.optim.", "thalweg.optim.")
Groups = Iterable[Mapping[str, Any]]


def check_kind(
    where: str, optimizer: torch.optim.Optimizer, groups: Groups, state: Any
) -> None:
    """Refuse to load the state of another kind of optimizer.

    Args:
        where: Begins the message.
        optimizer: The one that shall take it. Of a class that is neither torch's nor
            this package's only the options are known that it gives every group.
        groups: Parameter groups of a state dict.
        state: Its state, by parameter.

    Raises:
        ValueError: If it is of another kind. A state of AdamW is one of Adam, which
            shrinks parameters if a group says so; the other way round only without
            weight decay.

    Example:
        >>> adam = torch.optim.Adam([torch.zeros(1)]).state_dict()
        >>> other = torch.optim.Adamax([torch.zeros(1)])
        >>> check_kind("load", other, adam["param_groups"], adam["state"])
        Traceback (most recent call last):
        ...
        ValueError: load: expected the state of Adamax; got a group of Adam or ...
    """
    cls = type(optimizer)
    if cls.__module__.startswith(_MODULES) and cls.__name__ in KINDS:
        problem = misfit(cls.__name__, groups, state)
    else:
        needed = optimizer.defaults.keys() - _LATER
        missing = [sorted(needed - group.keys()) for group in groups]
        problem = next((f"a group without {names}" for names in missing if names), "")
    if problem:
        action = "Load the state of an optimizer of the same kind."
        raise ValueError(
            message(where, f"the state of {cls.__name__}", problem, action)
        )


def misfit(name: str, groups: Groups, state: Any) -> str:
    """What shows that a state dict is of another kind.

    Args:
        name: Name of the kind that it should be.
        groups: Parameter groups.
        state: State by parameter.

    Returns:
        What was found, or "".
    """
    kind = KINDS[name]
    for group in groups:
        problem = _misfit_of_group(kind, group)
        if name == "AdamW" and _has_penalty(group):
            problem = f"a group of Adam, with a penalty of {group['weight_decay']}"
        if problem:
            return problem
    for number, own in state.items():
        problem = _misfit_of_state(kind, own) if isinstance(own, Mapping) else ""
        if problem:
            return f"{problem} of {number!r}"
    return ""


def _misfit_of_group(kind: Kind, group: Mapping[str, Any]) -> str:
    own = kind.explained(group)
    better = {
        name: other.explained(group) - own
        for name, other in KINDS.items()
        if not other.lacks(group) and own < other.explained(group)
    }
    if better:
        most = max(better.values(), key=len)
        names = " or ".join(name for name, more in better.items() if more == most)
        return f"a group of {names}, with {sorted(most)}"
    lacking = kind.lacks(group)
    return f"a group without {lacking}" if lacking else ""


def _has_penalty(group: Mapping[str, Any]) -> bool:
    """Whether a group of Adam has a weight decay that AdamW takes for another one."""
    is_coupled = group.get("decoupled_weight_decay") is False
    return is_coupled and group.get("weight_decay", 0) != 0


def _misfit_of_state(kind: Kind, own: Mapping[str, Any]) -> str:
    keys = _SLOTS.intersection(key for key, value in own.items() if value is not None)
    foreign = sorted(keys - kind.slots - kind.may)
    if foreign:
        return f"state {foreign}"
    missing = sorted(kind.slots - keys)
    return f"state without {missing}" if missing and keys else ""
