"""What a kernel does, before it is text: columns, derived scalars and passes.

The scalar table has one row for each setting. Its columns are, in order, *host*
(written before a launch), *device* (written by an earlier kernel, or by an earlier
pass of this one) and *derived* (computed here from the others, in float64). A
reduction over the whole variable cuts the graph: each pass but the last one only
reads, and fills device columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from torch import fx

from thalweg.compiler.graph import (
    Operand,
    Space,
    Trace,
    input_nodes,
    label_of,
    operands_of,
    output_operands,
    reduction_of,
    space_of,
)
from thalweg.compiler.passes import NUM_ELEMENTS
from thalweg.compiler.rounding import FIRST_INDEX, ROUNDING_KEY
from thalweg.errors import TraceError, message

__all__ = [
    "APPLY",
    "ROW_LENGTH",
    "Columns",
    "Program",
    "compute_dtype",
    "lower",
    "with_rounding",
]

APPLY = "apply"
"""Device column that is 0 where a step is to change nothing."""
ROW_LENGTH = "row_length"
"""Host column with the number of elements of a row, for reductions over rows."""


@dataclass(frozen=True)
class Columns:
    """The columns of a kernel's scalar table.

    Attributes:
        host: The rule's scalars, then what the kernel needs to know of the shape,
            then what stochastic rounding does.
        device: `apply`, then scalars that earlier kernels write, then scalar slots,
            then totals of whole-variable reductions.
        derived: Computed by the kernel itself at each launch.
    """

    host: tuple[str, ...]
    device: tuple[str, ...]
    derived: tuple[str, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All columns in order."""
        return (*self.host, *self.device, *self.derived)

    @cached_property
    def index(self) -> dict[str, int]:
        """The position of each column."""
        return {name: position for position, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, eq=False)
class Program:
    """A rule, ready to be interpreted or emitted.

    Attributes:
        trace: The optimized graph.
        columns: Layout of the scalar table.
        stages: For each node, how many passes must have run before it is known.
        outputs: For each output of the rule what is stored, None where nothing is.
        num_passes: Passes over memory; the last one writes.
        rounding: Names of the outputs that are rounded stochastically.
    """

    trace: Trace
    columns: Columns
    stages: dict[fx.Node, int]
    outputs: tuple[Operand | None, ...]
    num_passes: int
    rounding: tuple[str, ...] = ()

    @cached_property
    def inputs(self) -> dict[str, fx.Node]:
        """The placeholders by name."""
        return input_nodes(self.trace.graph)

    @cached_property
    def scalar_nodes(self) -> tuple[fx.Node, ...]:
        """Scalar operations in order of evaluation."""
        return tuple(n for n in self._calls if _is_scalar(n) and not reduction_of(n))

    @cached_property
    def totals(self) -> tuple[fx.Node, ...]:
        """Whole-variable reductions."""
        return tuple(n for n in self._calls if _is_scalar(n) and reduction_of(n))

    @cached_property
    def _calls(self) -> tuple[fx.Node, ...]:
        return tuple(n for n in self.trace.graph.nodes if n.op == "call_function")

    def totals_of(self, number: int) -> tuple[fx.Node, ...]:
        """The whole-variable reductions that pass `number` computes."""
        return tuple(n for n in self.totals if self.stages[n] == number + 1)

    def needed(self, sinks: Iterable[Operand | None], space: Space) -> list[fx.Node]:
        """The nodes of a space that sinks depend on within it, in order.

        Args:
            sinks: Values that are wanted.
            space: Values of smaller spaces are taken as known.

        Returns:
            Placeholders and calls of that space.
        """
        wanted: set[fx.Node] = set()
        waiting = [s for s in sinks if isinstance(s, fx.Node)]
        while waiting:
            node = waiting.pop()
            if space_of(node) != space or node in wanted:
                continue
            wanted.add(node)
            if reduction_of(node) is None:
                waiting += [o for o in operands_of(node) if isinstance(o, fx.Node)]
        return [n for n in self.trace.graph.nodes if n in wanted]

    def needed_rows(self) -> list[fx.Node]:
        """The row values that the outputs depend on, in order."""
        seen: set[fx.Node] = set()
        waiting = [s for s in self.outputs if isinstance(s, fx.Node)]
        while waiting:
            node = waiting.pop()
            if space_of(node) != Space.SCALAR and node not in seen:
                seen.add(node)
                waiting += [o for o in operands_of(node) if isinstance(o, fx.Node)]
        rows = {node for node in seen if space_of(node) == Space.ROW}
        return [n for n in self.trace.graph.nodes if n in rows]

    @property
    def uses_rows(self) -> bool:
        """Whether a kernel must know where a row ends."""
        return ROW_LENGTH in self.columns.index

    @cached_property
    def rounded(self) -> tuple[int, ...]:
        """Positions of the outputs that are rounded stochastically."""
        stored = zip(self.trace.rule.outputs, self.outputs, strict=True)
        return tuple(
            position
            for position, (name, value) in enumerate(stored)
            if name in self.rounding and value is not None
        )

    def column_of(self, node: fx.Node) -> int:
        """The column a scalar is kept in."""
        return self.columns.index[label_of(node)]


def compute_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """float64 if one of the tensors has it, else float32.

    Example:
        >>> compute_dtype([torch.bfloat16, torch.float32])
        torch.float32
    """
    return torch.float64 if torch.float64 in set(dtypes) else torch.float32


def lower(trace: Trace, device_scalars: Sequence[str] = ()) -> Program:
    """Split an optimized graph into columns and passes.

    Args:
        trace: The graph after `passes.optimize`.
        device_scalars: Scalars of the rule that an earlier kernel writes.

    Returns:
        The program.

    Raises:
        TraceError: If a reduction over the variable depends on one over a row.
    """
    graph, rule = trace.graph, trace.rule
    stages = _stages(graph)
    totals = [n for n in stages if _is_scalar(n) and reduction_of(n)]
    columns = _columns(trace, device_scalars, [label_of(n) for n in totals])
    inputs = input_nodes(graph)
    outputs = tuple(
        None if value is inputs[name] else value
        for name, value in zip(rule.outputs, output_operands(graph), strict=True)
    )
    last = max((stages[n] for n in totals), default=0)
    program = Program(trace, columns, stages, outputs, last + 1)
    for node in totals:
        _check_total(program, node)
    return program


@cache
def with_rounding(program: Program, names: tuple[str, ...]) -> Program:
    """The same program where these outputs are rounded stochastically."""
    if not names:
        return program
    host = (*program.columns.host, ROUNDING_KEY, FIRST_INDEX)
    columns = replace(program.columns, host=host)
    return replace(program, columns=columns, rounding=names)


def _check_total(program: Program, node: fx.Node) -> None:
    for inner in program.needed(operands_of(node), Space.TENSOR):
        if any(space_of(operand) == Space.ROW for operand in operands_of(inner)):
            raise TraceError(
                message(
                    f"rule {program.trace.rule.name}",
                    "reductions over the variable that need no other one",
                    f"{reduction_of(node)} of something reduced over rows",
                    "Reduce over the whole variable, or over rows, not one after "
                    "the other.",
                )
            )


def _is_scalar(node: fx.Node) -> bool:
    return space_of(node) == Space.SCALAR


def _stages(graph: fx.Graph) -> dict[fx.Node, int]:
    stages: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "output":
            continue
        before = [stages[o] for o in operands_of(node) if isinstance(o, fx.Node)]
        is_total = _is_scalar(node) and reduction_of(node) is not None
        stages[node] = max(before, default=0) + is_total
    return stages


def _columns(trace: Trace, device_scalars: Sequence[str], totals: list[str]) -> Columns:
    rule, graph = trace.rule, trace.graph
    host = [name for name in rule.scalars if name not in device_scalars]
    if trace.row_axes or "row" in trace.layouts:
        host.append(ROW_LENGTH)
    if NUM_ELEMENTS in input_nodes(graph):
        host.append(NUM_ELEMENTS)
    cells = [
        name
        for name, layout in zip(rule.tensors, trace.layouts, strict=True)
        if layout == "scalar"
    ]
    derived = [label_of(n) for n in graph.nodes if _is_derived_column(n)]
    return Columns(
        tuple(host), (APPLY, *device_scalars, *cells, *totals), tuple(derived)
    )


def _is_derived_column(node: fx.Node) -> bool:
    if node.op != "call_function" or not _is_scalar(node) or reduction_of(node):
        return False
    # A scalar that only feeds other scalars needs no cell.
    return any(user.op == "output" or not _is_scalar(user) for user in node.users)
