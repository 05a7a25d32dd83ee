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
from dataclasses import dataclass
from functools import cache, partial
from operator import add, gt
from typing import Any, NoReturn

import numpy as np
import torch

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
from thalweg.errors import describe, message
from thalweg.state.variable import Variable, VariableView
from thalweg.step.bulk import count_writes
from thalweg.step.recognition import Recognizer, recognizer
from thalweg.step.tensors import is_dense, same_order

__all__ = [
    "PLAIN_TYPES",
    "Launcher",
    "address_of",
    "are_readable",
    "dtype_of",
    "launcher_of",
    "lie_apart",
    "shape_of",
    "size_of",
]

_ITEM_COLUMNS, _ELEMENTS = 5, 3  # of an item: how many, and which holds its length
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
size_of: Callable[[object], int] = _Tensor.nbytes.__get__
PLAIN_TYPES = {torch.Tensor, torch.nn.Parameter, Variable}
# Whether torch is built for them: who asks the driver spoils it for forked processes.
_FOR_DEVICES = torch.accelerator.current_accelerator() is not None


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
        # Length and scalar row of the only item come last in its table, so that what
        # changes from call to call lies in one piece.
        num_tensors, start = len(self.dtypes), 8 * _ELEMENTS
        memory = np.zeros(8 * (_ITEM_COLUMNS + num_tensors + len(index)), np.uint8)
        parts = np.split(memory, [8 * _ITEM_COLUMNS, 8 * (_ITEM_COLUMNS + num_tensors)])
        items, pointers = (part.view(np.int64).reshape(1, -1) for part in parts[:2])
        scalars = parts[2].view(np.float64).reshape(1, -1)
        scalars[0, index[APPLY]] = 1.0
        layout = struct.Struct(f"2q{num_tensors}q{len(used)}d")
        self._write = partial(layout.pack_into, memory.data, start)
        self._launch = kernel.bind(items, pointers, scalars)
        tables = (items, pointers, scalars)
        addresses = (ctypes.c_void_p(table.ctypes.data) for table in tables)
        self._num_threads = ctypes.c_int(1)
        one = ctypes.c_int64(1)
        self._arguments = (one, *addresses, one, self._num_threads)
        self._count = 0
        self._function: Any = None
        self._run: Callable[[], None] = self._interpret

    def __call__(
        self, addresses: Sequence[int], count: int, numbers: Sequence[float]
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
        self._write(count, 0, *addresses, *numbers)
        self._num_threads.value = torch.get_num_threads()
        self._run()

    def _resize(self, count: int) -> None:
        self._count = count
        functions = self._kernel.functions(count)
        if functions and functions[-1] is not self._function:
            self._function = functions[-1]
            self._run = partial(self._function, *self._arguments)

    def _interpret(self) -> None:
        self._launch.num_elements = self._count
        self._launch(self._num_threads.value)


@dataclass(slots=True)
class _Known:
    """Tensors of a kind.

    Attributes:
        is_like: What tells them; they are not each other.
        launch: Their launch.
        count: Their elements.
        sizes: Bytes of each.
        addresses: Where some of them lay, each in a place of its own.
    """

    is_like: Recognizer
    launch: _SingleLaunch
    count: int
    sizes: Sequence[int]
    addresses: list[int]


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
        self._last: _Known | None = None
        self._made: dict[tuple[torch.dtype, ...], _SingleLaunch | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Tables hold addresses of this process; a copy makes its own.
        return Launcher, (self._rule, self._flags)

    def again(self, tensors: Sequence[Any], numbers: Sequence[float]) -> bool:
        """Apply the rule if the tensors are like those of an earlier launch.

        Args:
            tensors: What may be variable, slots and gradient, as many as the rule has.
            numbers: One for each scalar of the rule, in its order.

        Returns:
            False, with nothing written, where a closer look is needed; see `launch`.
        """
        known = self._last
        if known is None or not known.is_like(*tensors):
            if VariableView in map(type, tensors):
                tensors = [t.handle if type(t) is VariableView else t for t in tensors]
            known = self._find(tensors)
            if known is None:
                return False
        addresses = list(map(address_of, tensors))
        if addresses != known.addresses:
            if not lie_apart(addresses, known.sizes):
                return False
            known.addresses = addresses
        known.launch(addresses, known.count, numbers)
        count_writes(tensors[:-1])
        return True

    def _find(self, handles: Sequence[Any]) -> _Known | None:
        """What is known of tensors like these; it is asked first from now on."""
        shape = getattr(handles[0], "shape", None)
        for known in self._known.get(shape, ()):
            if known.is_like(*handles):
                self._last = known
                return known
        return None

    def launch(self, tensors: Sequence[torch.Tensor], numbers: Sequence[float]) -> bool:
        """Apply the rule by a kernel, which is compiled if it is new.

        Args:
            tensors: Variable, slots, gradient, of one number of elements.
            numbers: One for each scalar of the rule, in its order.

        Returns:
            False, with nothing written, where a kernel cannot run straight on these
            tensors: another device, variable and slots whose elements do not lie alike
            and without gaps, integers, or a rule that must know shapes.

        Raises:
            ValueError: If the memory of one was taken away; nothing is written then.
        """
        laid = _in_one_order(tensors)
        if laid is None:
            return False
        launch = self._launch_for(tuple(t.dtype for t in laid))
        if launch is None:
            return False
        count = laid[0].numel()
        if count == 0:
            return True
        addresses = [t.data_ptr() for t in laid]
        if 0 in addresses:
            self._refuse(laid[addresses.index(0)])
        launch(addresses, count, numbers)
        count_writes(laid[:-1])
        self._remember(laid, launch)
        return True

    def _refuse(self, tensor: torch.Tensor) -> NoReturn:
        raise ValueError(
            message(
                f"rule {self._rule.name}",
                "tensors with memory",
                f"a {describe(tensor)} whose storage was emptied",
                "Nothing was written; give it memory, or pass a copy.",
            )
        )

    def _remember(self, tensors: Sequence[torch.Tensor], launch: _SingleLaunch) -> None:
        """Let tensors like these be recognized from now on."""
        shapes = list(map(shape_of, tensors))
        is_plain = set(map(type, tensors)) <= PLAIN_TYPES
        if not is_plain or shapes.count(shapes[0]) < len(shapes):
            return
        addresses = list(map(address_of, tensors))
        if not lie_apart(addresses, list(map(size_of, tensors))):  # never recognized
            return
        if self._find(tensors) is not None:
            return
        if len(self._known) == _MOST_KNOWN:
            self._known.clear()
        known = self._known.setdefault(shapes[0], [])
        count, sizes = tensors[0].numel(), list(map(size_of, tensors))
        known.insert(0, _Known(recognizer(tensors), launch, count, sizes, []))
        del known[_MOST_KINDS:]

    def _launch_for(self, dtypes: tuple[torch.dtype, ...]) -> _SingleLaunch | None:
        """The launch for these dtypes; None if the rule needs to know shapes."""
        if dtypes not in self._made:
            kernel = _kernel(self._rule, self._flags, dtypes)
            self._made[dtypes] = None if kernel is None else _SingleLaunch(kernel)
        return self._made[dtypes]


def _in_one_order(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor] | None:
    """Tensors whose elements lie alike; a gradient that does not is copied."""
    *written, grad = tensors
    var = written[0]
    if not all(t.is_cpu for t in tensors) or any(t.is_neg() for t in written):
        return None
    if all(t.is_contiguous() for t in tensors) and not grad.is_neg():
        return tensors
    alike = all(t.shape == var.shape and same_order(t, var) for t in written)
    if not (alike and is_dense(var) and grad.shape == var.shape):
        return None
    if not same_order(grad, var) or grad.is_neg():
        with torch.no_grad():
            grad = torch.empty_like(var, dtype=grad.dtype).copy_(grad)
    return [*written, grad]


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


def lie_apart(addresses: Iterable[int], sizes: Iterable[int]) -> bool:
    """Whether each of some tensors has memory, and shares none with another.

    Args:
        addresses: Where they begin; 0 for one without memory.
        sizes: Bytes of each.
    """
    ends = sorted(map(add, addresses, sizes))
    first, *others = sorted(addresses)
    return first > 0 and not any(map(gt, ends, others))


def are_readable(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether all are on the CPU, contiguous, and not lazily negated.

    Args:
        tensors: Plain ones; those without memory have the address 0.

    Raises:
        RuntimeError: If one is sparse.
    """
    return (
        (not _FOR_DEVICES or all(map(_is_on_cpu, tensors)))
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
