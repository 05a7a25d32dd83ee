"""Calls of raw ops that are launched together, at the end of an optimizer's step.

A class that updates variable by variable and never reads what it has written may say
so; then the raw ops it calls are collected, and those that run one kernel are launched
at once. The calls of a step are most often those of the step before, with other
gradients and numbers. Then the tables of that step are used again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain, compress, islice, repeat
from operator import is_, itemgetter, not_
from typing import Any

import numpy as np
import torch
from torch.compiler import is_dynamo_compiling

from thalweg.compiler import KernelKey, Rule, compile_rules, reads_shape
from thalweg.compiler.triton_tables import is_capturing
from thalweg.state.variable import VariableView
from thalweg.step.bulk import Addresses, Apart, Places, Writes
from thalweg.step.captures import keep_captured
from thalweg.step.device_group import DeviceGroup
from thalweg.step.device_kernel import has_device_kernels
from thalweg.step.group import Group, Member
from thalweg.step.overlaps import extent
from thalweg.step.recognition import recognizer
from thalweg.step.single import (
    PLAIN_TYPES,
    address_of,
    are_readable,
    dtype_of,
    shape_of,
    size_of,
)

__all__ = [
    "Action",
    "Batch",
    "Deed",
    "batch_in_force",
    "flush",
    "inside_step",
    "is_inside_step",
]


@dataclass(frozen=True, eq=False, slots=True)
class Action:
    """What a raw op does with a variable: the same object for the same flags.

    Attributes:
        rule: The rule.
        flags: Value of each of its flags.
        again: Updates the variable if the tensors are like those of a call before,
            and says whether it did.
        now: Checks the tensors of a call, and updates the variable by itself.
    """

    rule: Rule
    flags: Mapping[str, bool]
    again: Callable[[Sequence[Any], Sequence[float]], bool]
    now: Callable[[Sequence[Any], Sequence[float]], None]


Deed = tuple[Action, tuple[float, ...]]
"""An action, and a number for each scalar of its rule."""


class Batch:
    """Calls of raw ops that wait for each other, and the tables of earlier steps.

    It is kept from step to step by the optimizer whose raw ops it collects. A call is
    a deed, and what was given as variable, slots and gradient. The tensors of all calls
    lie in one list: a tuple for each call would keep the garbage collector busy.
    """

    def __init__(self) -> None:
        self._deeds: list[Deed] = []
        self._tensors: list[Any] = []
        self._replays: list[_Replay | None] = []
        self._number = 0
        self.add_deed = self._deeds.append
        self.add_tensors = self._tensors.extend

    def __reduce__(self) -> tuple[type[Batch], tuple[()]]:
        # Tables hold addresses of this process; a copy makes its own.
        return Batch, ()

    @property
    def num_waiting(self) -> int:
        """How many calls have not been launched yet."""
        return len(self._deeds)

    def start(self) -> None:
        """Begin a step; what waits is forgotten."""
        self._deeds.clear()
        self._tensors.clear()
        self._number = 0

    def launch(self) -> None:
        """Launch what waits, in an order that cannot be told from that of the calls.

        Raises:
            TypeError: If a call was wrong; see the op. Those before it are done.
            ValueError: If a call was wrong; see the op. Those before it are done.
        """
        deeds, tensors = self._deeds.copy(), self._tensors.copy()
        self._deeds.clear()
        self._tensors.clear()
        if not deeds:
            return
        number, self._number = self._number, self._number + 1
        if number == len(self._replays):
            self._replays.append(None)
        replay = self._replays[number]
        if replay is not None and replay.run(deeds, tensors):
            return
        calls = _calls(deeds, tensors)
        for action, numbers, given in calls:
            action.now(given, numbers)
        self._replays[number] = _replay_of(calls)


# How many steps of optimizers are going on in this thread, and what collects the raw
# ops called now, if anything does. A context variable is read in C.
_depth: ContextVar[int] = ContextVar("depth", default=0)
_batch: ContextVar[Batch | None] = ContextVar("batch", default=None)
batch_in_force: Callable[[], Batch | None] = _batch.get


@contextmanager
def inside_step(batch: Batch | None = None) -> Generator[None]:
    """Open the scope of an optimizer's step.

    Args:
        batch: Collects the raw ops called in it, and launches them when the scope is
            left; None: each acts at once. If the scope is left by an exception, what
            waits is forgotten.
    """
    if batch is not None:
        batch.start()
    depth, outer = _depth.set(_depth.get() + 1), _batch.set(batch)
    try:
        yield
        flush()
    finally:
        _depth.reset(depth)
        _batch.reset(outer)
        if batch is not None:
            batch.start()


def is_inside_step() -> bool:
    """Whether an optimizer's step is going on in this thread."""
    return _depth.get() > 0


def flush() -> None:
    """Launch what waits, before something else reads or writes variables."""
    if is_dynamo_compiling():  # nothing waits while Python is traced
        return
    batch = _batch.get()
    if batch is None or not batch.num_waiting:
        return
    # Launching one call by itself must not make it wait again.
    outer = _batch.set(None)
    try:
        batch.launch()
    finally:
        _batch.reset(outer)


# -- the calls of a step, once more -------------------------------------------

_action_of: Callable[[Sequence[Any]], Action] = itemgetter(0)
_numbers_of: Callable[[Deed], Sequence[float]] = itemgetter(1)

Call = tuple[Action, Sequence[float], Sequence[Any]]


class _Replay:
    """The tables of calls whose variables and slots share no memory."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._actions = list(map(_action_of, calls))
        self._deeds: Sequence[Deed] = ()
        self._given = _all_written(calls)
        self._is_gradient = [
            number == len(given) - 1
            for *_, given in calls
            for number in range(len(given))
        ]
        self._is_written = list(map(not_, self._is_gradient))
        handles = list(map(_handle_of, self._given))
        self._places = Places(handles)
        self._writes = Writes(handles)
        gradients = _gradients(calls)
        # A variable's data may be laid out anew where they lie. Slots are not given
        # others, and asking them too takes a tenth of a step.
        self._variables = [_handle_of(given[0]) for *_, given in calls]
        self._is_like = recognizer((*gradients, *self._variables))
        self._kinds = list(map(_kind_of, (*gradients, *self._variables)))
        self._addresses = Addresses(len(gradients))
        self._apart = Apart(
            self._addresses, list(map(size_of, gradients)), map(extent, handles)
        )
        self._groups = _groups(calls)
        self._device: torch.device = handles[0].device

    def run(self, deeds: Sequence[Deed], tensors: Sequence[Any]) -> bool:
        """Launch these calls; False, with nothing written, if they are others."""
        is_repeated = _are_same(deeds, self._deeds)
        # The same actions take as many tensors as before.
        if not (is_repeated or list(map(_action_of, deeds)) == self._actions):
            return False
        written = compress(tensors, self._is_written)
        if not (all(map(is_, written, self._given)) and self._places.are_kept()):
            return False
        gradients = list(compress(tensors, self._is_gradient))
        if not (self._are_like(gradients) and self._lie_apart(gradients)):
            return False
        if not is_repeated:
            self._write_numbers(deeds)
        num_threads = torch.get_num_threads()
        keep_captured(self, self._device)
        for group in self._groups:
            group.run(num_threads)
        self._writes.count()
        return True

    def _are_like(self, gradients: Sequence[Any]) -> bool:
        if self._is_like(*gradients, *self._variables):
            return True
        # What recognizes tensors asks for a closer look where modes of torch are on.
        return self._device.type != "cpu" and (
            list(map(_kind_of, (*gradients, *self._variables))) == self._kinds
        )

    def _write_numbers(self, deeds: Sequence[Deed]) -> None:
        numbers = list(map(_numbers_of, deeds))
        for group in self._groups:
            group.write_scalars(_columns_of(group, numbers))
        self._deeds = deeds

    def _lie_apart(self, gradients: Sequence[Any]) -> bool:
        """Find the gradients; whether none lies in a variable or slot, or nowhere."""
        addresses = self._addresses.read(gradients)
        if not self._apart:
            return False
        for group in self._groups:
            group.write_gradients(addresses)
        return True


def _replay_of(calls: Sequence[Call]) -> _Replay | None:
    """Tables for these calls, if they can be launched in any order."""
    flat = [tensor for *_, given in calls for tensor in given]
    handles = list(map(_handle_of, flat))
    if not set(map(type, handles)) <= PLAIN_TYPES:
        return None
    if not _are_readable(handles) or 0 in _addresses(handles):
        return None
    starts, ends = _spans([_handle_of(t) for t in _all_written(calls)])
    if (ends[:-1] > starts[1:]).any():
        return None
    is_launched = VariableView not in set(map(type, _gradients(calls)))
    return _Replay(calls) if is_launched and all(map(_has_kernel, calls)) else None


def _has_kernel(call: Call) -> bool:
    action, _, given = call
    handles = list(map(_handle_of, given))
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
    for number, (action, _, given) in enumerate(calls):
        tensors = tuple(map(_handle_of, given))
        flags = tuple(sorted(action.flags.items()))
        key = KernelKey(action.rule, flags, tuple(map(dtype_of, tensors)))
        own = positions.setdefault(key, [])
        members.append(Member(action.rule, tensors[:-1], (), len(own), flags))
        own.append(number)
    of = [[members[i] for i in chosen] for chosen in positions.values()]
    kinds = zip(positions, of, positions.values(), strict=True)
    if members[0].var.is_cpu:
        kernels = compile_rules(positions)
        return [
            Group(kernel, own, chosen, owns_rows=True)
            for kernel, (_, own, chosen) in zip(kernels, kinds, strict=True)
        ]
    return [DeviceGroup(*kind, owns_rows=True) for kind in kinds]


def _columns_of(
    group: Group, numbers: Sequence[Sequence[float]]
) -> Mapping[str, np.ndarray]:
    """A group's numbers, by name and place of the call in the group."""
    names, positions = group.kernel.key.rule.scalars, group.positions
    own = numbers if len(positions) == len(numbers) else [numbers[i] for i in positions]
    if all(map(is_, own, repeat(own[0]))):
        table = np.broadcast_to(np.array(own[0]), (len(own), len(names)))
    else:
        flat = np.fromiter(chain.from_iterable(own), np.float64)
        table = flat.reshape(len(own), len(names))
    return dict(zip(names, table.T, strict=True))


def _calls(deeds: Sequence[Deed], tensors: Sequence[Any]) -> list[Call]:
    """The calls one by one, each with its own tensors."""
    rest = iter(tensors)
    return [
        (action, numbers, tuple(islice(rest, len(action.rule.tensors))))
        for action, numbers in deeds
    ]


def _are_same(some: Sequence[object], others: Sequence[object]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


def _handle_of(tensor: Any) -> Any:
    return tensor.handle if type(tensor) is VariableView else tensor


def _all_written(calls: Sequence[Call]) -> list[Any]:
    return [tensor for *_, given in calls for tensor in given[:-1]]


def _gradients(calls: Sequence[Call]) -> list[Any]:
    return [given[-1] for *_, given in calls]


def _addresses(tensors: Sequence[Any]) -> list[int]:
    return list(map(address_of, tensors))


def _kind_of(tensor: Any) -> tuple[object, ...]:
    if type(tensor) not in PLAIN_TYPES or tensor.layout is not torch.strided:
        return ()
    layout = tensor.shape, tensor.stride(), tensor.is_neg()
    return tensor.__class__, tensor.dtype, tensor.device, *layout


def _spans(tensors: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Where the memory of each begins and ends, sorted."""
    starts = np.array(_addresses(tensors), dtype=np.int64)
    ends = starts + np.array([size_of(tensor) for tensor in tensors], dtype=np.int64)
    order = np.argsort(starts, kind="stable")
    return starts[order], ends[order]


def _are_readable(tensors: Sequence[Any]) -> bool:
    """Whether kernels can run straight on all of them, and tables can be made now."""
    try:
        return are_readable(tensors) or _are_on_one_device(tensors)
    except RuntimeError:
        return False


def _are_on_one_device(tensors: Sequence[Any]) -> bool:
    (device, *others) = {tensor.device for tensor in tensors}
    return (
        not others
        and has_device_kernels(device)
        and not is_capturing(device)
        and all(t.is_contiguous() and not t.is_neg() for t in tensors)
    )
