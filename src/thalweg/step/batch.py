"""Calls of raw ops that are launched together, at the end of an optimizer's step.

A class that updates variable by variable and never reads what it has written may say
so; then the raw ops it calls are collected, and those that run one kernel are launched
at once. The calls of a step are most often those of the step before, with other
gradients and numbers. Then the tables of that step are used again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, compress, repeat
from operator import is_, itemgetter
from typing import Any

import numpy as np
import torch
from torch._C import DisableTorchFunctionSubclass
from torch.autograd.graph import increment_version

from thalweg.compiler import KernelKey, Rule, compile_rules, reads_shape
from thalweg.state import Variable
from thalweg.step.group import Group, Member
from thalweg.step.recognition import recognizer
from thalweg.step.single import (
    PLAIN_TYPES,
    address_of,
    are_readable,
    dtype_of,
    shape_of,
)

__all__ = [
    "Action",
    "Batch",
    "calling",
    "flush",
    "inside_step",
    "is_inside_step",
]

_Tensor: Any = torch.Tensor
_size_of: Callable[[object], int] = _Tensor.nbytes.__get__


@dataclass(frozen=True, eq=False, slots=True)
class Action:
    """What a raw op does with a variable: the same object for the same flags.

    Attributes:
        rule: The rule.
        flags: Value of each of its flags.
        now: Checks the tensors of a call, and updates the variable by itself.
    """

    rule: Rule
    flags: Mapping[str, bool]
    now: Callable[[Sequence[Any], Sequence[float]], None]


Call = tuple[Action, tuple[Any, ...], Sequence[float]]
"""A call of a raw op that updates a whole variable: what was given as variable, slots
and gradient, and a number for each scalar of the rule."""


class Batch:
    """Calls that wait for each other, and the tables they were launched with before.

    It is kept from step to step by the optimizer whose raw ops it collects.
    """

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._replays: list[_Replay | None] = []
        self._number = 0
        self.append = self._calls.append

    def __reduce__(self) -> tuple[type[Batch], tuple[()]]:
        # Tables hold addresses of this process; a copy makes its own.
        return Batch, ()

    @property
    def num_waiting(self) -> int:
        """How many calls have not been launched yet."""
        return len(self._calls)

    def start(self) -> None:
        """Begin a step; what waits is forgotten."""
        self._calls.clear()
        self._number = 0

    def launch(self) -> None:
        """Launch what waits, in an order that cannot be told from that of the calls.

        Raises:
            TypeError: If a call was wrong; see the op. Those before it are done.
            ValueError: If a call was wrong; see the op. Those before it are done.
        """
        calls = self._calls.copy()
        self._calls.clear()
        if not calls:
            return
        number, self._number = self._number, self._number + 1
        if number == len(self._replays):
            self._replays.append(None)
        replay = self._replays[number]
        if replay is not None and replay.run(calls):
            return
        for action, tensors, numbers in calls:
            action.now(tensors, numbers)
        self._replays[number] = _replay_of(calls)


class _State(threading.local):
    """What raw ops called in this thread are part of.

    Attributes:
        depth: How many steps of optimizers are going on.
        batch: What collects the raw ops called now, if anything does.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.batch: Batch | None = None


calling = _State()


@contextmanager
def inside_step(batch: Batch | None = None) -> Generator[None]:
    """Open the scope of an optimizer's step.

    Args:
        batch: Collects the raw ops called in it, and launches them when the scope is
            left; None: each acts at once. If the scope is left by an exception, what
            waits is forgotten.
    """
    outer = calling.batch
    if batch is not None:
        batch.start()
    calling.depth += 1
    calling.batch = batch
    try:
        yield
        flush()
    finally:
        calling.depth -= 1
        calling.batch = outer
        if batch is not None:
            batch.start()


def is_inside_step() -> bool:
    """Whether an optimizer's step is going on in this thread."""
    return calling.depth > 0


def flush() -> None:
    """Launch what waits, before something else reads or writes variables."""
    batch = calling.batch
    if batch is None or not batch.num_waiting:
        return
    # Launching one call by itself must not make it wait again.
    calling.batch = None
    try:
        batch.launch()
    finally:
        calling.batch = batch


# -- the calls of a step, once more -------------------------------------------

_action_of: Callable[[Call], Action] = itemgetter(0)
_tensors_of: Callable[[Call], tuple[Any, ...]] = itemgetter(1)
_numbers_of: Callable[[Call], Sequence[float]] = itemgetter(2)
_last: Callable[[Sequence[Any]], Any] = itemgetter(-1)


class _Replay:
    """The tables of calls whose variables and slots share no memory."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._actions = list(map(_action_of, calls))
        self._given = _all_written(calls)
        self._is_written = [
            number < len(tensors) - 1
            for _, tensors, _ in calls
            for number in range(len(tensors))
        ]
        self._handles = list(map(_handle_of, self._given))
        self._addresses = _addresses(self._handles)
        gradients = _gradients(calls)
        self._is_like = recognizer(gradients)
        self._sizes = np.array(list(map(_size_of, gradients)), dtype=np.int64)
        self._spans = _spans(self._handles)
        self._groups = _groups(calls)

    def run(self, calls: Sequence[Call]) -> bool:
        """Launch these calls; False, with nothing written, if they are others."""
        gradients = _gradients(calls)
        with DisableTorchFunctionSubclass():
            if not (self._is_same(calls) and self._is_like(*gradients)):
                return False
            addresses = np.array(_addresses(gradients), dtype=np.int64)
            # Without memory, as on the device "meta", the address is 0.
            if not addresses.all() or self._reads_written(addresses):
                return False
        num_threads = torch.get_num_threads()
        for group in self._groups:
            group.write_gradients(addresses)
            group.write_scalars(_columns_of(group, calls))
        for group in self._groups:
            group.run(num_threads)
        increment_version(self._handles)
        return True

    def _is_same(self, calls: Sequence[Call]) -> bool:
        """Whether they write the same variables and slots by the same rules."""
        # The same actions take as many tensors as before.
        return (
            list(map(_action_of, calls)) == self._actions
            and all(map(is_, compress(_flat(calls), self._is_written), self._given))
            and _addresses(self._handles) == self._addresses
        )

    def _reads_written(self, addresses: np.ndarray) -> bool:
        """Whether a gradient lies in the memory of a variable or slot."""
        starts, ends = self._spans
        before = np.searchsorted(starts, addresses + self._sizes) - 1
        return bool((ends[before] > addresses)[before >= 0].any())


def _replay_of(calls: Sequence[Call]) -> _Replay | None:
    """Tables for these calls, if they can be launched in any order."""
    flat = list(_flat(calls))
    if not set(map(type, flat)) <= PLAIN_TYPES:
        return None
    handles = list(map(_handle_of, flat))
    if not _are_readable(handles) or 0 in _addresses(handles):
        return None
    starts, ends = _spans([_handle_of(t) for t in _all_written(calls)])
    if (ends[:-1] > starts[1:]).any():
        return None
    is_launched = Variable not in set(map(type, _gradients(calls)))
    return _Replay(calls) if is_launched and all(map(_has_kernel, calls)) else None


def _has_kernel(call: Call) -> bool:
    action, tensors, _ = call
    handles = list(map(_handle_of, tensors))
    shapes = list(map(shape_of, handles))
    return (
        shapes.count(shapes[0]) == len(shapes)
        and all(handle.is_floating_point() for handle in handles)
        and not reads_shape(action.rule, tuple(sorted(action.flags.items())))
    )


def _groups(calls: Sequence[Call]) -> list[Group]:
    """The calls by kernel; a call's numbers stand in the row of its place there."""
    positions: dict[KernelKey, list[int]] = {}
    members: list[Member] = []
    for number, (action, given, _) in enumerate(calls):
        tensors = tuple(map(_handle_of, given))
        flags = tuple(sorted(action.flags.items()))
        key = KernelKey(action.rule, flags, tuple(map(dtype_of, tensors)))
        own = positions.setdefault(key, [])
        members.append(Member(action.rule, tensors[:-1], (), len(own), flags))
        own.append(number)
    kernels = compile_rules(positions)
    groups: list[Group] = []
    for kernel, chosen in zip(kernels, positions.values(), strict=True):
        own = [members[i] for i in chosen]
        groups.append(Group(kernel, own, chosen, owns_rows=True))
    return groups


def _columns_of(group: Group, calls: Sequence[Call]) -> Mapping[str, np.ndarray]:
    """A group's numbers, by name and place of the call in the group."""
    names, positions = group.kernel.key.rule.scalars, group.positions
    own = calls if len(positions) == len(calls) else [calls[i] for i in positions]
    numbers = list(map(_numbers_of, own))
    if all(map(is_, numbers, repeat(numbers[0]))):
        table = np.broadcast_to(np.array(numbers[0]), (len(own), len(names)))
    else:
        flat = np.fromiter(chain.from_iterable(numbers), np.float64)
        table = flat.reshape(len(own), len(names))
    return dict(zip(names, table.T, strict=True))


def _handle_of(tensor: Any) -> Any:
    return tensor.handle if type(tensor) is Variable else tensor


def _flat(calls: Sequence[Call]) -> Iterator[Any]:
    return chain.from_iterable(map(_tensors_of, calls))


def _all_written(calls: Sequence[Call]) -> list[Any]:
    return [tensor for _, tensors, _ in calls for tensor in tensors[:-1]]


def _gradients(calls: Sequence[Call]) -> list[Any]:
    return list(map(_last, map(_tensors_of, calls)))


def _addresses(tensors: Sequence[Any]) -> list[int]:
    return list(map(address_of, tensors))


def _spans(tensors: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Where the memory of each begins and ends, sorted."""
    starts = np.array(_addresses(tensors), dtype=np.int64)
    ends = starts + np.array([_size_of(tensor) for tensor in tensors], dtype=np.int64)
    order = np.argsort(starts, kind="stable")
    return starts[order], ends[order]


def _are_readable(tensors: Sequence[Any]) -> bool:
    try:
        return are_readable(tensors)
    except RuntimeError:
        return False
