"""What one kernel is made for: the key of every cache.

No hyperparameter, count or size is part of a key, so another learning rate, more
variables and other shapes compile nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from thalweg.compiler.rounding import STEP
from thalweg.compiler.rule import Rule
from thalweg.errors import describe, message, nearest

__all__ = ["KernelKey", "Mode"]

Mode = Literal["dense", "sum", "sequence"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_LAYOUTS = ("like", "row", "scalar")
_MODES = ("dense", "sum", "sequence")


@dataclass(frozen=True)
class KernelKey:
    """A kernel's identity.

    Attributes:
        rule: The rule.
        flags: Its flags as sorted pairs; a bool for each.
        dtypes: Storage dtypes of variable, slots and gradient, in order.
        mode: "dense"; "sum": an item is a touched row whose duplicate gradients are
            added in order of appearance first; "sequence": the duplicates act one
            after the other.
        layouts: For each slot "like", "row" or "scalar"; all "like" when empty.
        device_scalars: Scalars that an earlier kernel of the step writes.
        shape: What the rule reads of the variable's global shape, see `shape_read`:
            None if nothing, None for each axis if only how many there are.
        rounding: Outputs that are rounded stochastically, see `rounding`: bfloat16
            ones of the variable's shape, of a rule that takes the scalar `step`.

    Raises:
        TypeError: If a dtype is not float32, float64, bfloat16 or float16, or a flag
            is not a bool.
        ValueError: If a count or a name does not fit the rule.
    """

    rule: Rule
    flags: tuple[tuple[str, bool], ...]
    dtypes: tuple[torch.dtype, ...]
    mode: Mode = "dense"
    layouts: tuple[str, ...] = ()
    device_scalars: tuple[str, ...] = ()
    shape: tuple[int | None, ...] | None = None
    rounding: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "flags", tuple(sorted(self.flags)))
        self._check_names()
        self._check_tensors()
        self._check_rounding()

    def _check_names(self) -> None:
        rule = self.rule
        if tuple(name for name, _ in self.flags) != tuple(sorted(rule.flags)):
            given = ", ".join(name for name, _ in self.flags) or "none"
            self._refuse(f"the flags {', '.join(rule.flags) or 'none'}", given)
        for name, value in self.flags:
            if not isinstance(value, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
                raise TypeError(
                    message(
                        f"kernel of {rule.name}",
                        f"a bool for {name!r}",
                        describe(value),
                        "Pass True or False.",
                    )
                )
        unknown = set(self.device_scalars) - set(rule.scalars)
        if unknown:
            name = min(unknown)
            self._refuse("scalars of the rule", repr(name), nearest(name, rule.scalars))
        if self.mode not in _MODES:
            self._refuse("a mode", repr(self.mode), nearest(self.mode, _MODES))

    def _check_tensors(self) -> None:
        rule = self.rule
        if len(self.dtypes) != len(rule.tensors):
            self._refuse(
                f"{len(rule.tensors)} dtypes ({', '.join(rule.tensors)})",
                str(len(self.dtypes)),
            )
        for name, dtype in zip(rule.tensors, self.dtypes, strict=True):
            if dtype not in _DTYPES:
                raise TypeError(
                    message(
                        f"kernel of {rule.name}",
                        f"a floating dtype for {name!r}",
                        str(dtype).removeprefix("torch."),
                        "Use float32, float64, bfloat16 or float16.",
                    )
                )
        if self.layouts and len(self.layouts) != len(rule.slots):
            self._refuse(f"{len(rule.slots)} layouts", str(len(self.layouts)))
        for layout in self.layouts:
            if layout not in _LAYOUTS:
                self._refuse("a layout", repr(layout), nearest(layout, _LAYOUTS))

    def _check_rounding(self) -> None:
        if self.rounding and STEP not in self.rule.scalars:
            self._refuse(f"a rule that takes {STEP!r}", "none, to be rounded by it")
        outputs = self.rule.outputs
        for name in self.rounding:
            if name not in outputs:
                self._refuse("outputs of the rule", repr(name), nearest(name, outputs))
            position = outputs.index(name)
            dtype = self.dtypes[position]
            layout = ("like", *(self.layouts or ["like"] * position))[position]
            if dtype != torch.bfloat16 or layout != "like":
                self._refuse(
                    "bfloat16 outputs of the variable's shape to round stochastically",
                    f"{name!r}, {str(dtype).removeprefix('torch.')}, {layout!r}",
                    "Round other outputs to nearest.",
                )

    def _refuse(self, expected: str, got: str, action: str = "") -> None:
        where = f"kernel of {self.rule.name}"
        action = action or "Make the key from the same rule."
        raise ValueError(message(where, expected, got, action))
