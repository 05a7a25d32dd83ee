"""The state of an optimizer in the words of its twin in `torch.optim`."""

from __future__ import annotations

import math
from typing import Any

import torch

from thalweg.errors import CheckpointError, message
from thalweg.interop.torch_face import TorchFace
from thalweg.interop.twins import Twin
from thalweg.optimizers.torch_formula import TORCH_FORMULA
from thalweg.state import handle_of

__all__ = ["write_state"]

_STEP = "step"
Group = dict[str, Any]


def write_state(twin: Twin, face: TorchFace) -> Group:
    """Translate the state of an optimizer.

    Args:
        twin: The pair of classes.
        face: The optimizer with groups.

    Returns:
        A state dict of torch's class.

    Raises:
        CheckpointError: If torch's class lacks an option, or cannot say a slot.
    """
    owner: Any = face.wrapped
    if getattr(owner, TORCH_FORMULA, False):
        twin = twin.in_torch_units()
    if twin.decay is None and owner.decay != 0:
        raise _refusal(twin, "no decay of the rate", f"decay={owner.decay}")
    defaults = getattr(torch.optim, twin.name)([torch.zeros(1)]).defaults
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for variable, name, slot in owner.slot_variables():
        slots.setdefault(id(handle_of(variable)), {})[name] = slot
    groups: list[Group] = []
    state: dict[int, Group] = {}
    for group in face.param_groups:
        first = sum(len(g["params"]) for g in groups)
        written = {**defaults, **_entries(twin, owner, group, defaults)}
        written["params"] = list(range(first, first + len(group["params"])))
        for number, parameter in zip(written["params"], group["params"], strict=True):
            own = _state_of(twin, owner, slots.get(id(handle_of(parameter)), {}), group)
            if own:
                state[number] = own
        groups.append(written)
    return {"state": state, "param_groups": groups}


def _entries(twin: Twin, owner: Any, group: Group, defaults: Group) -> Group:
    entries = {option: group[entry] for option, entry in twin.options.items()}
    entries |= {name: getattr(owner, name) for name in twin.flags}
    if twin.squares_epsilon and owner.has_momentum:
        entries["eps"] = math.sqrt(group["eps"])
    if twin.decay is not None:
        entries[twin.decay] = owner.decay
    share = group.get("weight_decay", 0.0)
    if share and "decoupled_weight_decay" not in defaults:
        raise _refusal(twin, "no weight decay", f"a decoupled one of {share}")
    entries["weight_decay"] = share
    if share:
        entries["decoupled_weight_decay"] = True
    names = {name: list(group[name]) for name in ("param_names",) if name in group}
    return {**entries, **names}


def _state_of(
    twin: Twin, owner: Any, slots: dict[str, torch.Tensor], group: Group
) -> Group:
    own: Group = {}
    for key, name in twin.slots.items():
        if name in slots:
            own[key] = _without_rate(twin, name, slots[name], float(group["lr"]))
    if own:
        shared = owner.state_variables()
        own |= {k: torch.tensor(float(shared[n])) for k, n in twin.shared.items()}
        if twin.has_step:
            own[_STEP] = torch.tensor(float(owner.iterations))
    return own


def _without_rate(
    twin: Twin, name: str, slot: torch.Tensor, rate: float
) -> torch.Tensor:
    """Torch's tensor for a slot that has the learning rate inside."""
    value = slot.detach().as_subclass(torch.Tensor)
    factor = twin.rates.get(name)
    if factor is None:
        return value.clone()
    if rate == 0 and bool(value.any()):
        expected = "a learning rate above 0, which its momentum has inside"
        raise _refusal(twin, expected, "0")
    return value / (factor * rate) if rate else value.clone()


def _refusal(twin: Twin, expected: str, got: str) -> CheckpointError:
    action = "torch's class cannot say this."
    return CheckpointError(message(f"torch_state: {twin.name}", expected, got, action))
