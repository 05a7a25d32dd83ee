"""Compile keys: trace, emit, build, and remember."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import resources

from thalweg.compiler.build import build, can_compile
from thalweg.compiler.emit_c import Statements, identifier
from thalweg.compiler.emit_triton import emit_triton
from thalweg.compiler.interpret import program_for, program_of
from thalweg.compiler.kernel import Kernel
from thalweg.compiler.key import KernelKey
from thalweg.compiler.program import Program
from thalweg.compiler.rule import Rule
from thalweg.compiler.skeleton_c import emit_kernel
from thalweg.compiler.trace import ShapeNeededError
from thalweg.errors import message

__all__ = [
    "clear",
    "compile_rule",
    "compile_rules",
    "kernel_source",
    "reads_shape",
    "shape_read",
]

_KERNELS: dict[KernelKey, Kernel] = {}
_LOCK = threading.RLock()


def compile_rule(key: KernelKey) -> Kernel:
    """The kernel of a key; made once in a process.

    Args:
        key: Rule, flags, dtypes, mode.

    Returns:
        The kernel. Without a working compiler it interprets.

    Raises:
        TraceError: If the rule cannot be compiled; see `trace`.

    Example:
        >>> import torch
        >>> def descent(var, delta, *, alpha):
        ...     return var - alpha * delta
        >>> kernel = compile_rule(KernelKey(Rule.of(descent), (), (torch.float32,) * 2))
        >>> kernel.columns.names
        ('alpha', 'apply')
    """
    return compile_rules([key])[0]


def compile_rules(keys: Iterable[KernelKey]) -> list[Kernel]:
    """The kernels of several keys; those that are missing are built together.

    Args:
        keys: The keys; repeated ones are compiled once.

    Returns:
        A kernel for each key, in order.

    Raises:
        TraceError: If one of the rules cannot be compiled; then nothing is built.
    """
    wanted = list(keys)
    with _LOCK:
        missing = [key for key in dict.fromkeys(wanted) if key not in _KERNELS]
        if missing:
            _build(missing)
        return [_KERNELS[key] for key in wanted]


def kernel_source(key: KernelKey, device: str = "cpu") -> str:
    """The text of one kernel, to read; nothing is built and no device is needed.

    Args:
        key: Rule, flags, dtypes, mode.
        device: "cpu" for C, without the part all kernels share; "cuda" for Triton.

    Returns:
        C text, or a Python module.

    Raises:
        ValueError: If the device is another one.
        TraceError: If the rule cannot be compiled for the device.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(
            message(
                "kernel_source", "'cpu' or 'cuda'", repr(device), "Choose one of them."
            )
        )
    if device == "cuda":
        return emit_triton(program_for(key), key.dtypes, key.mode)
    return _emit(key, program_for(key), _name(key.rule))


def reads_shape(
    rule: Rule, flags: Sequence[tuple[str, bool]], layouts: Sequence[str] = ()
) -> bool:
    """Whether a key of this rule needs the variable's shape.

    Args:
        rule: The rule.
        flags: A bool for each flag, as pairs.
        layouts: For each slot "like", "row" or "scalar".

    Returns:
        True if the rule asks for shape or ndim, or counts axes from the front.
    """
    return not _is_enough(rule, tuple(sorted(flags)), tuple(layouts), None)


def shape_read(
    rule: Rule,
    flags: Sequence[tuple[str, bool]],
    layouts: Sequence[str],
    shape: Sequence[int],
) -> tuple[int | None, ...] | None:
    """What a rule reads of a variable's shape, for its key.

    Variables that agree in it share a kernel.

    Args:
        rule: The rule.
        flags: A bool for each flag, as pairs.
        layouts: For each slot "like", "row" or "scalar".
        shape: Global shape of the variable.

    Returns:
        None if it reads nothing; None for each axis if only their number, or counts
        axes from the front; else the shape.

    Example:
        >>> def halved(var, grad, *, lr):
        ...     return var - lr * grad if var.ndim > 1 else var
        >>> shape_read(Rule.of(halved), (), (), (3, 5))
        (None, None)
    """
    pairs, kinds = tuple(sorted(flags)), tuple(layouts)
    for known in (None, (None,) * len(shape)):
        if _is_enough(rule, pairs, kinds, known):
            return known
    return tuple(shape)


@lru_cache(maxsize=4096)
def _is_enough(
    rule: Rule,
    flags: tuple[tuple[str, bool], ...],
    layouts: tuple[str, ...],
    shape: tuple[int | None, ...] | None,
) -> bool:
    """Whether a rule asks for no more of the shape than this."""
    try:
        program_of(rule, flags, layouts, (), shape)
    except ShapeNeededError:
        return False
    return True


def clear() -> None:
    """Forget all kernels of this process; those on disk stay."""
    with _LOCK:
        _KERNELS.clear()


def _name(rule: Rule) -> str:
    # A rule may be called like a function of the C library.
    return f"rule_{identifier(rule.name.replace('.', '_'))}"


def _emit(key: KernelKey, program: Program, name: str) -> str:
    return emit_kernel(Statements(program, key.dtypes), name, key.mode)


def _build(keys: Sequence[KernelKey]) -> None:
    """Make kernels in one unit; each by itself if that one cannot be compiled."""
    programs = [program_for(key) for key in keys]
    names = _unique([_name(key.rule) for key in keys])
    texts = [_emit(k, p, n) for k, p, n in zip(keys, programs, names, strict=True)]
    files = ["runtime.c"] + ["rounding.c"] * any(key.rounding for key in keys)
    shared = [_resource(file) for file in files]
    library = build("\n".join([*shared, *texts]))
    if library is None and len(keys) > 1 and can_compile():
        for key in keys:
            _build([key])
        return
    for key, program, name, text in zip(keys, programs, names, texts, strict=True):
        _KERNELS[key] = Kernel(key, program, name, text, library)


def _resource(file: str) -> str:
    return resources.files("thalweg.compiler").joinpath(file).read_text("utf-8")


def _unique(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    unique: list[str] = []
    for name in names:
        number = seen[name] = seen.get(name, 0) + 1
        unique.append(name if number == 1 else f"{name}__{number}")
    return unique
