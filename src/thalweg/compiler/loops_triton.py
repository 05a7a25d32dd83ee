"""The innermost Triton functions of a kernel: statements over elements, rows, chunks.

A function is written for one mode. In "dense" the gradient lies beside the variable;
in "sum" and "sequence" `sources[first:last]` are the rows of the gradient that belong
to the touched row. Sums have the order of `reductions`: 256 float64 lanes, chunks of
16,384 elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill, indent

from torch import fx

from thalweg.compiler.graph import (
    Space,
    expect_reduction,
    operands_of,
    reduction_of,
    space_of,
)
from thalweg.compiler.key import Mode
from thalweg.compiler.op_table import Reduction
from thalweg.compiler.reductions import CHUNK, LANES
from thalweg.compiler.statements_triton import KINDS, TritonStatements, with_constants

__all__ = [
    "block",
    "call",
    "chunk_function",
    "elements_function",
    "fold",
    "function",
    "join",
    "start_value",
]

_ROWS = ("sources", "first", "last")


def block(lines: Sequence[str]) -> str:
    """Statements, indented once."""
    return indent("\n".join(lines), "    ")


def call(name: str, arguments: Sequence[str]) -> str:
    """A name with arguments or parameters, on several lines if they are many.

    Example:
        >>> call("rule_range", ["row", "length"])
        'rule_range(row, length)'
    """
    text = ", ".join(arguments)
    if len(name) + len(text) < 72:
        return f"{name}({text})"
    # Spaces inside an argument, as in "BLOCK: tl.constexpr", are no place to break.
    joined = ", ".join(argument.replace(" ", "\0") for argument in arguments)
    lines = fill(joined, 72, break_long_words=False, break_on_hyphens=False)
    return f"{name}(\n{indent(lines, '    ')}\n)".replace("\0", " ")


def function(head: str, lines: Sequence[str], unspecialized: Sequence[str] = ()) -> str:
    """A function definition.

    Args:
        head: Name and parameters.
        lines: Its statements.
        unspecialized: Parameters of a kernel whose values, sizes and alignment are
            to lead to no other compilation.

    Returns:
        Text.
    """
    names = ", ".join(f'"{name}"' for name in unspecialized)
    kind = f"triton.jit(do_not_specialize=[{names}])" if names else "triton.jit"
    return f"@{kind}\ndef {head}:\n{block(lines)}\n"


def elements_function(statements: TritonStatements, name: str, mode: Mode) -> str:
    """The function that applies the rule to consecutive elements, or to rows.

    Args:
        statements: The rule's statements.
        name: Its name.
        mode: How the gradient belongs to the elements.

    Returns:
        Text of a function of a row of the scalar table, a length, addresses.
    """
    places = [f"{statements.names[p]}_place" for p in statements.in_memory]
    rows = () if mode == "dense" else _ROWS
    parameters = ["row", "length", *places, *rows, *statements.origin]
    parameters += ["BLOCK: tl.constexpr", "IS_FULL: tl.constexpr"]
    write = _by_row if statements.program.uses_rows else _flat
    keys = [] if mode == "sequence" else statements.rounding_keys()
    lines = with_constants([*keys, *write(statements, mode)], statements.compute)
    return function(call(name, parameters), lines)


def chunk_function(
    statements: TritonStatements, name: str, totals: Sequence[fx.Node]
) -> str:
    """The function that folds at most one chunk of whole-variable reductions.

    Args:
        statements: The rule's statements.
        name: Its name.
        totals: The reductions of one pass.

    Returns:
        Text of a function that stores one partial result for each reduction.
    """
    terms = [operands_of(node)[0] for node in totals]
    needed = statements.program.needed(terms, Space.TENSOR)
    positions = statements.positions(needed)
    places = [f"{statements.names[p]}_place" for p in positions]
    parameters = ["row", "length", *places, "partials", "IS_FULL: tl.constexpr"]
    lines = statements.scalars(needed, terms)
    lines += _pointers(statements, positions, aligned="IS_FULL")
    lines += _lanes(statements, totals, ("0", "length"), "dense", "seen")
    for position, node in enumerate(totals):
        folded = fold(expect_reduction(node), statements.value(node))
        lines.append(f"tl.store(partials + {position}, {folded})")
    lines = with_constants(lines, statements.compute)
    return function(call(name, parameters), lines)


def _flat(statements: TritonStatements, mode: Mode) -> list[str]:
    program = statements.program
    nodes = program.needed(program.outputs, Space.TENSOR)
    lines = statements.scalars(nodes, program.outputs)
    mask = "None if IS_FULL else index < length"
    if mode != "dense":
        # A multiple of 16 in the text lets the compiler move 16 bytes under a mask.
        lines.append("length = length // 16 * 16 if IS_FULL else length")
        mask = "index < length"
    lines += _pointers(statements, statements.in_memory, aligned="IS_FULL")
    body = [
        "index = start + tl.arange(0, BLOCK)",
        f"inside = {mask}",
        *_updates(statements, nodes, mode),
    ]
    if mode == "dense":
        return [*lines, *_loop("start", ("0", "length", "BLOCK"), body)]
    return [*lines, *_shared_loop("start", "BLOCK", body)]


def _updates(
    statements: TritonStatements, nodes: Sequence[fx.Node], mode: Mode
) -> list[str]:
    """One update of the elements at `index`, or one for each source in order."""
    body = [
        *statements.loads(nodes),
        *statements.calls(nodes),
        *statements.stores(Space.TENSOR),
    ]
    if mode != "sequence":
        return [*_gradient(statements, nodes, mode), *body]
    keys = statements.rounding_keys("source - first")
    once = [*keys, *_gradient(statements, nodes, mode), *body, "tl.debug_barrier()"]
    return _loop("source", ("first", "last"), once)


def _gradient(
    statements: TritonStatements,
    nodes: Sequence[fx.Node],
    mode: Mode,
    width: str = "length",
    mask: str = "inside",
) -> list[str]:
    """Load the gradient at `index`, or add the duplicates in order of appearance."""
    if not statements.reads_gradient(nodes):
        return []
    position = statements.gradient
    name = statements.names[position]
    if mode == "dense":
        return [f"{name} = {statements.load(position, mask=mask)}"]
    place = "skip + index"
    load = f"{name} = {statements.load(position, place, mask)}"
    skip = f"skip = tl.load(sources + source) * {width}"
    if mode == "sequence":
        return [skip, load]
    more = f"{name} = {name} + {statements.load(position, place, mask)}"
    return [
        skip.replace("source)", "first)"),
        load,
        *_loop("source", ("first + 1", "last"), [skip, more]),
    ]


def _by_row(statements: TritonStatements, mode: Mode) -> list[str]:
    """Row by row: the row values in order, then the loop that writes."""
    program = statements.program
    rows = program.needed_rows()
    terms = [operands_of(node)[0] for node in rows if reduction_of(node)]
    nodes = program.needed([*program.outputs, *terms], Space.TENSOR)
    column = statements.row_length_column
    lines = [
        f"width = tl.load(row + {column}).to(tl.int64)",
        *statements.scalars([*rows, *nodes], [*program.outputs, *terms]),
    ]
    body = _row(statements, rows, mode)
    if mode == "dense":
        body = [*_pointers(statements, statements.in_memory, "done"), *body]
        return [*lines, *_shared_loop("done", "width", body)]
    lines += _pointers(statements, statements.in_memory)
    if mode == "sequence":
        keys = statements.rounding_keys("source - first")
        body = [*keys, *body, "tl.debug_barrier()"]
        body = _loop("source", ("first", "last"), body)
    return [*lines, *body]


def _row(
    statements: TritonStatements, rows: Sequence[fx.Node], mode: Mode
) -> list[str]:
    """One update of one row."""
    program = statements.program
    body = statements.loads([n for n in rows if space_of(n) == Space.ROW], "", "")
    for node in rows:
        if reduction_of(node):
            body += _row_value(statements, node, mode)
        else:
            body += statements.calls([node])
    nodes = program.needed(program.outputs, Space.TENSOR)
    origin = "origin + done" if mode == "dense" else "origin"
    body += _loop(
        "start",
        ("0", "width", "BLOCK"),
        [
            "index = start + tl.arange(0, BLOCK)",
            "inside = index < width",
            *_gradient(statements, nodes, mode, "width"),
            *statements.loads(nodes),
            *statements.calls(nodes),
            *statements.stores(Space.TENSOR, origin=origin),
        ],
    )
    stores = statements.stores(Space.ROW, "", "")
    if stores and not any(map(reduction_of, rows)):
        # Every thread has read the slot; a fold makes them wait for each other.
        stores.insert(0, "tl.debug_barrier()")
    return body + stores


def _row_value(statements: TritonStatements, node: fx.Node, mode: Mode) -> list[str]:
    """One reduction over the current row."""
    reduction, name = expect_reduction(node), statements.value(node)
    total = f"{name}_total"
    finished = {
        "": total,
        "mean": f"{total} / width.to(tl.float64)",
        "sqrt": f"tl.sqrt({total})",
    }[reduction.finish]
    folded = fold(reduction, name)
    body = [
        f"stop = tl.minimum(chunk + {CHUNK}, width)",
        *_lanes(statements, [node], ("chunk", "stop"), mode),
        f"{total} = {join(reduction, total, folded)}",
    ]
    return [
        f"{total} = {start_value(reduction)}",
        *_loop("chunk", ("0", "width", str(CHUNK)), body),
        f"{name} = ({finished}).to({KINDS[statements.compute]})",
    ]


def _lanes(
    statements: TritonStatements,
    nodes: Sequence[fx.Node],
    ends: tuple[str, str],
    mode: Mode,
    mask: str = "inside",
) -> list[str]:
    """Spread the terms of one chunk over the lanes of each reduction."""
    terms = [operands_of(node)[0] for node in nodes]
    needed = statements.program.needed(terms, Space.TENSOR)
    lines: list[str] = []
    body = [
        f"index = start + tl.arange(0, {LANES})",
        f"inside = index < {ends[1]}",
        *(["seen = None if IS_FULL else inside"] if mask == "seen" else []),
        *_gradient(statements, needed, mode, "width", mask),
        *statements.loads(needed, mask=mask),
        *statements.calls(needed),
    ]
    for node, term in zip(nodes, terms, strict=True):
        reduction, lanes = expect_reduction(node), f"{statements.value(node)}_lanes"
        lines.append(f"{lanes} = {_lanes_kind(reduction)}")
        value = f"{statements.value(term)}.to(tl.float64)"
        value = f"{value} * {value}" if reduction.squares else value
        joined = join(reduction, lanes, value)
        body.append(f"{lanes} = tl.where(inside, {joined}, {lanes})")
    return [*lines, *_loop("start", (*ends, str(LANES)), body)]


def _pointers(
    statements: TritonStatements,
    positions: Sequence[int],
    done: str = "",
    aligned: str = "False",
) -> list[str]:
    """Pointers to the first element, row or chunk, from the addresses."""
    lines: list[str] = []
    for position in positions:
        name, dtype = statements.names[position], statements.dtypes[position]
        place = f"{name}_place"
        if done:
            layout = statements.program.trace.layouts[position]
            first = f"{done} // width" if layout == "row" else done
            place = f"{place} + {first} * {dtype.itemsize}"
        lines.append(f"{name}_at = pointer({place}, {KINDS[dtype]}, {aligned})")
    return lines


def _loop(name: str, steps: Sequence[str], lines: Sequence[str]) -> list[str]:
    return [f"for {name} in range({', '.join(steps)}):", block(lines)]


def _shared_loop(name: str, step: str, lines: Sequence[str]) -> list[str]:
    """A loop over an item that the programs of the grid's second axis share."""
    return [
        f"begin = tl.program_id(1).to(tl.int64) * {step}",
        f"step = tl.num_programs(1).to(tl.int64) * {step}",
        *_loop(name, ("begin", "length", "step"), lines),
    ]


def _lanes_kind(reduction: Reduction) -> str:
    """The lanes before the first term."""
    value = 'float("-inf")' if reduction.is_maximum else "0.0"
    return f"tl.full([{LANES}], {value}, tl.float64)"


def start_value(reduction: Reduction) -> str:
    """A total before the first chunk."""
    value = 'float("-inf")' if reduction.is_maximum else "0.0"
    return f"tl.full([], {value}, tl.float64)"


def join(reduction: Reduction, total: str, value: str) -> str:
    """A total and one more value."""
    return f"larger({total}, {value})" if reduction.is_maximum else f"{total} + {value}"


def fold(reduction: Reduction, name: str) -> str:
    """The lanes of a reduction, folded in halves."""
    kind = "maximum" if reduction.is_maximum else "sum"
    return f"fold_{kind}({name}_lanes)"
