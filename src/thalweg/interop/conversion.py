"""A checkpoint of what `torch.save` has written of a model and its optimizer.

Files are loaded as weights only: nothing in them is executed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any, Final

import torch

from thalweg.checkpoint import Checkpoint
from thalweg.checkpoint.durable import check_free
from thalweg.errors import CheckpointError, describe, message
from thalweg.interop.hugging_face_weights import load_weights
from thalweg.interop.kinds import check_kind
from thalweg.interop.state_matching import Match, check_shapes, match_parameters
from thalweg.interop.torch_face import TorchFace
from thalweg.interop.torch_state import load_torch_state

__all__ = ["convert"]

_NAMES: Final = "param_names"
_FOREIGN: Final = re.compile(r"GLOBAL ([\w.]+)")
"""How torch names what it does not load as weights."""
_MOST: Final = 600
"""Characters of a list of names that do not fit."""
PathLike = str | os.PathLike[str]
PARTS: Final = {"state", "param_groups"}


def convert(
    state: PathLike,
    path: PathLike,
    model: torch.nn.Module,
    optimizer: Any,
    *,
    weights: PathLike | None = None,
    overwrite: bool = False,
) -> str:
    """Make a checkpoint of a model, and an optimizer whose state torch has saved.

    Args:
        state: A file of `torch.save` with the state dict of an optimizer, or with one
            such in a dictionary of several things.
        path: The checkpoint to make.
        model: The model; its names are those of the checkpoint.
        optimizer: An optimizer of it: of `torch.optim`, `thalweg.optim`, or a twin in
            `thalweg.optimizers` (see `load_torch_state`). It takes the state.
        weights: Weights that the model takes first: what `load_weights` reads, or a
            file of `torch.save` with the state dict of a module.
        overwrite: As for `Checkpoint.save`.

    Returns:
        The path of the checkpoint, in which the two are ``model`` and ``optimizer``.

    Raises:
        CheckpointError: If the path is taken, or a file cannot be loaded as weights
            only, is not what it should be, or does not fit; no checkpoint is made then.
        OSError: From the system.
    """
    check_free(Path(os.path.abspath(path)), overwrite)
    saved = _state_in(Path(state))
    if weights is not None:
        _load_weights(model, Path(weights))
    if isinstance(optimizer, torch.optim.Optimizer) and not isinstance(
        optimizer, TorchFace
    ):
        _load_by_name(optimizer, saved, model)
    else:
        load_torch_state(optimizer, saved, model)
    return Checkpoint(model=model, optimizer=optimizer).save(path, overwrite)


def _state_in(path: Path) -> Mapping[str, Any]:
    content = _load(path)
    if isinstance(content, Mapping):
        if content.keys() >= PARTS:
            return content
        inside = [v for v in content.values() if isinstance(v, Mapping)]
        found = [value for value in inside if value.keys() >= PARTS]
        if len(found) == 1:
            return found[0]
    expected = "the state dict of an optimizer, or one in a dictionary"
    action = "Save optimizer.state_dict() with torch.save."
    raise CheckpointError(
        message(f"convert: {path}", expected, describe(content), action)
    )


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as problem:  # whatever a damaged or hostile file leads to
        # Not torch's text: it advises to run what is in the file.
        expected = "a file of torch.save with tensors and plain values"
        got, action = "one that cannot be read", "It is damaged, or none of torch.save."
        found = _FOREIGN.search(str(problem))
        if found:
            got = f"an object of {found[1]}"
            action = "Save state dicts, not objects: no code of a file is run."
        raise CheckpointError(
            message(f"convert: {path}", expected, got, action)
        ) from problem


def _load_weights(model: torch.nn.Module, path: Path) -> None:
    if path.is_dir() or path.suffix in (".safetensors", ".json"):
        load_weights(model, path)
        return
    content = _load(path)
    try:
        model.load_state_dict(content)
    except (TypeError, RuntimeError, AttributeError) as problem:
        got = describe(content)
        if isinstance(content, Mapping):
            # After torch's heading, a line for each kind of what does not fit.
            heading, _, lines = str(problem).partition("\n")
            got = shorten(lines or heading, _MOST, placeholder=" …").rstrip(".")
        expected = f"the state dict of this {type(model).__name__}"
        action = "Name a file of model.state_dict() as weights."
        raise CheckpointError(
            message(f"convert: {path}", expected, got, action)
        ) from problem


def _load_by_name(
    optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], model: torch.nn.Module
) -> None:
    """Load a state dict into an optimizer of torch, matched by the model's names."""
    where = type(optimizer).__name__
    names = {id(p): name for name, p in model.named_parameters()}
    own = [
        {**g, _NAMES: [names[id(p)] for p in g["params"] if id(p) in names]}
        for g in optimizer.param_groups
    ]
    try:
        check_kind(where, optimizer, saved["param_groups"], saved["state"])
        match = match_parameters(where, own, saved["param_groups"])
        check_shapes(where, saved["state"], match)
        optimizer.load_state_dict(_renumbered(optimizer, saved["state"], match))
    except CheckpointError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as problem:
        raise CheckpointError(f"convert: {problem}") from problem


def _renumbered(
    optimizer: torch.optim.Optimizer, state: Mapping[Any, Any], match: Match
) -> dict[str, Any]:
    """The state dict as the optimizer itself would number and name it."""
    own = optimizer.param_groups
    every = [parameter for group in own for parameter in group["params"]]
    numbers = {id(parameter): number for number, parameter in enumerate(every)}
    found = {numbers[id(p)]: state.get(old) for old, p in match.parameters.items()}
    groups = []
    for mine, group in zip(own, match.groups, strict=True):
        options = {k: v for k, v in group.items() if k != _NAMES}
        names = {_NAMES: mine[_NAMES]} if _NAMES in mine else {}
        places = [numbers[id(p)] for p in mine["params"]]
        groups.append({**options, **names, "params": places})
    return {
        "state": {number: value for number, value in found.items() if value},
        "param_groups": groups,
    }
