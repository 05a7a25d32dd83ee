"""The loops around a rule: how a C kernel walks its tables.

Three nested functions make a kernel: *range* applies the rule to consecutive elements
(`loops_c`), *span* finds the elements of one thread among the work items, and the
exported function computes the derived scalars and starts the threads. The elements of
all items are dealt out evenly, so an item may be as large as a whole variable.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from thalweg.compiler.emit_c import Statements
from thalweg.compiler.frame_c import ITEM_COLUMNS, TABLES, Frame, call
from thalweg.compiler.graph import label_of, reduction_of
from thalweg.compiler.key import Mode
from thalweg.compiler.loops_c import (
    chunk_function,
    elements_function,
    function,
    loop,
)
from thalweg.compiler.rows_c import RowFrame

__all__ = ["ITEM_COLUMNS", "emit_kernel", "pass_name"]


def pass_name(name: str, number: int, num_passes: int) -> str:
    """The exported name of a pass: the last one has the name of the kernel."""
    return name if number == num_passes - 1 else f"{name}_pass{number}"


def emit_kernel(statements: Statements, name: str, mode: Mode) -> str:
    """Write all functions of one kernel.

    Args:
        statements: The rule's statements.
        name: Exported name.
        mode: How items and gradients belong together.

    Returns:
        C text that needs `runtime.c` before it.
    """
    program = statements.program
    dense = _DenseFrame(statements, program, name)
    parts = [dense.derive()]
    for number in range(program.num_passes - 1):
        parts += dense.reducing_pass(number)
    rows = RowFrame(statements, program, name)
    last = dense.dense_pass() if mode == "dense" else rows.row_pass(mode)
    return "\n\n".join([statements.title(mode), *parts, *last]) + "\n"


class _DenseFrame(Frame):
    """The text around a rule that is applied to pieces of variables."""

    def dense_pass(self) -> list[str]:
        """The pass that writes, over items that are pieces of variables."""
        by_row = self.program.uses_rows
        unit = "width" if by_row else "THALWEG_BLOCK"
        body = [
            f"if (first >= last || row[{self.statements.apply_column}] == 0.0) {{",
            "    continue;",
            "}",
            *([] if by_row else self._blocks()),
            *self._range("first", "last - first"),
        ]
        span = self._span(self.name, unit, body)
        work = "0, total"
        share = "total * part / parts, total * (part + 1) / parts"
        entry = self.entry(self.name, "", self._total(), work, share)
        elements = elements_function(
            self.statements,
            f"{self.name}_range",
            is_summed=False,
            is_inlined=not by_row,
        )
        return [elements, span, entry]

    def _range(self, first: str, length: str) -> list[str]:
        """The rule, applied to some elements of an item."""
        arguments = [length, *self.arguments(first), "row", *self.rounding(first)]
        return [call(f"{self.name}_range", arguments)]

    def _blocks(self) -> list[str]:
        """Whole blocks of long pieces, each while a later one is fetched."""
        layouts = self.program.trace.layouts
        places = zip(layouts, self.arguments("first + THALWEG_FETCH"), strict=True)
        kinds = [self.statements.storage_type(n) for n in range(len(layouts))]
        sizes = [f"THALWEG_BLOCK * (int64_t)sizeof({kind})" for kind in kinds]
        fetches = [
            call("thalweg_prefetch", [place, size])
            for (layout, place), size in zip(places, sizes, strict=True)
            if layout == "like"
        ]
        whole = "last - first < THALWEG_LONG ? first : last - THALWEG_FETCH"
        return [
            f"const int64_t stop = {whole};",
            *loop(
                "; first < stop; first += THALWEG_BLOCK",
                [*fetches, *self._range("first", "THALWEG_BLOCK")],
            ),
        ]

    def reducing_pass(self, number: int) -> list[str]:
        """A pass that only reads, and fills the columns of its totals."""
        name = pass_name(self.name, number, self.program.num_passes)
        totals = self.program.totals_of(number)
        partials = f"partials + (chunks + chunk / THALWEG_CHUNK) * {len(totals)}"
        length = "thalweg_smaller(THALWEG_CHUNK, last - chunk)"
        arguments = [length, *self.arguments("chunk"), "row", partials]
        body = [
            *loop(
                "int64_t chunk = first; chunk < last; chunk += THALWEG_CHUNK",
                [call(f"{name}_range", arguments)],
            ),
            "chunks += (length + THALWEG_CHUNK - 1) / THALWEG_CHUNK;",
        ]
        parameter = ", double *partials"
        span = self._span(name, "THALWEG_CHUNK", body, parameter, "int64_t chunks = 0;")
        work = "0, total, partials"
        share = "total * part / parts, total * (part + 1) / parts, partials"
        entry = self.entry(
            name, parameter, self._total(), work, share, self._fold(totals)
        )
        chunk = chunk_function(self.statements, f"{name}_range", totals)
        return [chunk, span, entry]

    def _span(
        self,
        name: str,
        unit: str,
        body: Sequence[str],
        parameter: str = "",
        counter: str = "",
    ) -> str:
        """Elements begin to end of all items laid side by side, in whole units."""
        head = (
            f"static void {name}_span({TABLES},\n"
            f"    const double *scalars, int64_t begin, int64_t end{parameter})"
        )
        lines = [
            *self.item("number"),
            "const int64_t length = item[3];",
            f"int64_t first = thalweg_cut(begin - position, {unit}, length);",
            f"const int64_t last = thalweg_cut(end - position, {unit}, length);",
            "position += length;",
            *body,
        ]
        condition = "number < num_items && position < end"
        counters = ["int64_t position = 0;", *filter(None, [counter])]
        walk = loop(f"int64_t number = 0; {condition}; ++number", lines)
        return function(head, [*counters, *walk])

    def _total(self) -> list[str]:
        return [
            "int64_t total = 0;",
            *loop(
                "int64_t number = 0; number < num_items; ++number",
                [f"total += items[number * {ITEM_COLUMNS} + 3];"],
            ),
            "const int64_t elements = total;",
        ]

    def _fold(self, totals: Sequence[fx.Node]) -> list[str]:
        """Add the partial results of all chunks of a variable in order."""
        columns, index = len(self.program.columns), self.program.columns.index
        row = f"double *row = scalars + items[number * {ITEM_COLUMNS} + 4] * {columns};"
        length = f"items[number * {ITEM_COLUMNS} + 3]"
        start: list[str] = [row]
        join: list[str] = []
        for position, node in enumerate(totals):
            reduction, cell = reduction_of(node), f"row[{index[label_of(node)]}]"
            if reduction is not None and reduction.is_maximum:
                start.append(f"{cell} = -__builtin_inf();")
                join.append(f"{cell} = thalweg_maximum({cell}, partials[{position}]);")
            else:
                start.append(f"{cell} = 0.0;")
                join.append(f"{cell} += partials[{position}];")
        chunks = loop(
            f"int64_t chunk = 0; chunk < {length}; chunk += THALWEG_CHUNK",
            [*join, f"partials += {len(totals)};"],
        )
        head = "int64_t number = 0; number < num_items; ++number"
        return [*loop(head, start), *loop(head, [row, *chunks])]
