"""The pass over touched rows: each with the gradients that belong to it."""

from __future__ import annotations

from thalweg.compiler.frame_c import ITEM_COLUMNS, TABLES, Frame, call
from thalweg.compiler.key import Mode
from thalweg.compiler.loops_c import block, elements_function, function, loop

__all__ = ["RowFrame"]


class RowFrame(Frame):
    """The text around a rule that is applied to rows."""

    def row_pass(self, mode: Mode) -> list[str]:
        """The pass that writes, over items that are touched rows."""
        statements, last = self.statements, len(self.statements.dtypes) - 1
        functions = [
            elements_function(
                statements,
                f"{self.name}_range",
                is_summed=False,
                has_turns=mode == "sequence",
            )
        ]
        if mode == "sum":
            functions.append(self._sum_function())
            if statements.storage_type(last) != statements.compute_type:
                summed = f"{self.name}_summed"
                functions.append(elements_function(statements, summed, is_summed=True))
        functions.append(self._row_span(mode))
        parameter = ", const int64_t *starts, const int64_t *sources"
        total = [
            "const int64_t total = num_items + starts[num_items] - starts[0];",
            "const int64_t elements = num_items ? total * items[3] : 0;",
        ]
        work = "0, num_items, starts, sources"
        cuts = [
            f"thalweg_find(starts, num_items, total * {part} / parts)"
            for part in ("part", "(part + 1)")
        ]
        share = f"{cuts[0]},\n            {cuts[1]},\n            starts, sources"
        return [*functions, self.entry(self.name, parameter, total, work, share)]

    def _sum_function(self) -> str:
        """Duplicates of one row, added in the compute type in order of appearance."""
        statements, last = self.statements, len(self.statements.dtypes) - 1
        kind, stored = statements.compute_type, statements.storage_type(last)
        load = statements.load(last, "duplicate[i]")
        head = (
            f"static void {self.name}_sum(int64_t length, {kind} *restrict sum,\n"
            f"    const {stored} *gradient, const int64_t *sources, int64_t count)"
        )
        add = [
            f"const {stored} *restrict duplicate =",
            "    gradient + sources[source] * length;",
            *loop("int64_t i = 0; i < length; ++i", [f"sum[i] += {load};"]),
        ]
        first = [
            f"const {stored} *restrict duplicate = gradient + sources[0] * length;",
            *loop("int64_t i = 0; i < length; ++i", [f"sum[i] = {load};"]),
        ]
        others = loop("int64_t source = 1; source < count; ++source", add)
        return function(head, [*first, *others])

    def _row_span(self, mode: Mode) -> str:
        """Touched rows begin to end, each with the gradients that belong to it."""
        head = (
            f"static void {self.name}_span({TABLES},\n"
            "    const double *scalars, int64_t begin, int64_t end,\n"
            "    const int64_t *starts, const int64_t *sources)"
        )
        lines = [
            *self._prefetch(),
            *self.item("number"),
            "const int64_t length = item[3];",
            f"if (row[{self.statements.apply_column}] == 0.0) {{",
            "    continue;",
            "}",
            *(self._sequence() if mode == "sequence" else self._sum()),
        ]
        size = f"(int64_t)sizeof({self.statements.storage_type(0)})"
        length = f"items[begin * {ITEM_COLUMNS} + 3] * {size}"
        walk = [
            f"const int64_t ahead = begin < end ? thalweg_ahead({length}) : 0;",
            *loop("int64_t number = begin; number < end; ++number", lines),
        ]
        if mode == "sequence":
            return function(head, walk)
        buffer = [f"{self.statements.compute_type} *sum = NULL;", "int64_t room = 0;"]
        return function(head, [*buffer, *walk, "free(sum);"])

    def _sequence(self) -> list[str]:
        place = "item[2] + sources[source] * length"
        arguments = ["length", *self.arguments("0", place), "row"]
        arguments += self.rounding("0", "source - starts[number]")
        return loop(
            "int64_t source = starts[number]; source < starts[number + 1]; ++source",
            [call(f"{self.name}_range", arguments)],
        )

    def _sum(self) -> list[str]:
        statements, last = self.statements, len(self.statements.dtypes) - 1
        place = "item[2] + sources[starts[number]] * length"
        rounding = self.rounding("0")
        one = ["length", *self.arguments("0", place), "row", *rounding]
        is_same = statements.storage_type(last) == statements.compute_type
        many = f"{self.name}_{'range' if is_same else 'summed'}"
        size = f"(int64_t)sizeof({statements.compute_type})"
        gradient = f"({statements.storage_type(last)} *)tensors[{last}] + item[2]"
        count = "starts[number + 1] - starts[number]"
        return [
            f"if ({count} == 1) {{",
            block([call(f"{self.name}_range", one), "continue;"]),
            "}",
            "if (room < length) {",
            f"    sum = thalweg_grow(sum, length * {size});",
            "    room = length;",
            "}",
            call(
                f"{self.name}_sum",
                ["length", "sum", gradient, "sources + starts[number]", count],
            ),
            call(many, ["length", *self.arguments("0")[:-1], "sum", "row", *rounding]),
        ]

    def _prefetch(self) -> list[str]:
        """Fetch a later row of each tensor, and the first of its gradients."""
        layouts = self.program.trace.layouts
        knows_width = "row" in layouts
        lines = [
            line.replace("*item ", "*next ").replace("item[", "next[")
            for line in self.item("(number + ahead)")
            if knows_width or not ("*row" in line or "width" in line)
        ]
        gradient = "next[2] + sources[starts[number + ahead]] * next[3]"
        arguments = self.arguments("0", gradient, item="next")
        for position, (layout, address) in enumerate(
            zip(layouts, arguments, strict=True)
        ):
            if layout != "scalar":
                size = f"(int64_t)sizeof({self.statements.storage_type(position)})"
                size = size if layout == "row" else f"next[3] * {size}"
                lines.append(call("thalweg_prefetch", [address, size]))
        return ["if (number + ahead < end) {", block(lines), "}"]
