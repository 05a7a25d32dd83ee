"""The switch to torch's formula, for classes whose formula Keras states differently.

A class declares it as its last flag. Importing a state of torch turns it on; only then
does a configuration name it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from thalweg.optimizers.declarations import Flag

__all__ = ["TORCH_FORMULA", "flags_in_config", "has_torch_formula"]

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


def flags_in_config(
    flags: Mapping[str, bool], declared: Mapping[str, Flag]
) -> dict[str, bool]:
    """Flags as a configuration has them: Keras's, word for word, where its formula is.

    Args:
        flags: The flags by name.
        declared: How the class declares them.

    Returns:
        All of them, but this one where it is off by default and off.
    """
    is_off = flags.get(TORCH_FORMULA) is False
    left_out = is_off and declared[TORCH_FORMULA].default is False
    return {n: flags[n] for n in declared if not (left_out and n == TORCH_FORMULA)}
