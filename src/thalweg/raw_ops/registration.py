"""Raw ops as operators of torch, so that `torch.compile` takes them as they are.

Each op is known to torch as ``torch.ops.thalweg.<name>``: what it writes is declared,
scalars are 0-d tensors, so that another learning rate compiles nothing again. A call
outside of a compiled function goes straight to the op.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.compiler import is_compiling
from torch.utils._python_dispatch import (
    _get_current_dispatch_mode,  # pyright: ignore[reportPrivateUsage] - no public name
)

__all__ = ["Operator", "is_traced"]

_LIBRARY = torch.library.Library("thalweg", "FRAGMENT")
_RESOURCES = frozenset(
    (
        *("var", "m", "v", "vhat", "mg", "ms", "mom", "accum", "accum_update"),
        *("gradient_accumulator", "gradient_squared_accumulator", "linear"),
        "resource",
    )
)
_LIKE_THE_VARIABLE = frozenset(("delta", "grad", "updates"))
_SWITCHES = {"bool": "bool", "bool | None": "bool?"}


def is_traced() -> bool:
    """Whether torch compiles, or a mode wants to be told of operators, as fakes do."""
    return is_compiling() or _get_current_dispatch_mode() is not None


@dataclass(frozen=True)
class Operator:
    """An op as torch knows it.

    Attributes:
        function: What runs it; all its arguments are keywords.
        name: Its name in ``torch.ops.thalweg``.
        arguments: Its arguments in order, and their defaults.
        switches: The type of each argument that is a bool, as a schema spells it.
        resources: The arguments that are written.
        alike: The arguments that have the dtype of the first resource.
    """

    function: Callable[..., None]
    name: str
    arguments: Mapping[str, Any]
    switches: Mapping[str, str]
    resources: frozenset[str] = _RESOURCES
    alike: frozenset[str] = _LIKE_THE_VARIABLE

    @classmethod
    def of(cls, function: Callable[..., None]) -> Operator:
        """The operator of an op whose arguments have TensorFlow's names."""
        parameters = inspect.signature(function).parameters
        arguments = {n: p.default for n, p in parameters.items() if n != "name"}
        annotations = {n: p.annotation for n, p in parameters.items()}
        switches = {n: _SWITCHES[a] for n, a in annotations.items() if a in _SWITCHES}
        return cls(function, function.__name__, arguments, switches)

    def define(self) -> None:
        """Make it known to torch."""
        names, function = list(self.arguments), self.function
        texts = [self._declaration(i, n) for i, n in enumerate(names)]
        _LIBRARY.define(f"{self.name}({', '.join(texts)}) -> ()")

        def implementation(*args: Any, **arguments: Any) -> None:
            function(**dict(zip(names, args, strict=False)), **arguments)

        def fake(*args: Any, **arguments: Any) -> None:
            del args, arguments

        _LIBRARY.impl(self.name, implementation, "CompositeExplicitAutograd")
        torch.library.register_fake(f"thalweg::{self.name}", fake, lib=_LIBRARY)

    def _declaration(self, number: int, name: str) -> str:
        if name in self.switches:
            default = self.arguments[name]
            text = "" if default is inspect.Parameter.empty else f"={default}"
            return f"{self.switches[name]} {name}{text}"
        is_written = name in self.resources
        return f"Tensor(a{number}!) {name}" if is_written else f"Tensor {name}"

    def __call__(self, given: Mapping[str, Any]) -> None:
        """Call it through torch, as a compiled function does."""
        defaults = self.arguments.items()
        known = {n: d for n, d in defaults if d is not inspect.Parameter.empty}
        named = {**known, **given}
        named.pop("name", None)
        with torch.no_grad():
            getattr(torch.ops.thalweg, self.name)(**self._as_tensors(named))

    def _as_tensors(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Numbers and lists as tensors, for an operator that takes nothing else."""
        first = next(given[name] for name in self.arguments if name in self.resources)
        tensors: dict[str, Any] = {}
        for name, value in given.items():
            if name in self.switches or isinstance(value, torch.Tensor):
                tensors[name] = value
            elif name in self.alike:
                tensors[name] = torch.tensor(
                    value, dtype=first.dtype, device=first.device
                )
            elif name == "indices":
                tensors[name] = torch.tensor(value, device=first.device)
            elif isinstance(value, (int, float)):
                # Of a number that a compiled function is passed, torch.tensor would
                # make a constant, and each other number would be compiled again.
                tensors[name] = (
                    torch.ones((), dtype=torch.float64, device="cpu") * value
                )
            else:
                tensors[name] = torch.tensor(value, dtype=torch.float64, device="cpu")
        return tensors
