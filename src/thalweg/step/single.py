"""One kernel for one variable at a time: what a raw op called from Python runs.

A call on a small tensor takes less time than a handful of Python statements, so that
what can be known beforehand is: a launch keeps its tables, the addresses of the
tables, and the places where numbers go in them. Whether the tensors
are like those of an earlier call is asked in one call of C++.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import increment_version

from thalweg.compiler import (
    APPLY,
    NUM_ELEMENTS,
    ROW_LENGTH,
    Kernel,
    KernelKey,
    Rule,
    compile_rule,
    reads_shape,
)
from thalweg.state import Variable
from thalweg.step.recognition import Recognizer, recognizer

__all__ = [
    "PLAIN_TYPES",
    "Launcher",
    "address_of",
    "are_readable",
    "dtype_of",
    "launcher_of",
    "shape_of",
]

_ELEMENTS = 3  # the column of an item that holds its length
_MOST_KNOWN = 4096
_MOST_KINDS = 8  # of one shape: parameters, tensors, other dtypes
_KNOWN_SHAPE_ONLY = {ROW_LENGTH, NUM_ELEMENTS}

# Attributes read in C; any of them asked of a subclass runs Python otherwise.
_Tensor: Any = torch.Tensor
shape_of: Callable[[object], Any] = _Tensor.shape.__get__
dtype_of: Callable[[object], Any] = _Tensor.dtype.__get__
_is_on_cpu: Callable[[object], bool] = _Tensor.is_cpu.__get__
_is_contiguous: Callable[[object], bool] = _Tensor.is_contiguous
_is_negated: Callable[[object], bool] = _Tensor.is_neg
address_of: Callable[[object], int] = _Tensor.data_ptr
PLAIN_TYPES = {torch.Tensor, torch.nn.Parameter, Variable}
_HAS_DEVICES = torch.accelerator.is_available()


class _SingleLaunch:
    """A kernel with tables for one variable, written anew for each call."""

    def __init__(self, kernel: Kernel) -> None:
        index = kernel.columns.index
        self.dtypes = kernel.key.dtypes
        self._kernel = kernel
        # The numbers of the rule are the first columns, in the rule's order, so that
        # addresses and numbers lie side by side.
        names = kernel.key.rule.scalars
        used = [number for number, name in enumerate(names) if name in index]
        self._used = None if len(used) == len(names) else used
        num_tensors = len(self.dtypes)
        memory = np.zeros(8 * (num_tensors + len(index)), dtype=np.uint8)
        pointers = memory[: 8 * num_tensors].view(np.int64).reshape(1, -1)
        scalars = memory[8 * num_tensors :].view(np.float64).reshape(1, -1)
        scalars[0, index[APPLY]] = 1.0
        self._items = np.zeros((1, 5), dtype=np.int64)
        layout = struct.Struct(f"{num_tensors}q{len(used)}d")
        self._write = partial(layout.pack_into, memory.data, 0)
        self._launch = kernel.bind(self._items, pointers, scalars)
        tables = (self._items, pointers, scalars)
        addresses = (ctypes.c_void_p(table.ctypes.data) for table in tables)
        self._arguments = (ctypes.c_int64(1), *addresses, ctypes.c_int64(1))
        self._count = 0
        self._function: Callable[..., None] = self._interpret

    def __call__(
        self, addresses: Iterable[int], count: int, numbers: Sequence[float]
    ) -> None:
        """Update a variable and its slots.

        Args:
            addresses: Of variable, slots, gradient: contiguous, on the CPU.
            count: Elements of each, at least one.
            numbers: One for each scalar of the rule, in its order.
        """
        if count != self._count:
            self._resize(count)
        if self._used is not None:
            numbers = [numbers[number] for number in self._used]
        self._write(*addresses, *numbers)
        self._function(*self._arguments, torch.get_num_threads())

    def _resize(self, count: int) -> None:
        self._items[0, _ELEMENTS] = self._launch.num_elements = self._count = count
        functions = self._kernel.functions(count)
        self._function = functions[-1] if functions else self._interpret

    def _interpret(self, *arguments: Any) -> None:
        self._launch(arguments[-1])


_Known = tuple[Recognizer, _SingleLaunch, int]


class Launcher(threading.local):
    """A rule with some flags, applied to whole tensors that are like earlier ones.

    Tables belong to a thread: a long launch lets other threads run.

    Args:
        rule: The rule.
        flags: Value of each of its flags, as sorted pairs.
    """

    def __init__(self, rule: Rule, flags: tuple[tuple[str, bool], ...]) -> None:
        self._rule = rule
        self._flags = flags
        self._known: dict[object, list[_Known]] = {}
        self._made: dict[tuple[torch.dtype, ...], _SingleLaunch | None] = {}

    def again(self, tensors: Sequence[Any], numbers: Sequence[float]) -> bool:
        """Apply the rule if the tensors are like those of an earlier launch.

        Args:
            tensors: What may be variable, slots and gradient, as many as the rule has.
            numbers: One for each scalar of the rule, in its order.

        Returns:
            False, with nothing written, where a closer look is needed; see `launch`.
        """
        handles = [t.handle if type(t) is Variable else t for t in tensors]
        shape = getattr(handles[0], "shape", None)
        for is_like, launch, count in self._known.get(shape, ()):
            if is_like(*handles):
                launch(map(address_of, handles), count, numbers)
                increment_version(handles[:-1])
                return True
        return False

    def launch(self, tensors: Sequence[torch.Tensor], numbers: Sequence[float]) -> bool:
        """Apply the rule by a kernel, which is compiled if it is new.

        Args:
            tensors: Variable, slots, gradient, of one number of elements.
            numbers: One for each scalar of the rule, in its order.

        Returns:
            False, with nothing written, where a kernel cannot run straight on these
            tensors: another device, gaps between elements, integers, or a rule that
            must know shapes.
        """
        for tensor in tensors:
            if not (tensor.is_cpu and tensor.is_contiguous()) or tensor.is_neg():
                return False
        launch = self._launch_for(tuple(t.dtype for t in tensors))
        if launch is None:
            return False
        count = tensors[0].numel()
        if count == 0:
            return True
        launch([t.data_ptr() for t in tensors], count, numbers)
        increment_version(tensors[:-1])
        self._remember(tensors, launch)
        return True

    def _remember(self, tensors: Sequence[torch.Tensor], launch: _SingleLaunch) -> None:
        """Let tensors like these be recognized from now on."""
        shapes = list(map(shape_of, tensors))
        is_plain = set(map(type, tensors)) <= PLAIN_TYPES
        if not is_plain or shapes.count(shapes[0]) < len(shapes):
            return
        if len(self._known) == _MOST_KNOWN:
            self._known.clear()
        known = self._known.setdefault(shapes[0], [])
        if len(known) < _MOST_KINDS:
            known.append((recognizer(tensors), launch, tensors[0].numel()))

    def _launch_for(self, dtypes: tuple[torch.dtype, ...]) -> _SingleLaunch | None:
        """The launch for these dtypes; None if the rule needs to know shapes."""
        if dtypes not in self._made:
            kernel = _kernel(self._rule, self._flags, dtypes)
            self._made[dtypes] = None if kernel is None else _SingleLaunch(kernel)
        return self._made[dtypes]


@cache
def _launcher_of(rule: Rule, flags: tuple[tuple[str, bool], ...]) -> Launcher:
    return Launcher(rule, flags)


def launcher_of(rule: Rule, flags: Mapping[str, bool]) -> Launcher:
    """The launcher of a rule; the same object for the same rule and flags.

    Args:
        rule: The rule.
        flags: Value of each of its flags.
    """
    return _launcher_of(rule, tuple(sorted(flags.items())))


def are_readable(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether all are on the CPU, contiguous, and not lazily negated.

    Args:
        tensors: Plain ones; those without memory have the address 0.

    Raises:
        RuntimeError: If one is sparse.
    """
    return (
        (not _HAS_DEVICES or all(map(_is_on_cpu, tensors)))
        and all(map(_is_contiguous, tensors))
        and not any(map(_is_negated, tensors))
    )


def _kernel(
    rule: Rule, flags: tuple[tuple[str, bool], ...], dtypes: tuple[torch.dtype, ...]
) -> Kernel | None:
    """A kernel that needs no more than addresses and a number of elements."""
    if not all(d.is_floating_point for d in dtypes) or reads_shape(rule, flags):
        return None
    kernel = compile_rule(KernelKey(rule, flags, dtypes))
    needs_shape = _KNOWN_SHAPE_ONLY & set(kernel.columns.names)
    return None if kernel.num_passes > 1 or needs_shape else kernel
