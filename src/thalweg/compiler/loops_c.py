"""The innermost C functions of a kernel: statements over elements, rows and chunks.

Reductions have one order whatever the number of threads and the vector width: the
terms of a chunk are spread over 256 float64 lanes, the lanes are folded in halves,
the chunks are added in order. A short chunk leaves lanes out that would add nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import indent

from torch import fx

from thalweg.compiler.emit_c import Statements
from thalweg.compiler.graph import (
    Space,
    expect_reduction,
    operands_of,
    reduction_of,
)
from thalweg.compiler.op_table import Reduction

__all__ = ["block", "chunk_function", "elements_function", "function", "loop"]


def block(lines: Sequence[str]) -> str:
    """Statements, indented once."""
    return indent("\n".join(lines), "    ")


def function(head: str, lines: Sequence[str]) -> str:
    """A function definition."""
    return f"{head}\n{{\n{block(lines)}\n}}"


def loop(head: str, lines: Sequence[str]) -> list[str]:
    """A for loop."""
    return [f"for ({head}) {{", block(lines), "}"]


def elements_function(
    statements: Statements,
    name: str,
    *,
    is_summed: bool,
    has_turns: bool = False,
    is_inlined: bool = False,
) -> str:
    """The function that applies the rule to consecutive elements or rows.

    Args:
        statements: The rule's statements.
        name: Its name.
        is_summed: Whether the gradient is a sum in the compute type.
        has_turns: Whether it is called for several gradients of the same elements.
        is_inlined: Whether its callers contain it, so that a constant length is one.

    Returns:
        A static function of a length, the pointers and a row of the scalar table; of
        the global index of the first element, too, if that is needed to round.
    """
    parameters, keys = _parameters(statements, is_summed=is_summed), list[str]()
    if statements.program.rounding:
        parameters += ",\n    int64_t origin" + ", int64_t turn" * has_turns
        keys = statements.rounding_keys(has_turns=has_turns)
    write = _by_row if statements.program.uses_rows else _flat
    lines = [*keys, *write(statements, is_summed=is_summed)]
    kind = "static THALWEG_INLINE" if is_inlined else "static"
    return function(f"{kind} void {name}({parameters})", lines)


def chunk_function(statements: Statements, name: str, totals: Sequence[fx.Node]) -> str:
    """The function that folds at most one chunk of whole-variable reductions.

    Args:
        statements: The rule's statements.
        name: Its name.
        totals: The reductions of one pass.

    Returns:
        A static function that writes one partial result for each reduction.
    """
    head = f"static void {name}({_parameters(statements)}, double *restrict partials)"
    terms = [operands_of(node)[0] for node in totals]
    needed = statements.program.needed(terms, Space.TENSOR)
    lines = statements.scalars(needed, terms)
    lines += _lanes(statements, totals, start="0", stop="length", is_summed=False)
    for position, node in enumerate(totals):
        name = statements.value(node)
        lines.append(f"partials[{position}] = {_fold(expect_reduction(node), name)};")
    return function(head, lines)


def _parameters(statements: Statements, *, is_summed: bool = False) -> str:
    num_outputs = len(statements.program.outputs)
    parts = ["int64_t length"]
    for position, pointer in enumerate(statements.tensors):
        kind = statements.storage_type(position, is_summed=is_summed)
        constant = "" if position < num_outputs else "const "
        parts.append(f"{constant}{kind} *restrict {pointer}")
    return ",\n    ".join([*parts, "const double *restrict row"])


def _body(statements: Statements, *, is_summed: bool) -> list[str]:
    """Load, compute and store element i."""
    program = statements.program
    nodes = program.needed(program.outputs, Space.TENSOR)
    return [
        *statements.loads(nodes, "i", is_summed=is_summed),
        *statements.calls(nodes),
        *statements.stores(Space.TENSOR, "i"),
    ]


def _flat(statements: Statements, *, is_summed: bool) -> list[str]:
    program = statements.program
    nodes = program.needed(program.outputs, Space.TENSOR)
    return [
        *statements.scalars(nodes, program.outputs),
        *loop("int64_t i = 0; i < length; ++i", _body(statements, is_summed=is_summed)),
    ]


def _by_row(statements: Statements, *, is_summed: bool) -> list[str]:
    """Row by row: the row values in order, then the loop that writes."""
    program = statements.program
    rows = program.needed_rows()
    terms = [operands_of(node)[0] for node in rows if reduction_of(node)]
    nodes = program.needed([*program.outputs, *terms], Space.TENSOR)
    body = statements.loads(rows, "0", is_summed=is_summed)
    for node in rows:
        if reduction_of(node):
            body += _row_value(statements, node, is_summed=is_summed)
        else:
            body += statements.calls([node])
    body += loop(
        "int64_t i = 0; i < width; ++i", _body(statements, is_summed=is_summed)
    )
    body += statements.stores(Space.ROW, "0")
    for pointer, layout in zip(statements.tensors, program.trace.layouts, strict=True):
        if layout != "scalar":
            body.append(f"{pointer} += {'1' if layout == 'row' else 'width'};")
    if program.rounding:
        body.append("origin += width;")
    return [
        f"const int64_t width = (int64_t)row[{statements.row_length_column}];",
        *statements.scalars([*rows, *nodes], [*program.outputs, *terms]),
        *loop("int64_t done = 0; done < length; done += width", body),
    ]


def _row_value(statements: Statements, node: fx.Node, *, is_summed: bool) -> list[str]:
    """One reduction over the current row."""
    reduction, name = expect_reduction(node), statements.value(node)
    total, kind = f"{name}_total", statements.compute_type
    finished = {
        "": total,
        "mean": f"{total} / (double)width",
        "sqrt": f"sqrt({total})",
    }[reduction.finish]
    chunk = _lanes(statements, [node], start="chunk", stop="width", is_summed=is_summed)
    return [
        f"double {total} = {_start(reduction)};",
        *loop(
            "int64_t chunk = 0; chunk < width; chunk += THALWEG_CHUNK",
            [*chunk, _join(reduction, total, _fold(reduction, name))],
        ),
        f"const {kind} {name} = ({kind})({finished});",
    ]


def _lanes(
    statements: Statements,
    nodes: Sequence[fx.Node],
    *,
    start: str,
    stop: str,
    is_summed: bool,
) -> list[str]:
    """Spread the terms of one chunk over the lanes of each reduction."""
    terms = [operands_of(node)[0] for node in nodes]
    needed = statements.program.needed(terms, Space.TENSOR)
    declarations: list[str] = []
    body = [
        "const int64_t i = base + lane;",
        *statements.loads(needed, "i", is_summed=is_summed),
        *statements.calls(needed),
    ]
    for node, term in zip(nodes, terms, strict=True):
        reduction, lanes = expect_reduction(node), f"{statements.value(node)}_lanes"
        declarations.append(f"double {lanes}[THALWEG_LANES];")
        declarations += loop(
            "int64_t lane = 0; lane < used; ++lane",
            [f"{lanes}[lane] = {_start(reduction)};"],
        )
        value = f"(double){statements.value(term)}"
        value = f"{value} * {value}" if reduction.squares else value
        body.append(_join(reduction, f"{lanes}[lane]", value))
    return [
        f"const int64_t stop = thalweg_smaller({start} + THALWEG_CHUNK, {stop});",
        f"const int64_t used = thalweg_used_lanes(stop - {start});",
        *declarations,
        *loop(
            f"int64_t base = {start}; base < stop; base += THALWEG_LANES",
            [
                "const int64_t count = thalweg_smaller(THALWEG_LANES, stop - base);",
                *loop("int64_t lane = 0; lane < count; ++lane", body),
            ],
        ),
    ]


def _start(reduction: Reduction) -> str:
    return "-__builtin_inf()" if reduction.is_maximum else "0.0"


def _join(reduction: Reduction, place: str, value: str) -> str:
    if reduction.is_maximum:
        return f"{place} = thalweg_maximum({place}, {value});"
    return f"{place} += {value};"


def _fold(reduction: Reduction, name: str) -> str:
    kind = "maximum" if reduction.is_maximum else "sum"
    return f"thalweg_fold_{kind}({name}_lanes, used)"
