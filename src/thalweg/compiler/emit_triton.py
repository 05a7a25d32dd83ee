"""From a program to Triton text: the dialect of the GPU.

A module of text holds the kernels of one key over the same tables as in C:

| kernel | programs | does |
|---|---|---|
| `<name>_derive` | one for each scalar row | computes the derived columns in float64 |
| `<name>_load_cells`, `<name>_store_cells` | items | scalar slots to and from columns |
| `<name>_pass0`, … | chunks of 16,384 elements | partial results of reductions |
| `<name>_fold0`, … | variables | adds partial results in order |
| `<name>` | pieces, or touched rows | reads, computes and writes |

Compile it with `enable_fp_fusion=False`: a product that is added is rounded first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import fx

from thalweg.compiler.graph import Space, expect_reduction, label_of, operands_of
from thalweg.compiler.key import Mode
from thalweg.compiler.loops_triton import (
    block,
    call,
    chunk_function,
    elements_function,
    function,
    join,
    start_value,
)
from thalweg.compiler.program import Program
from thalweg.compiler.runtime_triton import shared_functions
from thalweg.compiler.skeleton_c import ITEM_COLUMNS, pass_name
from thalweg.compiler.statements_triton import TritonStatements, python_name
from thalweg.errors import TraceError, message

__all__ = ["FOLD_COLUMNS", "emit_triton", "kernel_name", "scalar_slots"]

FOLD_COLUMNS = 3
"""Columns of a fold: scalar row, first chunk, chunk after the last."""

_TABLES = ("items", "pointers", "scalars")
_HEADS = {
    "dense": [*_TABLES],
    "sum": [*_TABLES, "starts", "sources"],
    "sequence": [*_TABLES, "starts", "sources"],
}


def kernel_name(program: Program) -> str:
    """The name of a program's kernel."""
    return f"rule_{python_name(program.trace.rule.name.replace('.', '_'))}"


def scalar_slots(program: Program) -> set[str]:
    """Names of the slots that are one number for each variable."""
    pairs = zip(program.trace.rule.tensors, program.trace.layouts, strict=True)
    return {name for name, layout in pairs if layout == "scalar"}


def emit_triton(
    program: Program, dtypes: Sequence[torch.dtype], mode: Mode = "dense"
) -> str:
    """Write the module of one key. Neither Triton nor a device is needed.

    Args:
        program: What to compute.
        dtypes: Storage dtypes of variable, slots and gradient.
        mode: How items and gradients belong together.

    Returns:
        Text of a Python module.

    Raises:
        TraceError: If a rule that reduces whole variables is to update rows.
    """
    if mode != "dense" and program.num_passes > 1:
        raise TraceError(
            message(
                f"rule {program.trace.rule.name}",
                "a rule without reductions over the variable, to update rows",
                f"{program.num_passes} passes",
                'Choose sparse_update="exact".',
            )
        )
    statements, name = TritonStatements(program, tuple(dtypes)), kernel_name(program)
    kernels = [*_prologue(statements, name)]
    for number in range(program.num_passes - 1):
        kernels += _reading_pass(statements, name, number)
    kernels.append(elements_function(statements, f"{name}_range", mode))
    kernels.append(_kernel(statements, name, mode))
    if scalar_slots(program):
        kernels.append(_cells(statements, name, is_store=True))
    body = "\n\n".join(kernels)
    shared = shared_functions(_code(body))
    imports = "import triton\nimport triton.language as tl\n"
    if "libdevice." in _code(body):
        imports += "from triton.language.extra import libdevice\n"
    head = [statements.title(mode), imports, *([shared] if shared else [])]
    text = "\n".join(head) + "\n\n" + body
    return re.sub(r"\n{4,}", "\n\n\n", text)


def _code(text: str) -> str:
    return re.sub(r"#.*", "", text)


def _prologue(statements: TritonStatements, name: str) -> list[str]:
    """The kernels that fill columns before anything is read."""
    kernels: list[str] = []
    if scalar_slots(statements.program):
        kernels.append(_cells(statements, name, is_store=False))
    if statements.program.columns.derived:
        columns = len(statements.program.columns)
        row = f"row = scalars + tl.program_id(0).to(tl.int64) * {columns}"
        head = f"{name}_derive(scalars)"
        kernels.append(function(head, [row, *statements.derived()], ["scalars"]))
    return kernels


def _item(statements: TritonStatements) -> list[str]:
    columns = len(statements.program.columns)
    return [
        "number = tl.program_id(0).to(tl.int64)",
        f"item = items + number * {ITEM_COLUMNS}",
        f"row = scalars + tl.load(item + 4) * {columns}",
    ]


def _places(statements: TritonStatements, positions: Sequence[int]) -> list[str]:
    """Addresses of the first element of an item in each tensor."""
    layouts = statements.program.trace.layouts
    lines = [f"tensors = pointers + tl.load(item) * {len(statements.dtypes)}"]
    if set(positions) - {statements.gradient}:
        lines.append("offset = tl.load(item + 1)")
    if any(layouts[position] == "row" for position in positions):
        column = statements.row_length_column
        lines.append(f"width = tl.load(row + {column}).to(tl.int64)")
    for position in positions:
        place = "offset // width" if layouts[position] == "row" else "offset"
        place = "tl.load(item + 2)" if position == statements.gradient else place
        size = statements.dtypes[position].itemsize
        address = f"tl.load(tensors + {position}) + {place} * {size}"
        lines.append(f"{statements.names[position]}_place = {address}")
    return lines


def _kernel(statements: TritonStatements, name: str, mode: Mode) -> str:
    """The kernel that writes."""
    is_dense, uses_rows = mode == "dense", statements.program.uses_rows
    # Pieces are short: 32 bits hold every index of one.
    length = "tl.load(item + 3)" + ".to(tl.int32)" * (is_dense and not uses_rows)
    places = [f"{statements.names[p]}_place" for p in statements.in_memory]
    rows = [] if is_dense else ["sources", "first", "last"]
    body = _places(statements, statements.in_memory)
    if not is_dense:
        body += [
            "first = tl.load(starts + number)",
            "last = tl.load(starts + number + 1)",
        ]
    body += statements.origin_of("offset")
    arguments = ["row", "length", *places, *rows, *statements.origin, "BLOCK"]
    if uses_rows:
        body.append(call(f"{name}_range", [*arguments, "False"]))
    else:
        whole = "length % BLOCK" if is_dense else "length % 16"
        body += _branches(places, whole, f"{name}_range", arguments)
    applies = f"tl.load(row + {statements.apply_column}) != 0.0"
    lines = [
        *_item(statements),
        f"length = {length}",
        f"if ({applies}) & (length > 0):",
        block(body),
    ]
    head = _HEADS[mode]
    return function(call(name, [*head, "BLOCK: tl.constexpr"]), lines, head)


def _branches(
    places: Sequence[str], whole: str, name: str, arguments: Sequence[str]
) -> list[str]:
    """Full and aligned pieces move 16 bytes at once."""
    addresses = " | ".join(places) or "length"
    return [
        f"addresses = {addresses}",
        f"if (addresses % 16 == 0) & ({whole} == 0):",
        block([call(name, [*arguments, "True"])]),
        "else:",
        block([call(name, [*arguments, "False"])]),
    ]


def _reading_pass(statements: TritonStatements, name: str, number: int) -> list[str]:
    """A pass that only reads: chunks to partial results, and these to totals."""
    program = statements.program
    totals = program.totals_of(number)
    terms = [operands_of(node)[0] for node in totals]
    positions = statements.positions(program.needed(terms, Space.TENSOR))
    kernel = pass_name(name, number, program.num_passes)
    places = [f"{statements.names[p]}_place" for p in positions]
    arguments = ["row", "length", *places, f"partials + number * {len(totals)}"]
    lines = [
        *_item(statements),
        "length = tl.load(item + 3).to(tl.int32)",
        *_places(statements, positions),
        *_branches(places, "length % 256", f"{kernel}_chunk", arguments),
    ]
    head = [*_TABLES, "partials"]
    return [
        chunk_function(statements, f"{kernel}_chunk", totals),
        function(f"{kernel}({', '.join(head)})", lines, head),
        _fold(statements, f"{name}_fold{number}", totals),
    ]


def _fold(statements: TritonStatements, name: str, totals: Sequence[fx.Node]) -> str:
    """Add the partial results of all chunks of a variable in order."""
    columns = statements.program.columns
    lines = [
        f"fold_row = folds + tl.program_id(0).to(tl.int64) * {FOLD_COLUMNS}",
        f"row = scalars + tl.load(fold_row) * {len(columns)}",
        "first = tl.load(fold_row + 1)",
        "last = tl.load(fold_row + 2)",
    ]
    body = [f"place = partials + chunk * {len(totals)}"]
    after: list[str] = []
    for position, node in enumerate(totals):
        reduction, total = expect_reduction(node), f"{statements.value(node)}_total"
        lines.append(f"{total} = {start_value(reduction)}")
        joined = join(reduction, total, f"tl.load(place + {position})")
        body.append(f"{total} = {joined}")
        after.append(f"tl.store(row + {columns.index[label_of(node)]}, {total})")
    walk = ["for chunk in tl.range(first, last, loop_unroll_factor=8):", block(body)]
    head = ["folds", "partials", "scalars"]
    return function(f"{name}({', '.join(head)})", [*lines, *walk, *after], head)


def _cells(statements: TritonStatements, name: str, *, is_store: bool) -> str:
    """Scalar slots: one number for each variable, kept in the table meanwhile."""
    program = statements.program
    lines: list[str] = []
    for position, layout in enumerate(program.trace.layouts):
        if layout != "scalar":
            continue
        label = program.trace.rule.tensors[position]
        at = f"{statements.names[position]}_at"
        kind = str(statements.dtypes[position]).removeprefix("torch.")
        place = f"{at} = pointer(tl.load(tensors + {position}), tl.{kind}, False)"
        if not is_store:
            value = f"{statements.load(position, '', '')}.to(tl.float64)"
            lines += [place, f"tl.store(row + {program.columns.index[label]}, {value})"]
            continue
        output = program.outputs[position]
        if output is None:
            continue
        value = statements.value(output)
        if isinstance(output, fx.Node):
            value = f"tl.load(row + {program.column_of(output)})"
            if statements.compute == torch.float32:
                value = f"{value}.to(tl.float32)"
        lines += [place, f"tl.store({at}, {statements.narrowed(position, value)})"]
    lines = lines or ["pass"]
    tensors = f"tensors = pointers + tl.load(item) * {len(statements.dtypes)}"
    if is_store:
        applies = f"if tl.load(row + {statements.apply_column}) != 0.0:"
        lines = [applies, block(lines)]
    kind = "store" if is_store else "load"
    head = f"{name}_{kind}_cells({', '.join(_TABLES)})"
    return function(head, [*_item(statements), tensors, *lines], _TABLES)
