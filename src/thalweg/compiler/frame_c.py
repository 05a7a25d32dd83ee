"""What all passes of a C kernel share: its tables, its items, its exported function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from thalweg.compiler.emit_c import Statements
from thalweg.compiler.loops_c import block, function, loop
from thalweg.compiler.program import Program

__all__ = ["ITEM_COLUMNS", "TABLES", "Frame", "call"]

ITEM_COLUMNS = 5
"""Columns of a work item: variable, offset, gradient offset, length, scalar row."""

TABLES = "int64_t num_items, const int64_t *items, void *const *pointers"
"""The first parameters of every function that walks items."""
_PASSED = "num_items, items, pointers, scalars"


@dataclass(frozen=True)
class Frame:
    """The text around the passes of one kernel.

    Attributes:
        statements: The rule's statements.
        program: What they come from.
        name: Exported name.
    """

    statements: Statements
    program: Program
    name: str

    def derive(self) -> str:
        """The prologue: the derived scalars of one row of the table."""
        lines = self.statements.derived() or ["(void)row;"]
        return function(f"static void {self.name}_derive(double *row)", lines)

    def arguments(
        self, first: str, gradient: str = "", item: str = "item"
    ) -> list[str]:
        """The pointers to element `first` of an item, cast to their types."""
        layouts = self.program.trace.layouts
        places = {
            "like": f"{item}[1] + {first}",
            "row": f"thalweg_row({item}[1] + {first}, width)",
            "scalar": "0",
        }
        parts: list[str] = []
        for position, layout in enumerate(layouts):
            kind = self.statements.storage_type(position)
            place = places[layout]
            if position == len(layouts) - 1:
                place = gradient or f"item[2] + {first}"
            parts.append(f"({kind} *)tensors[{position}] + {place}")
        return parts

    def rounding(self, first: str, turn: str = "") -> list[str]:
        """What a function needs to round from element `first` of an item on."""
        if not self.program.rounding:
            return []
        origin = f"{self.statements.first_index()} + item[1] + {first}"
        return [origin, turn] if turn else [origin]

    def item(self, number: str) -> list[str]:
        """Declarations of an item, its scalars, its tensors and the row width."""
        columns, tensors = len(self.program.columns), len(self.statements.dtypes)
        lines = [
            f"const int64_t *item = items + {number} * {ITEM_COLUMNS};",
            f"const double *row = scalars + item[4] * {columns};",
            f"void *const *tensors = pointers + item[0] * {tensors};",
        ]
        column = self.statements.row_length_column
        if column is not None:
            lines.append(f"const int64_t width = (int64_t)row[{column}];")
        return lines

    def entry(
        self,
        name: str,
        parameter: str,
        total: Sequence[str],
        work: str,
        share: str,
        after: Sequence[str] = (),
    ) -> str:
        """The exported function."""
        head = (
            f"void {name}({TABLES},\n"
            f"    double *scalars, int64_t num_rows, int num_threads{parameter})"
        )
        columns = len(self.program.columns)
        lines = [
            *self._cells(is_store=False)
            * (name != self.name or self.program.num_passes == 1),
            *loop(
                "int64_t number = 0; number < num_rows; ++number",
                [f"{self.name}_derive(scalars + number * {columns});"],
            ),
            *total,
            "const int64_t parts = elements < THALWEG_SERIAL ? 1 : num_threads;",
            "if (parts <= 1) {",
            f"    {name}_span({_PASSED}, {work});",
            "} else {",
            "#pragma omp parallel for schedule(static) num_threads((int)parts)",
            block(
                loop(
                    "int64_t part = 0; part < parts; ++part",
                    [f"{name}_span({_PASSED},\n        {share});"],
                )
            ),
            "}",
            *after,
        ]
        if name == self.name:
            lines += self._cells(is_store=True)
        return function(head, lines)

    def _cells(self, *, is_store: bool) -> list[str]:
        """Scalar slots: one number for each variable, kept in the table meanwhile."""
        program, statements = self.program, self.statements
        lines: list[str] = []
        for position, layout in enumerate(program.trace.layouts):
            if layout != "scalar":
                continue
            name = program.trace.rule.tensors[position]
            kind = statements.storage_type(position)
            place = f"(({kind} *)tensors[{position}])[0]"
            column = program.columns.index[name]
            if not is_store:
                load = statements.load(position, place)
                lines.append(f"row[{column}] = (double){load};")
                continue
            value = program.outputs[position]
            if value is not None:
                text = (
                    f"({statements.compute_type})row[{program.column_of(value)}]"
                    if isinstance(value, fx.Node)
                    else statements.value(value)
                )
                lines.append(f"{place} = {statements.store(position, text)};")
        if not lines:
            return []
        item = [
            line.replace("const double *row", "double *row")
            for line in self.item("number")
            if "width" not in line
        ]
        if is_store:
            item += [
                f"if (row[{statements.apply_column}] == 0.0) {{",
                "    continue;",
                "}",
            ]
        return loop("int64_t number = 0; number < num_items; ++number", [*item, *lines])


def call(name: str, arguments: Sequence[str]) -> str:
    """A call, one argument on a line."""
    text = ",\n    ".join(arguments)
    return f"{name}(\n    {text});"
