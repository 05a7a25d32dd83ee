"""Loading state dicts: parameters matched by name or position, nothing cast."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from thalweg.checkpoint.boxes import Box
from thalweg.checkpoint.pieces import piece_of
from thalweg.distribute import is_distributed
from thalweg.distribute.row_shards import sharded_rows
from thalweg.errors import describe, message
from thalweg.interop.kinds import check_kind
from thalweg.interop.state_matching import Match, are_named, fits, match_parameters
from thalweg.optim.described import Described

__all__ = ["load_state", "plain_groups"]

_LOAD_LESS = "Pass strict=False to load those that are in both."


def load_state(
    optimizer: Described, state_dict: dict[str, Any], *, strict: bool
) -> None:
    """Load a state dict.

    Args:
        optimizer: Into which.
        state_dict: In torch's form, of this or torch's optimizer.
        strict: Whether names must be the same on both sides.

    Raises:
        ValueError: If something does not fit; nothing is changed then.
    """
    saved = state_dict.copy()
    for hook in list(optimizer._optimizer_load_state_dict_pre_hooks.values()):
        changed = hook(optimizer, saved)
        saved = saved if changed is None else changed
    where = f"{type(optimizer).__name__}.load_state_dict"
    check_kind(where, optimizer, saved["param_groups"], saved["state"])
    match = _match(optimizer, copy.deepcopy(saved["param_groups"]), strict=strict)
    _check_shapes(optimizer, saved["state"], match)
    state = _copied(optimizer, saved["state"], match)
    # In place: a wrapper of some trainer has these objects of the optimizer in it.
    optimizer.state.clear()
    optimizer.state.update(state)
    optimizer.param_groups[:] = match.groups
    optimizer.__setstate__({})
    for hook in list(optimizer._optimizer_load_state_dict_post_hooks.values()):
        hook(optimizer)


def plain_groups(saved: Mapping[str, Any]) -> None:
    """Turn NumPy numbers among the options into Python's, which load safely."""
    for group in saved["param_groups"]:
        for name, value in group.items():
            if isinstance(value, np.generic):
                group[name] = value.item()


# -- which parameter is which -------------------------------------------------


def _match(optimizer: Described, saved: list[dict[str, Any]], *, strict: bool) -> Match:
    where, own = type(optimizer).__name__, optimizer.param_groups
    named = are_named(own), are_named(saved)
    match = match_parameters(where, own, saved, strict=strict, advice=_LOAD_LESS)
    if named[0] != named[1]:
        warnings.warn(
            f"{where}.load_state_dict: only "
            f"{'the optimizer' if named[0] else 'the state dict'} has parameter names; "
            "parameters are matched by position.",
            stacklevel=5,
        )
    if not match.is_by_name:  # saved names count more than own ones, as in torch
        for group, theirs in zip(match.groups, saved, strict=True):
            if "param_names" in theirs:
                group["param_names"] = theirs["param_names"]
    return match


# -- values -------------------------------------------------------------------


def _check_shapes(optimizer: Described, saved: Mapping[Any, Any], match: Match) -> None:
    problems = [
        f"{key!r} of parameter {number!r}: {tuple(value.shape)} for "
        f"{tuple(parameter.shape)}"
        for number, parameter in match.parameters.items()
        for key, value in _entries(saved.get(number))
        if isinstance(value, torch.Tensor) and not fits(value, parameter)
    ]
    problems += [
        f"{key!r} of parameter {number!r}: {describe(value)} for {describe(parameter)}"
        for number, parameter in match.parameters.items()
        for key, value in _entries(saved.get(number))
        if isinstance(value, torch.Tensor) and not _can_be_placed(value, parameter)
    ]
    if problems:
        raise ValueError(
            message(
                f"{type(optimizer).__name__}.load_state_dict",
                "tensors of their parameters' shapes",
                "; ".join(problems),
                "Load it into an optimizer of the same parameters.",
            )
        )


def _entries(state: Any) -> list[tuple[Any, Any]]:
    return list(state.items()) if isinstance(state, Mapping) else []


def _can_be_placed(value: torch.Tensor, parameter: torch.Tensor) -> bool:
    """Whether a tensor is, or can be cut to, what a step takes of that parameter."""
    if is_distributed(value) == is_distributed(parameter):
        return True
    if is_distributed(value):
        return False
    piece_of(parameter)  # refuses parameters whose part here is no box
    is_whole = value.numel() == 1 or value.shape == parameter.shape
    return is_whole or _empty_part(parameter, value) is not None


def _copied(optimizer: Described, saved: Mapping[Any, Any], match: Match) -> Any:
    """The new state; tensors that fit are filled, so that no second set is made."""
    held = {
        id(value)
        for own in optimizer.state.values()
        for _, value in _entries(own)
        if isinstance(value, torch.Tensor)
    }
    taken = (v for own in saved.values() for _, v in _entries(own))
    in_place = not any(id(value) in held for value in taken)
    state: defaultdict[Any, Any] = defaultdict(dict)
    for number, own in saved.items():
        parameter = match.parameters.get(number)
        if parameter is None:
            # State of no parameter is kept as it is; that of a dropped one is not.
            if not isinstance(number, (int, str)):
                state[number] = own
            continue
        old = optimizer.state.get(parameter, {}) if in_place else {}
        state[parameter] = {
            key: _value(optimizer, parameter, key, value, old.get(key))
            for key, value in _entries(own)
            if value is not None
        }
    return state


@torch.no_grad()
def _value(
    optimizer: Described, parameter: torch.Tensor, key: str, value: Any, old: Any
) -> Any:
    if key in optimizer.counters and optimizer.counts_in_state:
        return torch.tensor(float(value), dtype=torch.float64, device="cpu")
    if not isinstance(value, torch.Tensor):
        return copy.deepcopy(value)
    is_cut = is_distributed(parameter) and not is_distributed(value)
    fits = isinstance(old, torch.Tensor) and old.device == parameter.device
    if fits and (old.shape, old.dtype) == (value.shape, value.dtype):
        return _filled(old, value)
    if is_cut and (part := _empty_part(parameter, value)) is not None:
        return _filled(part, value)
    if value.shape == parameter.shape and not is_cut:
        like = parameter.detach()
        return torch.empty_like(like, dtype=value.dtype).copy_(value)
    return value.detach().to(parameter.device, copy=True)


def _empty_part(parameter: torch.Tensor, value: torch.Tensor) -> Any:
    """Zeros that are sharded as a parameter is; None if those would not be rows."""
    shape = tuple(value.shape)
    if shape == tuple(parameter.shape):
        return torch.zeros_like(parameter.detach(), dtype=value.dtype)
    return sharded_rows(parameter, shape, value.dtype)


def _filled(place: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A tensor with new content, of which a shard takes its own part."""
    if is_distributed(place) == is_distributed(value):
        return place.copy_(value)
    piece = piece_of(place)
    piece.tensor.copy_(value[piece.box.inside(Box.whole(value.shape))])
    return place
