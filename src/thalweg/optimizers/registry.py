"""Optimizers by name and by configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.errors import describe, message, nearest
from thalweg.optimizers.optimizer import Optimizer

__all__ = ["deserialize", "get", "names", "serialize", "wrappers"]

_OWN_MODULES = "thalweg.optimizers."

wrappers: dict[str, type[Any]] = {}
"""Classes around an optimizer, by name in lower case; `names` leaves them out."""


def _classes() -> dict[str, type[Optimizer]]:
    """The classes by name of all modules of this package that have been imported."""
    found: dict[str, type[Optimizer]] = {}
    waiting = list(Optimizer.__subclasses__())
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.__module__.startswith(_OWN_MODULES):
            found[cls.__name__.lower()] = cls
    return found


def names() -> list[str]:
    """Names that `get` knows.

    Returns:
        Class names in lower case, sorted.

    Example:
        >>> "adam" in tw.optimizers.names()
        True
    """
    return sorted(_classes())


def get(identifier: Any) -> Optimizer:
    """An optimizer from a name, a configuration, or as it is.

    Args:
        identifier: A class name in any case, what `serialize` gave, or an optimizer.

    Returns:
        The optimizer.

    Raises:
        ValueError: If the name is unknown; the nearest known one is told.
        TypeError: If the identifier is of another kind.

    Example:
        >>> type(tw.optimizers.get("adam")).__name__
        'Adam'
    """
    if isinstance(identifier, (Optimizer, *wrappers.values())):
        return identifier
    if isinstance(identifier, str):
        return deserialize({"class_name": identifier, "config": {}})
    if isinstance(identifier, Mapping):
        return deserialize(identifier)
    action = "For example 'adam'."
    if isinstance(identifier, type):
        action = f"Pass what it makes: {identifier.__name__}()."
    raise TypeError(
        message(
            "optimizers.get",
            "a name, a configuration or an optimizer",
            describe(identifier),
            action,
        )
    )


def serialize(optimizer: Optimizer) -> dict[str, Any]:
    """Class name and configuration of an optimizer.

    Args:
        optimizer: The optimizer.

    Returns:
        ``{"class_name": …, "config": …}``, which JSON can hold.
    """
    return {"class_name": type(optimizer).__name__, "config": optimizer.get_config()}


def deserialize(
    config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
) -> Optimizer:
    """Make an optimizer from what `serialize` gave.

    Args:
        config: ``{"class_name": …, "config": …}``.
        custom_objects: Own optimizer and schedule classes by name.

    Returns:
        A new optimizer.

    Raises:
        ValueError: If the class name is unknown, or that of a wrapper without the
            optimizer inside.
    """
    own = dict(custom_objects or {})
    name = config["class_name"]
    known_classes = {**wrappers, **_classes()}
    cls = own.get(name) or known_classes.get(str(name).lower())
    if cls is None:
        known = [*names(), *own]
        raise ValueError(
            message("optimizers", "a known name", repr(name), nearest(name, known))
        )
    arguments = config.get("config", {})
    if cls in wrappers.values() and "inner_optimizer" not in arguments:
        action = f"Write {cls.__name__}(optimizer)."
        raise ValueError(
            message("optimizers", "an optimizer by itself", repr(name), action)
        )
    return cls.from_config(arguments, own)
