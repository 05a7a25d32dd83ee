"""What a step will do, as text: variable, rule, kernel, bytes, expected time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from thalweg.compiler import KernelKey, compile_rule
from thalweg.compiler.graph import Space, operands_of
from thalweg.compiler.program import Program
from thalweg.compiler.triton_kernel import has_triton
from thalweg.step.bandwidth import Bandwidth, read_bandwidth
from thalweg.step.compose import GRADIENT_SCALE
from thalweg.step.group import Member

__all__ = ["explain"]

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True)
class _Use:
    """One variable of a step.

    Attributes:
        name: Of the variable.
        member: Variable, slots and rule.
        key: Its kernel.
        program: What the kernel is made from.
        num_bytes: Bytes that a dense update reads and writes.
        bandwidth: That of its device, if it was measured.
    """

    name: str
    member: Member
    key: KernelKey
    program: Program
    num_bytes: int
    bandwidth: Bandwidth | None

    @property
    def group(self) -> tuple[KernelKey, torch.device]:
        """What the variables of one launch have in common."""
        return self.key, self.member.var.device


_Group = Sequence[_Use]
_HEAD = ("variable", "shape", "rule", "kernel", "bytes", "expected")
_KERNEL_HEAD = ("kernel", "runs in", "dtypes", "variables", "bytes", "expected")


def explain(title: str, members: Iterable[tuple[str, Member, torch.dtype]]) -> str:
    """Say which kernel updates which variable, and how long that should take.

    Args:
        title: What to call the optimizer.
        members: Names of variables, how each is updated, and the dtypes of their
            gradients.

    Returns:
        A table with a line for each variable, then one for each kernel; a kernel is
        one launch. Times are bytes over the bandwidth that ``thalweg bench``
        measured.
    """
    uses = [_use(*member) for member in members]
    if not uses:
        return f"{title}: nothing is built yet. Call build(model) or take a step."
    groups: dict[object, list[_Use]] = {}
    for use in uses:
        groups.setdefault(use.group, []).append(use)
    labels = {
        group: f"{held[0].key.rule.name} #{number}"
        for number, (group, held) in enumerate(groups.items(), start=1)
    }
    counts = f"variables: {len(uses)}, launches: {len(groups)}"
    kernels = (_kernel_row(labels[group], held) for group, held in groups.items())
    lines = [
        f"{title}: {counts}, {_size(_total(uses))}, {_time(uses)}",
        *dict.fromkeys(_source(use.bandwidth) for use in uses),
        "",
        *_table([_HEAD, *(_row(labels[use.group], use) for use in uses)]),
        "",
        *_table([_KERNEL_HEAD, *kernels]),
    ]
    return "\n".join(lines)


def _use(name: str, member: Member, gradient: torch.dtype) -> _Use:
    key, program = member.key(gradient), member.program()
    num_bytes = _num_bytes(program, member, gradient)
    return _Use(name, member, key, program, num_bytes, _bandwidth(member.var.device))


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
    shape = "×".join(map(str, use.member.var.shape)) or "()"
    size, time = _size(use.num_bytes), _time([use])
    return (use.name, shape, use.key.rule.name, label, size, time)


def _kernel_row(label: str, uses: _Group) -> tuple[str, ...]:
    key, passes = uses[0].key, uses[0].program.num_passes
    place = _place(*uses[0].group) + (f", {passes} passes" if passes > 1 else "")
    size, time = _size(_total(uses)), _time(uses)
    return (label, place, _dtypes(key), str(len(uses)), size, time)


def _place(key: KernelKey, device: torch.device) -> str:
    if device.type == "cpu":
        return "C" if compile_rule(key).backend == "c" else "interpreter"
    return "Triton" if device.type == "cuda" and has_triton() else "interpreter"


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
    return f"{microseconds:.2f} µs"


def _source(bandwidth: Bandwidth | None) -> str:
    if bandwidth is None:
        return "The bandwidth of a device is not known; say `thalweg bench`."
    rate = bandwidth.bytes_per_second / 1e9
    threads = f"{bandwidth.threads} thread{'s' if bandwidth.threads > 1 else ''}"
    return f"Expected at {rate:.1f} GB/s, measured on {bandwidth.date}, {threads}."


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
