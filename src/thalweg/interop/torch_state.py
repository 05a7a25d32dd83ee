"""State dicts of `torch.optim` for optimizers with Keras's interface, and back.

Names, units and counts are translated here; matching parameters and putting things in
force is what the face of torch does with any state dict.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from thalweg.errors import CheckpointError, describe, message
from thalweg.interop.slot_owner import forget
from thalweg.interop.state_matching import Match, match_parameters, repeated_names
from thalweg.interop.torch_face import TorchFace, as_torch
from thalweg.interop.twin_reader import TwinReader, refusal
from thalweg.interop.twin_writer import write_state
from thalweg.interop.twins import Twin, twin_of
from thalweg.optimizers import Optimizer
from thalweg.optimizers.torch_formula import TORCH_FORMULA, has_torch_formula

__all__ = ["load_torch_state", "torch_state"]

_OWN_KEYS = ("params", "param_names")
_PROBLEMS = (TypeError, ValueError, RuntimeError, OverflowError)
Group = dict[str, Any]
logger = logging.getLogger(__name__)


def load_torch_state(
    optimizer: Optimizer | TorchFace,
    state_dict: Mapping[str, Any],
    model: Any = None,
) -> None:
    """Go on with the state of one of torch's optimizers.

    The optimizer takes over slots, count and hyperparameters of its twin: `Adam`,
    `AdamW`, `SGD`, `RMSprop`, `Adagrad`, `Adadelta`, `Adamax` and `Nadam` have one. A
    learning rate that is a schedule or callable stays so. Each hyperparameter that
    changes is logged. Training goes on with the same numbers: a class whose formula
    Keras states differently is switched to torch's by its ``torch_formula``.

    torch counts the steps of each parameter, Keras those of all. A parameter without
    state counts as one whose gradients were zero so far. SGD of torch does not count at
    all, and leaves ``iterations`` alone.

    Args:
        optimizer: An optimizer of `thalweg.optimizers`, or one with the face of torch.
        state_dict: What ``state_dict()`` of torch's optimizer gave; it is copied. With
            ``param_names`` parameters are found by name, otherwise by position.
        model: The module, or its parameters, or (name, parameter) pairs. A face knows
            its parameters; its groups may differ in their numbers.

    Raises:
        CheckpointError: If it is no such state dict, or that of another kind of
            optimizer; if names, groups or shapes do not fit; if parameters have taken
            different numbers of steps and the formula reads them; or if an option has
            no counterpart (coupled weight decay, dampening, maximize). Nothing is
            changed then.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> before = torch.optim.Adam(model.named_parameters(), lr=0.5)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> before.step()
        >>> optimizer = tw.optimizers.Adam()
        >>> load_torch_state(optimizer, before.state_dict(), model)
        >>> optimizer.learning_rate, optimizer.iterations.item()
        (0.5, 1)
    """
    face = _face_of(optimizer, model)
    twin = twin_of(face.wrapped)
    groups, state = _checked_form(twin, state_dict)
    before = face.wrapped.hyperparameters()
    try:
        reader = TwinReader(twin, face.wrapped, groups, state)
        translated = {
            "state": reader.state(),
            "param_groups": _regrouped(twin, reader.groups(), face),
        }
        decay = reader.decay()
        match = match_parameters(
            twin.name, face.param_groups, translated["param_groups"]
        )
        _check_shapes(twin, translated["state"], match)
        face.load_state_dict(translated)
    except CheckpointError:
        raise
    except _PROBLEMS as problem:
        raise CheckpointError(f"load_torch_state: {problem}") from problem
    if twin.decay is not None:
        face.wrapped.decay = decay
    if has_torch_formula(face.wrapped):
        setattr(face.wrapped, TORCH_FORMULA, True)
    _tell_differences(before, face.wrapped.hyperparameters())
    if face is not optimizer:
        known = {id(match.parameters[number]) for number in translated["state"]}
        gone = [p for p in face.param_groups[0]["params"] if id(p) not in known]
        forget(face.wrapped, gone, resets=twin.has_step and not known)


def _tell_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Log what was taken over, in the words of `Checkpoint.restore`."""
    for name, value in after.items():
        if value != before[name]:
            logger.warning(
                "load_torch_state took the first: %s: %r in the state dict, %r in the "
                "optimizer",
                *(name, value, before[name]),
            )


def torch_state(optimizer: Optimizer | TorchFace, model: Any = None) -> Group:
    """Give the state of an optimizer as its twin in `torch.optim` has it.

    The inverse of `load_torch_state`. Adam, AdamW, Adamax, and SGD and RMSprop with
    momentum go on a little differently unless ``torch_formula`` is on. A schedule is
    given as the number in force; clips and averages stay behind.

    Args:
        optimizer: As for `load_torch_state`.
        model: As for `load_torch_state`.

    Returns:
        A state dict with copies of all tensors, for ``load_state_dict`` of torch's
        class; with ``param_names`` where parameters have names.

    Raises:
        CheckpointError: If the optimizer has no twin, or its twin lacks an option.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = tw.optimizers.SGD(0.5, momentum=0.75)
        >>> after = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> after.load_state_dict(torch_state(optimizer, model))
        >>> after.param_groups[0]["lr"], after.param_groups[0]["momentum"]
        (0.5, 0.75)
    """
    face = _face_of(optimizer, model)
    return write_state(twin_of(face.wrapped), face)


def _face_of(optimizer: Any, model: Any) -> TorchFace:
    """The optimizer as one that has groups; nothing is made in it by that."""
    if isinstance(optimizer, TorchFace):
        return optimizer
    if not isinstance(optimizer, Optimizer):
        expected, got = "an optimizer of thalweg.optimizers", describe(optimizer)
        action = "torch's own and those of thalweg.optim have load_state_dict()."
        raise CheckpointError(message("load_torch_state", expected, got, action))
    twin = twin_of(optimizer)
    if model is None:
        raise refusal(twin, "a model", "none", "Pass the module that it updates.")
    try:
        face = as_torch(optimizer, model)
    except (TypeError, ValueError) as problem:
        raise CheckpointError(f"load_torch_state: {problem}") from problem
    if len(face.param_groups) > 1:
        expected, got = "a module or parameters", f"{len(face.param_groups)} groups"
        raise refusal(twin, expected, got, "Pass as_torch(optimizer, groups) instead.")
    return face


def _checked_form(twin: Twin, state_dict: Any) -> tuple[list[Group], dict[Any, Group]]:
    """Groups and state, once they have the form of such."""
    got = describe(state_dict)
    if isinstance(state_dict, Mapping):
        groups: Any = state_dict.get("param_groups")
        state: Any = state_dict.get("state")
        if _are_groups(groups) and _is_state(state):
            return groups, state
        got = f"a dictionary of {[str(key)[:40] for key in list(state_dict)[:8]]}"
    raise refusal(
        twin,
        "{'state': {number: {key: tensor}}, 'param_groups': [{'params': [...]}]}",
        got,
        "Pass what state_dict() of torch's optimizer gave.",
    )


def _are_groups(groups: Any) -> bool:
    if not isinstance(groups, list) or not groups:
        return False
    for group in groups:
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            return False
        names = group.get("param_names", group["params"])
        if not isinstance(names, list) or len(names) != len(group["params"]):
            return False
    numbers = [number for group in groups for number in group["params"]]
    return all(isinstance(n, (int, str)) for n in numbers) and len(set(numbers)) == len(
        numbers
    )


def _is_state(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(s, dict) for s in state.values())


def _regrouped(twin: Twin, groups: list[Group], face: TorchFace) -> list[Group]:
    """One group of several that differ in nothing but their parameters."""
    if len(groups) == 1 or len(face.param_groups) > 1:
        return groups
    if any("param_names" not in group for group in groups):
        expected, got = "names, or one group", f"{len(groups)} groups without names"
        action = "Make torch's optimizer of (name, parameter) pairs, or pass "
        raise refusal(twin, expected, got, action + "as_torch(optimizer, groups).")
    numbers = [{k: v for k, v in g.items() if k not in _OWN_KEYS} for g in groups]
    if any(other != numbers[0] for other in numbers):
        expected, got = "groups with the same numbers", f"{numbers}"
        raise refusal(twin, expected, got, "Pass as_torch(optimizer, groups) instead.")
    if repeated := repeated_names(groups):
        expected, got = "names that occur once, or one group", f"{repeated} twice"
        raise refusal(twin, expected, got, "Pass as_torch(optimizer, groups) instead.")
    joined = {key: [item for g in groups for item in g[key]] for key in _OWN_KEYS}
    return [{**joined, **numbers[0]}]


def _check_shapes(twin: Twin, state: Mapping[Any, Group], match: Match) -> None:
    problems = [
        f"{name!r} of {number!r}: {describe(value)} for {tuple(parameter.shape)}"
        for number, parameter in match.parameters.items()
        for name, value in state.get(number, {}).items()
        if isinstance(value, torch.Tensor) and value.shape != parameter.shape
    ]
    if problems:
        expected = "tensors of their parameters' shapes"
        action = "Pass the model whose parameters torch's optimizer updated."
        raise refusal(twin, expected, "; ".join(problems), action)
