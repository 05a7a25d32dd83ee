"""The switch to torch's formula, for classes whose formula Keras states differently.

A class declares it as its last flag and leaves its configuration to
`config_without_default`. Importing a state of torch turns it on.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["TORCH_FORMULA", "config_without_default", "has_torch_formula"]

TORCH_FORMULA: Final = "torch_formula"
"""Name of the flag."""


def has_torch_formula(optimizer: Any) -> bool:
    """Whether a class, or the class of an optimizer, can be switched.

    Args:
        optimizer: A class of `thalweg.optimizers`, or one of its objects.

    Example:
        >>> has_torch_formula(tw.optimizers.Adamax)
        True
        >>> has_torch_formula(tw.optimizers.Adagrad)  # torch's formula is the same
        False
    """
    return TORCH_FORMULA in optimizer._flags_declared


def config_without_default(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration that is Keras's, word for word, where the formula is.

    Args:
        config: What `get_config` has made; it is changed.

    Returns:
        The same, without the flag unless it is on.
    """
    if config.get(TORCH_FORMULA) is False:
        del config[TORCH_FORMULA]
    return config
