"""What a step will do, as text: variable, rule, kernel, bytes, expected time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from thalweg.compiler import KernelKey, compile_rule
from thalweg.compiler.graph import Space, operands_of
from thalweg.compiler.program import Program
from thalweg.compiler.triton_kernel import has_triton
from thalweg.state import IndexedSlices
from thalweg.step.bandwidth import Bandwidth, read_bandwidth
from thalweg.step.compose import GRADIENT_SCALE
from thalweg.step.group import Member
from thalweg.step.row_updates import RowMode, RowUpdate

__all__ = ["Part", "explain"]

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_A_ROW = " a row"
_LEAST = 0.1
"""Microseconds; times below are told in nanoseconds."""


@dataclass(frozen=True)
class Part:
    """One variable's part in a step.

    Attributes:
        name: Of the variable.
        member: How it is updated.
        gradient: Dtype of its gradient.
        rows: How its touched rows are updated; None if all of it is.
    """

    name: str
    member: Member
    gradient: torch.dtype
    rows: RowMode | None = None

    @property
    def key(self) -> KernelKey:
        """The kernel."""
        return self.member.key(self.gradient) if self.rows is None else self._row.key()

    @property
    def _row(self) -> RowUpdate:
        """An update of no rows."""
        var = self.member.var
        values = torch.empty((0, *var.shape[1:]), dtype=self.gradient, device="cpu")
        nothing = IndexedSlices(values, torch.empty(0, dtype=torch.int64, device="cpu"))
        return RowUpdate(self.member, nothing, self.rows or "sum")

    @property
    def is_compiled(self) -> bool:
        """Whether there is a kernel; some updates of rows are interpreted."""
        var, reduces_rows = self.member.var, self.member.reduces_rows
        return self.rows is None or (var.ndim > 0 and reduces_rows)

    def runs_in(self) -> str:
        """What runs the kernel, if there is one."""
        device, key = self.member.var.device, self.key
        if device.type == "cpu" and (self.rows is None or self._row.has_kernel()):
            place = "C" if compile_rule(key).backend == "c" else "interpreter"
        else:
            is_gpu = device.type == "cuda" and has_triton()
            place = "Triton" if is_gpu else "interpreter"
        return place if self.rows is None else f"{place}, touched rows"


@dataclass(frozen=True)
class _Use:
    """A part, and what it costs.

    Attributes:
        part: The part.
        key: Its kernel.
        program: What the kernel is made from.
        num_bytes: Bytes that it reads and writes, for one row if rows are updated.
        bandwidth: That of its device, if it was measured.
    """

    part: Part
    key: KernelKey
    program: Program
    num_bytes: int
    bandwidth: Bandwidth | None

    @property
    def is_whole(self) -> bool:
        """Whether all of the variable is updated."""
        return self.part.rows is None

    @property
    def group(self) -> tuple[KernelKey, torch.device]:
        """What the variables of one launch have in common."""
        return self.key, self.part.member.var.device


_Group = Sequence[_Use]
_HEAD = ("variable", "shape", "rule", "kernel", "bytes", "expected")
_KERNEL_HEAD = ("kernel", "runs in", "dtypes", "variables", "bytes", "expected")


def explain(title: str, parts: Iterable[Part]) -> str:
    """Say which kernel updates which variable, and how long that should take.

    Args:
        title: What to call the optimizer.
        parts: The variables; one may have a part for each kind of its gradients.

    Returns:
        A table with a line for each part, then one for each kernel; a kernel is
        one launch. Times are bytes over the bandwidth that ``thalweg bench``
        measured, and what a call costs is not in them. Where only touched rows are
        updated, both are those of one row.
    """
    uses = [_use(part) for part in parts]
    if not uses:
        return f"{title}: nothing is built yet. Call build(model) or take a step."
    groups: dict[object, list[_Use]] = {}
    for use in uses:
        groups.setdefault(use.group, []).append(use)
    labels = {
        group: f"{held[0].key.rule.name} #{number}"
        for number, (group, held) in enumerate(groups.items(), start=1)
    }
    count = len({id(use.part.member.var) for use in uses})
    counts = f"variables: {count}, launches: {len(groups)}"
    whole = [use for use in uses if use.is_whole]
    totals = [_size(_total(whole)), _time(whole)] if whole else []
    totals += ["and touched rows"] if len(whole) < len(uses) else []
    kernels = (_kernel_row(labels[group], held) for group, held in groups.items())
    lines = [
        f"{title}: {', '.join([counts, *totals])}",
        *dict.fromkeys(map(_source, uses)),
        "",
        *_table([_HEAD, *(_row(labels[use.group], use) for use in uses)]),
        "",
        *_table([_KERNEL_HEAD, *kernels]),
    ]
    return "\n".join(lines)


def _use(part: Part) -> _Use:
    member, program = part.member, part.member.program()
    num_bytes = _num_bytes(program, member, part.gradient)
    if part.rows is not None:
        num_bytes //= max(1, member.var.shape[0])
    return _Use(part, part.key, program, num_bytes, _bandwidth(member.var.device))


def _bandwidth(device: torch.device) -> Bandwidth | None:
    is_gpu = device.type == "cuda"
    return read_bandwidth(torch.cuda.get_device_name(device) if is_gpu else device.type)


def _num_bytes(program: Program, member: Member, gradient: torch.dtype) -> int:
    """Bytes that all passes read and write."""
    sizes = [t.numel() * t.element_size() for t in member.tensors]
    read = member.var.numel() * gradient.itemsize
    size_of = dict(zip(program.trace.rule.tensors, [*sizes, read], strict=True))
    # A clip by norm reads the gradients in a pass before.
    total = read if GRADIENT_SCALE in program.trace.rule.scalars else 0
    total += sum(
        size_of[name]
        for name, node in program.inputs.items()
        if name in size_of and node.users
    )
    stored = zip(sizes, program.outputs, strict=True)
    total += sum(size for size, output in stored if output is not None)
    for number in range(program.num_passes - 1):
        total += sum(size_of[name] for name in _read_by(program, number))
    return total


def _read_by(program: Program, number: int) -> list[str]:
    """The tensors that a pass which only reads needs."""
    sinks = [operands_of(node)[0] for node in program.totals_of(number)]
    nodes = program.needed(sinks, Space.TENSOR)
    return [str(node.target) for node in nodes if node.op == "placeholder"]


def _row(label: str, use: _Use) -> tuple[str, ...]:
    shape = "×".join(map(str, use.part.member.var.shape)) or "()"
    each = "" if use.is_whole else _A_ROW
    size, time = _size(use.num_bytes) + each, _time([use]) + each
    return (use.part.name, shape, use.key.rule.name, label, size, time)


def _kernel_row(label: str, uses: _Group) -> tuple[str, ...]:
    key, passes = uses[0].key, uses[0].program.num_passes
    place = uses[0].part.runs_in() + (f", {passes} passes" if passes > 1 else "")
    size, time = _size(_total(uses)), _time(uses)
    if not uses[0].is_whole:  # nobody knows how many of each
        sizes = sorted({use.num_bytes for use in uses})
        size = "–".join(map(_size, dict.fromkeys([sizes[0], sizes[-1]]))) + _A_ROW
        time = ""
    return (label, place, _dtypes(key), str(len(uses)), size, time)


def _dtypes(key: KernelKey) -> str:
    """The dtypes by name, those of equal tensors once."""
    names: dict[torch.dtype, list[str]] = {}
    for name, dtype in zip(key.rule.tensors, key.dtypes, strict=True):
        names.setdefault(dtype, []).append(name)
    texts = {str(d).removeprefix("torch."): n for d, n in names.items()}
    if len(texts) == 1:
        return next(iter(texts))
    return ", ".join(f"{dtype}: {' '.join(names)}" for dtype, names in texts.items())


def _size(num_bytes: float) -> str:
    for unit, name in _UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes:.0f} B"


def _total(uses: _Group) -> int:
    return sum(use.num_bytes for use in uses)


def _time(uses: _Group) -> str:
    known = [use.bandwidth.seconds(use.num_bytes) for use in uses if use.bandwidth]
    if len(known) < len(uses):
        return "?"
    microseconds = 1e6 * sum(known)
    if microseconds >= 1000:
        return f"{microseconds / 1000:.2f} ms"
    if microseconds < _LEAST:
        return f"{microseconds * 1000:.1f} ns"
    return f"{microseconds:.2f} µs"


def _source(use: _Use) -> str:
    """Where expected times come from, or how to get them."""
    bandwidth, device = use.bandwidth, use.part.member.var.device
    if bandwidth is None:
        unknown = f"The bandwidth of {device} is not known"
        commands = {"cpu": "", "cuda": f" --device {device}"}
        if device.type not in commands:
            return f"{unknown}."
        return f"{unknown}; say `thalweg bench{commands[device.type]}`."
    rate, count = bandwidth.bytes_per_second / 1e9, bandwidth.threads
    threads = f", {count} thread{'s' if count > 1 else ''}" if count else ""
    if count and torch.get_num_threads() != count:
        threads += f" (now {torch.get_num_threads()})"
    where = f"Expected at {rate:.1f} GB/s, measured on {bandwidth.date}{threads}"
    return f"{where}; a call's own tens of µs come on top."


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
