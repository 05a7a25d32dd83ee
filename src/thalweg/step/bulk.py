"""Questions to many tensors at once: where they lie, who holds them, who wrote them.

A step asks them of every variable and slot. In Python a tensor costs 0.1 µs and more,
mostly for memory that the kernels have driven out of the caches; `bulk.c` asks through
libtorch's stable C functions in a tenth of it. Where that cannot be had, or where the
installed torch lays out its objects in another way, Python asks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import chain
from operator import is_
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._C import DisableTorchFunctionSubclass
from torch.autograd.graph import increment_version

from thalweg.compiler.build import Library, build

__all__ = ["Addresses", "Apart", "Holders", "Places", "Writes", "count_writes"]

_DATA_PTR = "aoti_torch_get_data_ptr"
_BUMP_VERSION = "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE"
_OFFSETS = (16, 24)
"""Where a tensor's object holds its at::Tensor: torch from 2.10 on, and before."""
_address_of = torch.Tensor.data_ptr
# What `increment_version` calls once it has asked whether it got a single tensor.
count_writes: Callable[[Iterable[torch.Tensor]], None] = getattr(
    torch._C,  # pyright: ignore[reportPrivateUsage] - falls back to the public one
    "_increment_version",
    increment_version,
)
_Dict: Any = dict
_values_of: Callable[[dict[str, Any]], Iterable[Any]] = _Dict.values


class Places:
    """Tensors, and where they lie.

    Args:
        tensors: Strided tensors; they are kept.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._tensors = list(tensors)
        self._listed = _slowly(self._tensors)
        self._known = np.array(self._listed, dtype=np.int64)
        self._calls = _calls()
        self._ids = _ids(self._tensors)
        self._arguments = len(self._tensors), self._ids.ctypes.data
        self._known_at = self._known.ctypes.data

    def are_kept(self) -> bool:
        """Whether every tensor lies where it did."""
        calls = self._calls
        if calls is None:
            return _slowly(self._tensors) == self._listed
        return bool(
            calls.lie_at(*self._arguments, calls.offset, calls.data_ptr, self._known_at)
        )


class Holders:
    """Dicts, and the objects that are their values.

    Args:
        dicts: They are kept, and so is what they hold.
    """

    def __init__(self, dicts: Iterable[dict[str, Any]]) -> None:
        self._dicts = list(dicts)
        self._known = self._held()
        self._calls = _calls()
        self._ids = _ids(self._dicts), _ids(self._known)
        self._arguments = len(self._dicts), self._ids[0].ctypes.data
        self._known_at = len(self._known), self._ids[1].ctypes.data

    def hold_the_same(self) -> bool:
        """Whether the dicts hold the same objects in the same order."""
        calls = self._calls
        if calls is None:
            held = self._held()
            return len(held) == len(self._known) and all(map(is_, held, self._known))
        return bool(calls.hold(*self._arguments, calls.next_item, *self._known_at))

    def _held(self) -> list[Any]:
        return list(chain.from_iterable(map(_values_of, self._dicts)))


class Writes:
    """Tensors that every step writes.

    Args:
        tensors: They are not kept: aliases are, which share their version counters.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._aliases = [tensor.detach() for tensor in tensors]
        # A tensor of inference mode has no counter; what C++ throws, C cannot catch.
        is_counted = not any(map(torch.Tensor.is_inference, self._aliases))
        self._calls = _calls() if is_counted else None
        self._ids = _ids(self._aliases)
        self._arguments = len(self._aliases), self._ids.ctypes.data

    def count(self) -> None:
        """Count up the versions of all, so that autograd knows."""
        calls = self._calls
        if calls is None:
            count_writes(self._aliases)
        else:
            calls.count_writes(*self._arguments, calls.offset, calls.bump)


class Addresses:
    """Room for where tensors lie, made once for many steps.

    Attributes:
        found: What was read last.
        found_at: Where that is.
        are_other: Whether it is not what was read before.

    Args:
        count: Number of tensors.

    Example:
        >>> tensor = torch.zeros(3)
        >>> Addresses(1).read([tensor]) == tensor.data_ptr()
        array([ True])
    """

    def __init__(self, count: int) -> None:
        self.found = np.empty(count, dtype=np.int64)
        self.found_at = self.found.ctypes.data
        self.are_other = True
        self._content = b""
        self._calls = _calls()

    def read(self, tensors: Sequence[torch.Tensor]) -> np.ndarray:
        """Where tensors lie.

        Args:
            tensors: A list or tuple of as many strided tensors.

        Returns:
            An int64 array, written anew by the next call.
        """
        if not self._read_in_c(tensors):
            self.found[:] = _slowly(tensors)
        content = self.found.tobytes()
        self.are_other = content != self._content
        self._content = content
        return self.found

    def _read_in_c(self, tensors: Sequence[torch.Tensor]) -> bool:
        calls = self._calls
        item = calls and calls.items.get(type(tensors))
        if calls is None or item is None or len(tensors) != len(self.found):
            return False
        end = calls.offset, calls.data_ptr, self.found_at
        return bool(calls.addresses(tensors, len(self.found), item, *end))


class Apart:
    """Whether what a step reads lies apart from what it writes, and has memory at all.

    Args:
        addresses: Tells where the tensors lie that are read.
        sizes: Of each of them, in bytes.
        written: Where the memory that is written begins and ends.

    Example:
        >>> own, addresses = torch.zeros(4), Addresses(1)
        >>> start = own.data_ptr()
        >>> apart = Apart(addresses, [8], [(start, start + own.nbytes)])
        >>> _ = addresses.read([own[2:]])
        >>> bool(apart), apart.touched()
        (False, [0])
    """

    def __init__(
        self,
        addresses: Addresses,
        sizes: Sequence[int],
        written: Iterable[tuple[int, int]],
    ) -> None:
        self._addresses = addresses
        self._sizes = np.array(sizes, dtype=np.int64)
        self._starts, self._ends = _joined(written)
        count = len(sizes)
        self._table = np.full(2 * count + 1 + 2 * len(self._starts), -1, np.int64)
        self._table[:count] = self._sizes
        self._table[2 * count] = len(self._starts)
        self._table[2 * count + 1 :] = [*self._starts, *self._ends]
        self._calls = _calls()
        self._arguments = count, addresses.found_at, self._table.ctypes.data
        self._seen: bytes | None = None

    def __bool__(self) -> bool:
        calls = self._calls
        if calls is not None:
            return bool(calls.lie_apart(*self._arguments))
        found = self._addresses.found.tobytes()
        if found != self._seen and not self.touched():
            self._seen = found
        return found == self._seen

    def touched(self) -> list[int]:
        """Numbers of those that touch what is written, or have no memory."""
        found, sizes = self._addresses.found, self._sizes
        last = np.searchsorted(self._starts, found + sizes) - 1
        touches = (last >= 0) & (np.append(self._ends, 0)[last] > found)
        return np.flatnonzero((touches | (found == 0)) & (sizes > 0)).tolist()


def _joined(spans: Iterable[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Where spans of memory begin and end: sorted, joined where they meet."""
    starts: list[int] = []
    ends: list[int] = []
    for start, end in sorted(spans):
        if starts and start <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        elif start < end:
            starts.append(start)
            ends.append(end)
    return np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)


def _slowly(tensors: Sequence[torch.Tensor]) -> list[int]:
    with DisableTorchFunctionSubclass():  # a subclass would be asked for overrides
        return list(map(_address_of, tensors))


def _ids(objects: Sequence[object]) -> np.ndarray:
    return np.array(list(map(id, objects)), dtype=np.int64)


# -- the way to C -------------------------------------------------------------


@dataclass(frozen=True)
class _Calls:
    """Functions of `bulk.c`, and addresses of what they call."""

    lie_at: Any
    addresses: Any
    count_writes: Any
    hold: Any
    lie_apart: Any
    offset: int
    data_ptr: int
    bump: int
    next_item: int
    items: Mapping[type, int]


@cache
@torch.inference_mode(False)  # tensors of that mode have no version
def _calls() -> _Calls | None:
    """The functions, if there is a compiler and torch is as they expect."""
    first, second, third = (torch.zeros(4, device="cpu") for _ in range(3))
    samples = [first, torch.nn.Parameter(second), third[2:]]
    offset = _offset(samples)
    torch_functions = _torch_functions()
    if offset is None or torch_functions is None:
        return None
    text = resources.files("thalweg.step").joinpath("bulk.c").read_text("utf-8")
    library = build(text)
    if library is None:
        return None
    calls = _declared(library, offset, *torch_functions)
    return calls if _are_right(calls, samples) else None


def _offset(samples: Sequence[torch.Tensor]) -> int | None:
    """Where the objects hold their at::Tensor: a pointer that torch also tells."""
    for offset in _OFFSETS:
        held = [ctypes.c_int64.from_address(id(t) + offset).value for t in samples]
        if held == [t._cdata for t in samples]:
            return offset
    return None


def _torch_functions() -> tuple[int, int] | None:
    folder = Path(torch.__file__).parent / "lib"
    for path in sorted(folder.glob("libtorch_cpu.*")):
        try:
            library = ctypes.CDLL(str(path))
            return _address(library[_DATA_PTR]), _address(library[_BUMP_VERSION])
        except (OSError, AttributeError):
            continue
    return None


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _declared(library: Library, offset: int, data_ptr: int, bump: int) -> _Calls:
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    found, python = library.short, ctypes.pythonapi
    calls = _Calls(
        found.thalweg_lie_at,
        found.thalweg_addresses,
        found.thalweg_count_writes,
        found.thalweg_hold,
        found.thalweg_lie_apart,
        *(offset, data_ptr, bump, _address(python.PyDict_Next)),
        {
            list: _address(python.PyList_GetItem),
            tuple: _address(python.PyTuple_GetItem),
        },
    )
    calls.lie_at.argtypes = [number, pointer, number, pointer, pointer]
    parts = [ctypes.py_object, number, pointer, number, pointer, pointer]
    calls.addresses.argtypes = parts
    calls.count_writes.argtypes = [number, pointer, number, pointer]
    calls.count_writes.restype = None
    calls.lie_apart.argtypes = [number, pointer, pointer]
    calls.hold.argtypes = [number, pointer, pointer, number, pointer]
    return calls


def _are_right(calls: _Calls, samples: list[torch.Tensor]) -> bool:
    """Whether C tells of some tensors what Python does."""
    found = np.zeros(len(samples), dtype=np.int64)
    end = calls.offset, calls.data_ptr, found.ctypes.data
    calls.addresses(samples, len(samples), calls.items[list], *end)
    versions = [sample._version + 1 for sample in samples]
    ids = _ids(samples)
    calls.count_writes(len(samples), ids.ctypes.data, calls.offset, calls.bump)
    counted = versions == [sample._version for sample in samples]
    return counted and found.tolist() == _slowly(samples)
