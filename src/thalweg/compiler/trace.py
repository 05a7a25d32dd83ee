"""Run an update rule on proxies and get its graph.

One proxy stands for each tensor and each scalar; flags are Python bools. Each call is
reduced to a row of the op table as it is made, so that a refusal names the user's own
line. What depends on scalars only is float64; what meets a tensor has its shape.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from thalweg.compiler.advice import advice_for
from thalweg.compiler.arguments import NoMeaningError, call
from thalweg.compiler.free_numbers import free_numbers
from thalweg.compiler.graph import (
    Operand,
    Space,
    Trace,
    input_nodes,
    is_mask,
    set_labels,
    set_meta,
    source_line,
    space_of,
)
from thalweg.compiler.op_table import OPS, REDUCTIONS, Op
from thalweg.compiler.proxies import RuleProxy, replaced_math
from thalweg.compiler.purity import first_difference, is_users
from thalweg.compiler.refusals import (
    Place,
    current_place,
    outside_refusal,
    place_of_error,
    refusal,
    text_of,
    unknown_math_call,
    value_refusal,
    what_was_raised,
)
from thalweg.compiler.results import results_in_order, results_refusal
from thalweg.compiler.rule import Rule
from thalweg.compiler.spelling import METHODS, SPELLINGS
from thalweg.errors import TraceError, describe, message

__all__ = ["ShapeNeededError", "trace"]

_LAYOUT_SPACES = {"like": Space.TENSOR, "row": Space.ROW, "scalar": Space.SCALAR}
_ASSIGNMENT = re.compile(r"(\w+)\s*=[^=]")


class ShapeNeededError(TraceError):
    """The rule reads the shape of its variable, and none was given."""


def trace(
    rule: Rule,
    flags: Mapping[str, bool],
    layouts: Sequence[str] = (),
    shape: Sequence[int | None] | None = None,
) -> Trace:
    """Trace a rule.

    Args:
        rule: The rule.
        flags: A bool for each of its flags.
        layouts: For each slot, "like" (the variable's shape), "row" (one number for
            each row) or "scalar" (one number); all "like" by default.
        shape: Global shape of the variable, for rules that read it; all None for
            those that only read how many axes it has.

    Returns:
        The graph as the rule is written, before any pass.

    Raises:
        TraceError: If the rule does what cannot be compiled: an unknown operation, an
            in-place one, a branch on a value, a number or bool from outside its
            arguments, another formula at a second call, outputs that do not fit its
            arguments. The message names the rule, the line, the operation and what to
            write instead.
        ShapeNeededError: If the rule reads what `shape` does not tell.

    Example:
        >>> def descent(var, delta, *, alpha):
        ...     return var - alpha * delta
        >>> [n.name for n in trace(Rule.of(descent), {}).graph.nodes][-3:]
        ['mul', 'sub', 'output']
    """
    for outside in free_numbers(rule.function):
        raise outside_refusal(rule.name, outside)
    slots = tuple(layouts) or ("like",) * len(rule.slots)
    made = _RuleTracer(rule, shape).run(flags, ("like", *slots, "like"))
    if is_users(made.graph):
        again = _RuleTracer(rule, shape).run(flags, made.layouts)
        changed = first_difference(made.graph, again.graph)
        if changed is not None:
            raise refusal(
                rule.name,
                changed.meta.get("place"),
                "the same formula at every call",
                "another one at a second call",
                "A kernel is made of one call: make what varies, such as a time, a "
                "random number or a count, a scalar argument.",
            )
    return made


class _RuleTracer(fx.Tracer):
    """Builds the graph of one rule."""

    def __init__(self, rule: Rule, shape: Sequence[int | None] | None) -> None:
        super().__init__()
        self.graph = fx.Graph(tracer_cls=type(self))
        self.rule = rule
        self.row_axes = 0
        self._last_of_line: dict[Place, fx.Node] = {}
        self._shape = None if shape is None else tuple(shape)

    def run(self, flags: Mapping[str, bool], layouts: tuple[str, ...]) -> Trace:
        """Call the function and collect what it returns."""
        spaces = [_LAYOUT_SPACES[layout] for layout in layouts]
        tensors = [
            self._argument(name, space)
            for name, space in zip(self.rule.tensors, spaces, strict=True)
        ]
        scalars = {n: self._argument(n, Space.SCALAR) for n in self.rule.scalars}
        with replaced_math(self.rule.function):
            returned = self._call(tensors, {**scalars, **flags})
        outputs = self._outputs(returned, spaces)
        set_meta(self.graph.output(tuple(outputs)), Space.TENSOR)
        set_labels(self.graph, self._assigned_names())
        return Trace(self.rule, self.graph, self.row_axes, layouts)

    def _assigned_names(self) -> dict[fx.Node, str]:
        """The value a line such as ``m_new = …`` computes last, and its name."""
        assignments = {
            node: _ASSIGNMENT.match(source_line(node))
            for node in self._last_of_line.values()
        }
        return {node: match[1] for node, match in assignments.items() if match}

    def _argument(self, name: str, space: Space) -> RuleProxy:
        node = self.graph.placeholder(name)
        set_meta(node, space)
        return RuleProxy(node, self)

    def _call(self, tensors: list[Any], keywords: dict[str, Any]) -> Any:
        try:
            return self.rule.function(*tensors, **keywords)
        except TraceError:
            raise
        except Exception as error:
            raise value_refusal(
                self.rule.name,
                place_of_error(error),
                "a pure function of torch operations",
                *what_was_raised(error),
            ) from error

    def _outputs(self, returned: Any, spaces: list[Space]) -> list[Operand]:
        inputs = input_nodes(self.graph)
        old = {name: RuleProxy(inputs[name], self) for name in self.rule.slots}
        values = results_in_order(self.rule, returned, old)
        nodes = [self._number(self._operand(value)) for value in values]
        outputs = zip(self.rule.outputs, nodes, spaces, values, strict=False)
        for name, node, space, value in outputs:
            if space_of(node) > space:
                raise results_refusal(
                    self.rule,
                    f"a {space.name.lower()} for {name!r}",
                    f"a {space_of(node).name.lower()}",
                    "Reduce it, or declare the slot with shape='like'.",
                    value,
                )
        return nodes

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *rest: Any,
        **options: Any,
    ) -> Any:
        """Reduce a call to operations of the table (torch.fx calls this)."""
        is_method = kind == "call_method"
        name = target if is_method else getattr(target, "__name__", str(target))
        meaning = (METHODS if is_method else SPELLINGS).get(name)
        if meaning is None and name.endswith("_") and not name.startswith("__"):
            raise self.in_place_refusal(f"{name}()")
        if meaning is None:
            raise self._unknown(name)
        return self.spelled(name, meaning, args, kwargs)

    def spelled(
        self,
        name: str,
        meaning: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """What a spelling makes of the arguments of a call."""
        try:
            return call(name, meaning, args, kwargs)
        except NoMeaningError as error:
            raise self._value_refusal(*error.parts) from None

    def emit(self, op: Op, operands: tuple[Any, ...]) -> RuleProxy:
        """Add one row of the op table."""
        given = [self._operand(operand) for operand in operands]
        nodes = [
            self._mask(operand) if wants_mask else self._number(operand)
            for operand, wants_mask in zip(given, op.masks, strict=True)
        ]
        space = max(map(space_of, nodes))
        return RuleProxy(self._add(op, nodes, space, op.gives_mask), self)

    def fill(self, like: Any, value: Any) -> RuleProxy:
        """A value repeated over the space of another one."""
        operand, space = self._operand(value), space_of(like.node)
        return RuleProxy(self._add(OPS["fill"], [operand], space, False), self)

    def reduce(self, name: str, x: Any, dim: Any, keepdim: bool) -> RuleProxy:
        """Add a reduction: over the whole variable, or over trailing axes."""
        node = self._number(self._operand(x))
        if space_of(node) != Space.TENSOR:
            raise self.refusal(
                f"a tensor for {name!r}",
                "a scalar or what a reduction gave",
                "Reduce a tensor, once: all of it, or its rows with dim=-1.",
            )
        space = Space.SCALAR
        if dim is not None:
            space = Space.ROW
            self._note_row(self._trailing(dim, name), keepdim)
        return RuleProxy(self._add(REDUCTIONS[name], [node], space, False), self)

    def _note_row(self, axes: int, keepdim: bool) -> None:
        if not keepdim:
            raise self.refusal(
                "keepdim=True with dim",
                "keepdim=False",
                "Pass it: what is known of rows keeps the number of axes.",
            )
        if self.row_axes not in (0, axes):
            raise self.refusal(
                f"rows of {self.row_axes} axes, as before",
                f"rows of {axes} axes",
                "A rule has one kind of row.",
            )
        self.row_axes = axes

    def _trailing(self, dim: Any, name: str) -> int:
        given: list[int] = [dim] if isinstance(dim, int) else list(dim)
        dims = [d if d < 0 else d - len(self._known_sizes()) for d in given]
        if not dims or sorted(dims) != list(range(-len(dims), 0)):
            raise self.refusal(
                "the trailing axes, such as dim=-1 or dim=(-2, -1)",
                f"dim={dim}",
                f"Reduce with {name!r} over other axes before the rule, in a gradient "
                "transformer.",
            )
        return len(dims)

    def _add(
        self, target: Any, nodes: list[Operand], space: Space, mask: bool
    ) -> fx.Node:
        arguments: Any = tuple(nodes)
        node = self.graph.create_node(
            "call_function", target, arguments, {}, target.name
        )
        place = current_place()
        line = linecache.getline(*place).strip() if place else ""
        if place:
            self._last_of_line[place] = node
            node.meta["place"] = place
        set_meta(node, space, is_mask=mask, line=line)
        return node

    def _operand(self, value: Any) -> Operand:
        if isinstance(value, fx.Proxy):
            return value.node
        if isinstance(value, np.generic):
            value = cast("object", value.item())
        if isinstance(value, bool):
            return value
        if isinstance(value, (int, float)):
            return float(value)
        is_array = isinstance(value, (torch.Tensor, np.ndarray))
        raise self._value_refusal(
            "values of the rule and real numbers",
            describe(value),
            "Pass it as a slot or as a scalar."
            if is_array
            else "Compute with the rule's arguments.",
        )

    def _number(self, operand: Operand) -> Operand:
        if isinstance(operand, bool):
            return float(operand)
        if not is_mask(operand):
            return operand
        return self._add(OPS["where"], [operand, 1.0, 0.0], space_of(operand), False)

    def _mask(self, operand: Operand) -> Operand:
        if is_mask(operand):
            return operand
        return self._add(OPS["ne"], [operand, 0.0], space_of(operand), True)

    def attribute(self, proxy: RuleProxy, name: str) -> Any:
        """A method, or a refusal that names the attribute."""
        is_method = callable(getattr(torch.Tensor, name, None))
        if name not in METHODS and not is_method and not name.endswith("_"):
            raise self._unknown(name)

        def method(*args: Any, **kwargs: Any) -> Any:
            return self.create_proxy("call_method", name, (proxy, *args), kwargs)

        return method

    def shape_of(self, proxy: RuleProxy) -> torch.Size:
        """The declared shape; a scalar has none."""
        sizes = self._sizes_of(proxy)
        if None in sizes:
            raise self._shape_needed()
        return torch.Size([size for size in sizes if size is not None])

    def ndim_of(self, proxy: RuleProxy) -> int:
        """The declared number of axes; a scalar has none."""
        return len(self._sizes_of(proxy))

    def _sizes_of(self, proxy: RuleProxy) -> tuple[int | None, ...]:
        if space_of(proxy.node) == Space.SCALAR:
            return ()
        if space_of(proxy.node) == Space.ROW:
            raise self.refusal("a tensor", "the shape of a row", "Use var.shape.")
        return self._known_sizes()

    def _known_sizes(self) -> tuple[int | None, ...]:
        if self._shape is None:
            raise self._shape_needed()
        return self._shape

    def _shape_needed(self) -> ShapeNeededError:
        action = "Give `shape` to the kernel key: the rule reads it."
        where = f"rule {self.rule.name}"
        return ShapeNeededError(message(where, "the variable's shape", "none", action))

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Refuse a branch on a value (torch.fx calls this)."""
        raise self._value_refusal(
            "no branch on a value",
            f"a branch on {text_of(obj.node)}",
            "Write torch.where(condition, a, b), torch.maximum or torch.minimum, or "
            "make it a flag.",
        )

    def refusal(self, expected: str, got: str, action: str) -> TraceError:
        """An error that names the rule and the user's line."""
        return refusal(self.rule.name, current_place(), expected, got, action)

    def _value_refusal(self, expected: str, got: str, action: str) -> TraceError:
        """The same, naming NumPy where the line calls it."""
        return value_refusal(self.rule.name, current_place(), expected, got, action)

    def in_place_refusal(self, what: str) -> TraceError:
        """For a change of an argument."""
        action = "Give the new value a new name, as in m_new = m + grad."
        return self.refusal("a pure function", f"{what}, a change in place", action)

    def conversion_refusal(self, what: str) -> TraceError:
        """For an attempt to make a Python number of a traced value."""
        unknown = unknown_math_call(current_place())
        action = (
            "Use operators, torch.* or math.* (on scalars, written as `math.sqrt`)."
        )
        if unknown:
            what = f"math.{unknown}"
            action = advice_for(what, SPELLINGS)
        return self._value_refusal(
            "values that stay in the kernel", f"{what} of one", action
        )

    def _unknown(self, name: str) -> TraceError:
        expected = "an operation that a rule may use"
        return self.refusal(expected, repr(name), advice_for(name, SPELLINGS))
