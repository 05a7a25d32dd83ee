"""Names of variables, kept in tables beside the tensors.

A tensor has a given name, which its maker chose, and a path in the object graph that
was last registered. They are not attributes of the tensor: sharding replaces tensors,
and attributes would be lost without a word.
"""

from __future__ import annotations

from typing import overload

import torch

from thalweg.errors import describe, message
from thalweg.state.trackable import named_variables
from thalweg.state.weak_table import WeakTable
from thalweg.state.wrappers import WRAPPER_SEGMENTS

_given: WeakTable[str] = WeakTable()
_paths: WeakTable[str] = WeakTable()


def canonical_name(path: str) -> str:
    """Drop the segments that `torch.compile`, FSDP and checkpointing put in a path.

    DDP's `module` cannot be told from a user's attribute by its name; `named_variables`
    leaves it out by the type of its owner.

    Args:
        path: Dotted path, as `named_parameters` gives it.

    Returns:
        The path without those segments.

    Example:
        >>> canonical_name("_orig_mod.layers.0._checkpoint_wrapped_module.weight")
        'layers.0.weight'
    """
    return ".".join(part for part in path.split(".") if part not in WRAPPER_SEGMENTS)


def register_names(root: object, prefix: str = "") -> dict[str, torch.Tensor]:
    """Note the path of every variable reachable from `root` as its name.

    Args:
        root: As for `named_variables`.
        prefix: Put before each path, with a dot between.

    Returns:
        The names with their variables.

    Raises:
        ValueError: If two different variables come by the same name.
    """
    found = named_variables(root)
    named = {f"{prefix}.{name}" if prefix else name: one for name, one in found.items()}
    for name, variable in named.items():
        _paths.set(variable, name)
    return named


def register_name(variable: torch.Tensor, path: str) -> None:
    """Note the path of one variable as its name.

    Args:
        variable: The tensor that is written, no view.
        path: Its place in a model; dots part the segments.

    Raises:
        TypeError: If these are no tensor and no string.
    """
    _check("register_name", variable, path)
    _paths.set(variable, canonical_name(path))


@overload
def name_of(tensor: torch.Tensor) -> str | None: ...
@overload
def name_of(tensor: torch.Tensor, default: str) -> str: ...
def name_of(tensor: torch.Tensor, default: str | None = None) -> str | None:
    """Return the registered path of a tensor, else its given name, else `default`.

    Args:
        tensor: A variable, a parameter, or a view made by `as_variable`.
        default: What to return for a tensor nobody has named.
    """
    owner = getattr(tensor, "handle", tensor)
    path = _paths.get(owner)
    if path is not None:
        return path
    given = _given.get(owner)
    return default if given is None else given


def given_name(tensor: torch.Tensor) -> str | None:
    """Return the name that was set by hand, or None."""
    return _given.get(tensor)


def set_name(tensor: torch.Tensor, name: str | None) -> None:
    """Give a tensor a name of its own, or take it back with None.

    Raises:
        TypeError: If these are no tensor and no string.
    """
    if name is None:
        _given.discard(tensor)
    else:
        _check("set_name", tensor, name)
        _given.set(tensor, name)


def _check(where: str, tensor: object, name: object) -> None:
    """Refuse what cannot be named, and what is no name."""
    for value, kind in ((tensor, torch.Tensor), (name, str)):
        if not isinstance(value, kind):
            expected = "a tensor and its name, a string"
            raise TypeError(message(where, expected, describe(value), "Pass these."))
