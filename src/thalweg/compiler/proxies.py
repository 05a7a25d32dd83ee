"""What a rule sees while it is traced: values that refuse what has no place in it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from thalweg.compiler.graph import Space, space_of
from thalweg.compiler.spelling import MATH_FUNCTIONS, MATH_SPELLINGS, SPELLINGS

__all__ = ["RuleProxy", "replaced_math"]

_LOCK = threading.Lock()
_OWN_ATTRIBUTES = ("node", "tracer")


class RuleProxy(fx.Proxy):
    """A traced value.

    Operators, torch functions and methods go to the tracer's `create_proxy`; what
    would turn the value into a Python number or change it is refused here.
    """

    tracer: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.tracer.attribute(self, name)

    @property
    def shape(self) -> torch.Size:
        """The global shape of the variable."""
        return self.tracer.shape_of(self)

    @property
    def ndim(self) -> int:
        """The number of axes of the variable."""
        return self.tracer.ndim_of(self)

    def dim(self) -> int:
        """The number of axes of the variable."""
        return self.tracer.ndim_of(self)

    def size(self, dim: int | None = None) -> Any:
        """The global shape of the variable, or one axis of it."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """The number of elements of the whole variable."""
        return math.prod(self.shape)

    def __iter__(self) -> Iterator[Any]:
        raise self.tracer.refusal("elementwise formulas", "a loop over a value", "")

    def __len__(self) -> int:
        raise self.tracer.refusal(
            "elementwise formulas",
            "a sequence made of a value",
            "Use the value itself, or its .shape.",
        )

    def __setattr__(self, name: str, value: object) -> None:
        if name in _OWN_ATTRIBUTES:
            return super().__setattr__(name, value)
        raise self.tracer.in_place_refusal(f"an assignment to .{name}")

    def __setitem__(self, index: object, value: object) -> None:
        raise self.tracer.in_place_refusal("an assignment to an element")

    def __float__(self) -> float:
        raise self.tracer.conversion_refusal("float()")

    def __int__(self) -> int:
        raise self.tracer.conversion_refusal("int()")

    def __index__(self) -> int:
        raise self.tracer.conversion_refusal("an index")

    def __round__(self, ndigits: int | None = None) -> int:
        raise self.tracer.conversion_refusal("round()")


def _in_place(symbol: str, name: str) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        # `lr *= 2` gives the name another number; `m += g` would change a tensor.
        if space_of(self.node) == Space.SCALAR:
            return SPELLINGS[name](self, other)
        raise self.tracer.in_place_refusal(symbol)

    return method


_IN_PLACE = {"add": "+=", "sub": "-=", "mul": "*=", "truediv": "/=", "pow": "**="}
for _name, _symbol in _IN_PLACE.items():
    setattr(RuleProxy, f"__i{_name}__", _in_place(_symbol, _name))


@contextmanager
def replaced_math(function: Callable[..., Any]) -> Generator[None]:
    """Let math.* take traced scalars while one rule is traced.

    The replacements fall through to the originals for numbers, so other threads see
    no difference.

    Args:
        function: The rule's function; names it has imported from `math` work too.
    """
    originals = {name: getattr(math, name) for name in MATH_FUNCTIONS}
    wrapped = {name: _on_scalars(name, f) for name, f in originals.items()}
    own: dict[str, Any] = getattr(function, "__globals__", {})
    with _LOCK:
        imported = {
            name: original.__name__
            for name, value in own.items()
            for original in originals.values()
            if value is original
        }
        try:
            for name, replacement in wrapped.items():
                setattr(math, name, replacement)
            own.update({name: wrapped[target] for name, target in imported.items()})
            yield
        finally:
            for name, original in originals.items():
                setattr(math, name, original)
            own.update({name: originals[target] for name, target in imported.items()})


def _on_scalars(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*operands: Any) -> Any:
        proxies = [o for o in operands if isinstance(o, RuleProxy)]
        if not proxies:
            return original(*operands)
        if any(space_of(proxy.node) != Space.SCALAR for proxy in proxies):
            raise proxies[0].tracer.refusal(
                "a scalar", f"a tensor for math.{name}", f"Write torch.{name}."
            )
        return proxies[0].tracer.spelled(name, MATH_SPELLINGS[name], operands, {})

    return call
