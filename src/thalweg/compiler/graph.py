"""What the nodes of a traced rule carry, and how to read it with types.

The graph is a `torch.fx.Graph` whose calls have an `Op` or a `Reduction` as target.
Each node says in `meta` in which *space* it lives: a scalar is one float64 number, a
row has one number for each group of trailing axes, a tensor one for each element.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

from torch import fx

from thalweg.compiler.op_table import Op, Reduction
from thalweg.compiler.rule import Rule

__all__ = [
    "Operand",
    "Space",
    "Trace",
    "expect_operation",
    "expect_reduction",
    "input_nodes",
    "is_made_of",
    "is_mask",
    "label_of",
    "operands_of",
    "operation_of",
    "output_operands",
    "reduction_of",
    "set_labels",
    "set_meta",
    "space_of",
    "source_line",
]

Operand = fx.Node | float
"""A value of the graph or a literal number."""


class Space(IntEnum):
    """How many numbers a value has; an operation lives in its largest operand's."""

    SCALAR = 0
    ROW = 1
    TENSOR = 2


@dataclass(frozen=True, eq=False)
class Trace:
    """A rule as a graph.

    Attributes:
        rule: Where it came from.
        graph: Placeholders for tensors and scalars, operations, one output.
        row_axes: Number of trailing axes its row reductions run over; 0 without.
        layouts: For each tensor of the rule, "like", "row" or "scalar".
    """

    rule: Rule
    graph: fx.Graph
    row_axes: int
    layouts: tuple[str, ...]


def set_meta(
    node: fx.Node, space: Space, *, is_mask: bool = False, line: str = ""
) -> None:
    """Write what the accessors below read."""
    node.meta["space"] = space
    node.meta["is_mask"] = is_mask
    node.meta["line"] = line


def space_of(operand: Operand) -> Space:
    """The space of a value; a literal is a scalar."""
    if isinstance(operand, fx.Node):
        return cast(Space, operand.meta["space"])
    return Space.SCALAR


def is_mask(operand: Operand) -> bool:
    """Whether a value is a truth value."""
    if isinstance(operand, fx.Node):
        return cast(bool, operand.meta["is_mask"])
    return isinstance(operand, bool)


def is_made_of(arguments: Iterable[str], node: fx.Node) -> bool:
    """Whether a value is computed of these arguments of the rule and literals alone."""
    known, seen, waiting = set(arguments), {node}, [node]
    while waiting:
        one = waiting.pop()
        if one.op == "placeholder" and str(one.target) not in known:
            return False
        new = set(one.all_input_nodes) - seen
        seen |= new
        waiting.extend(new)
    return True


def label_of(node: fx.Node) -> str:
    """What texts and columns call a node: as the rule does, where it has a name."""
    label = str(node.target) if node.op == "placeholder" else node.meta.get("label")
    return label or node.name


def set_labels(graph: fx.Graph, names: Mapping[fx.Node, str]) -> None:
    """Give nodes the names the rule has for them, where those are free."""
    taken = {node.name for node in graph.nodes} | set(input_nodes(graph))
    for node, name in names.items():
        if name not in taken:
            taken.add(name)
            node.meta["label"] = name


def source_line(node: fx.Node) -> str:
    """The line of the rule that made the node."""
    return cast(str, node.meta.get("line", ""))


def operands_of(node: fx.Node) -> tuple[Operand, ...]:
    """The operands of a call."""
    return cast("tuple[Operand, ...]", node.args)


def operation_of(node: fx.Node) -> Op | None:
    """The elementwise operation of a node, if it is one."""
    return node.target if isinstance(node.target, Op) else None


def reduction_of(node: fx.Node) -> Reduction | None:
    """The reduction of a node, if it is one."""
    return node.target if isinstance(node.target, Reduction) else None


def expect_reduction(node: fx.Node) -> Reduction:
    """The reduction of a node that is known to be one."""
    if not isinstance(node.target, Reduction):
        raise TypeError(f"{node.name} is not a reduction")
    return node.target


def expect_operation(node: fx.Node) -> Op:
    """The elementwise operation of a node that is known to be one."""
    if not isinstance(node.target, Op):
        raise TypeError(f"{node.name} is not an elementwise operation")
    return node.target


def input_nodes(graph: fx.Graph) -> dict[str, fx.Node]:
    """The placeholders by name of the rule's argument."""
    return {str(n.target): n for n in graph.nodes if n.op == "placeholder"}


def output_operands(graph: fx.Graph) -> tuple[Operand, ...]:
    """What is stored, in the order of the rule's outputs."""
    node = next(n for n in reversed(graph.nodes) if n.op == "output")
    return tuple(cast("Iterable[Operand]", node.args[0]))
