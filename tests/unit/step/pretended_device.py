"""A GPU that is not there: tensors on it lie on the CPU, and waiting for it fails.

Kernels run under Triton's interpreter. A tensor is on the device if it was moved or
made there, or computed from one that is; it says so when asked for its device, so
that the code under test takes the ways it takes on a GPU. What would make the host
wait for a real device, or mix both places, raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.codegen.triton_runs import interpreting
from thalweg.compiler.triton_kernel import TritonKernel
from thalweg.step import device_checks, device_rows
from thalweg.step.device_clock import DeviceClock
from thalweg.step.device_kernel import gives_right_bits

__all__ = [
    "DEVICE",
    "PretendedDevice",
    "PretendedGraph",
    "PretendedStream",
    "WaitedError",
    "pretended_device",
]

DEVICE = torch.device("cuda", 0)

# What reads values on the host, or needs to know how many there are.
_WAITING = {
    *("_local_scalar_dense", "nonzero", "nonzero_numpy", "equal", "is_nonzero"),
    *("masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive"),
    *("unique_dim_consecutive", "bincount", "repeat_interleave", "argwhere"),
    *("linalg_lstsq", "_linalg_check_errors", "_assert_async_msg_host"),
}
_READING = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__}
_MOVING = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy}
_device_of: Any = Tensor.device.__get__  # type: ignore[attr-defined]
_is_cuda: Any = Tensor.is_cuda.__get__  # type: ignore[attr-defined]
_is_cpu: Any = Tensor.is_cpu.__get__  # type: ignore[attr-defined]


class WaitedError(AssertionError):
    """The host would have waited for the device."""


@contextmanager
def _apart() -> Iterator[None]:
    """A scope in which nothing is followed."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


class _Places:
    """Which storages are on the device; all are kept, so that none is mistaken."""

    def __init__(self) -> None:
        self.there: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.is_strict = False
        self.waits: list[str] = []

    def put(self, value: Any, table: dict[int, Any] | None = None) -> Any:
        for tensor in _tensors(value):
            storage = tensor.untyped_storage()
            (self.there if table is None else table)[storage._cdata] = storage
        return value

    def has(self, tensor: Tensor) -> bool:
        return any(t.untyped_storage()._cdata in self.there for t in _tensors(tensor))

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.pinned

    def wait(self, what: str) -> None:
        if self.is_strict:
            raise WaitedError(what)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.layout == torch.sparse_coo:
            yield value._values()
            yield value._indices()
        else:
            yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


class PretendedGraph:
    """What was done while a CUDA graph was recorded, to be done again."""

    def __init__(self) -> None:
        self._work: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def add(self, function: Any, args: Any, kwargs: Any, result: Any = None) -> None:
        """Take note of an operation or of the start of a kernel."""
        self._work.append((function, args, kwargs, result))

    def replay(self) -> None:
        """Do all of it again, in the same memory, with the numbers it was given."""
        with _apart(), torch.no_grad():
            for function, args, kwargs, result in self._work:
                new = function(*args, **kwargs)
                for old, fresh in zip(_tensors(result), _tensors(new), strict=True):
                    if old.data_ptr() != fresh.data_ptr():
                        old.detach().copy_(fresh)


class _Operations(TorchDispatchMode):
    """Follows tensors of the device through operations."""

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self._places = places
        self.is_creating = False
        self.graph: PretendedGraph | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        places, given = self._places, list(_tensors((args, kwargs or {})))
        there = [tensor for tensor in given if places.has(tensor)]
        name = func.overloadpacket.__name__
        if there and name in _WAITING:
            places.wait(name)
        if name == "copy_":
            self._copy(args, kwargs or {})
        elif there:
            self._refuse_mixture(name, there, given)
        result = func(*args, **(kwargs or {}))
        if (there and name != "copy_") or self.is_creating:
            places.put(result)
        if self.graph is not None and any(map(places.has, _tensors(result))):
            self.graph.add(func, args, kwargs or {}, result)
        return result

    def _copy(self, args: Any, kwargs: Any) -> None:
        target, source = args[:2]
        places = self._places
        if places.has(target) == places.has(source):
            return
        host = source if places.has(target) else target
        is_free = (args[2:] or (kwargs.get("non_blocking"),))[0]
        if not (is_free and places.is_pinned(host)):
            places.wait("copy between host and device")

    def _refuse_mixture(
        self, name: str, there: list[Tensor], given: list[Tensor]
    ) -> None:
        here = [t for t in given if not self._places.has(t) and t.ndim]
        if here and self._places.is_strict:
            raise AssertionError(f"{name} of tensors on the host and on the device")
        del there


class PretendedDevice(TorchFunctionMode):
    """The device; see the module.

    Attributes:
        is_capturing: Whether a CUDA graph is being recorded.
        is_on_side_stream: Whether the current stream is not the default one.
        streams: The default one, and the other.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places = _Places()
        self._operations = _Operations(self._places)
        self.is_capturing = False
        self.is_on_side_stream = False
        self.streams = PretendedStream(), PretendedStream()

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        """In this scope waiting for the device fails."""
        self._places.is_strict = True
        try:
            yield
        finally:
            self._places.is_strict = False

    def look(self, tensor: Tensor) -> Tensor:
        """What is in a tensor of the device, without asking it."""
        with _apart():
            return tensor.detach().clone()

    @contextmanager
    def graph(self) -> Iterator[PretendedGraph]:
        """In this scope a CUDA graph is recorded; nothing has happened behind it."""
        graph, kept = PretendedGraph(), []
        for storage in self._places.there.values():
            with _apart():
                kept.append((storage, storage.clone()))
        self._operations.graph = graph
        try:
            with self.capture():
                yield graph
        finally:
            self._operations.graph = None
            with _apart():
                for storage, before in kept:
                    storage.copy_(before)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """In this scope a CUDA graph is recorded, though it is run as well."""
        self.is_capturing = True
        try:
            with self.no_waiting():
                yield
        finally:
            self.is_capturing = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        places = self._places
        if func == _device_of:
            found = func(*args)
            return DEVICE if places.has(args[0]) and found.type == "cpu" else found
        if func in (_is_cuda, _is_cpu):
            return places.has(args[0]) is (func == _is_cuda)
        if func in _READING and places.has(args[0]):
            places.wait(func.__name__)
            return self._brought(func, args, kwargs)
        if func is Tensor.to or func is Tensor.cuda:
            return self._moved(func, args, kwargs)
        return self._made(func, args, kwargs)

    def _brought(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is Tensor.cpu:
            with _disable_current_modes():
                return args[0].detach().clone()
        return func(*args, **kwargs)

    def _moved(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensor, places, is_copy = args[0], self._places, kwargs.pop("copy", False)
        if func is Tensor.cuda:
            device, dtype, is_free = DEVICE, None, False
        elif len(args) > 1 and isinstance(args[1], Tensor):
            device, dtype, is_free = args[1].device, args[1].dtype, False
            device = DEVICE if places.has(args[1]) else device
        else:
            rest = torch._C._nn._parse_to(*args[1:], **kwargs)
            device, dtype, is_free, _ = rest
        if device is None:
            return func(*args, copy=is_copy, **kwargs)
        wanted = dtype or tensor.dtype
        if (device.type == "cuda") == places.has(tensor):
            return tensor.to(wanted, copy=is_copy)
        if not is_free:
            places.wait("move between host and device")
        with _disable_current_modes():
            moved = tensor.to(wanted, copy=True)
        return places.put(moved) if device.type == "cuda" else moved

    def _made(self, func: Any, args: Any, kwargs: Any) -> Any:
        places, operations = self._places, self._operations
        is_pinned = kwargs.pop("pin_memory", False)
        device = kwargs.get("device")
        is_there = device is not None and torch.device(device).type == "cuda"
        if is_there:
            kwargs["device"] = "cpu"
            source = args[0] if args else None
            is_known = isinstance(source, Tensor) and places.has(source)
            if func in _MOVING and is_known:
                return func(*args, **kwargs)
            if func in _MOVING:
                places.wait(f"{func.__name__} on the device")
        operations.is_creating, before = is_there, operations.is_creating
        try:
            result = func(*args, **kwargs)
        finally:
            operations.is_creating = before
        if is_there:
            places.put(result)
        if is_pinned:
            places.put(result, places.pinned)
        return result


class PretendedStream:
    """Stands for `torch.cuda.Stream`: what it was told to wait for."""

    def __init__(self) -> None:
        self.waited_for: list[object] = []

    def wait_stream(self, stream: object) -> None:
        """Take note of another stream."""
        self.waited_for.append(stream)


class _Event:
    """Stands for `torch.cuda.Event`: all that was recorded has happened."""

    def record(self, stream: object = None) -> None:
        del stream

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """Wait for what happened long ago: a buffer comes to use again."""


def _replace_cuda(device: PretendedDevice, patch: pytest.MonkeyPatch) -> None:
    default, side = device.streams
    stand_ins: dict[str, Callable[..., Any]] = {
        "is_initialized": lambda: True,
        "is_current_stream_capturing": lambda: device.is_capturing,
        "default_stream": lambda _=None: default,
        "current_stream": lambda _=None: side if device.is_on_side_stream else default,
        "device": lambda _: nullcontext(),
        "Event": _Event,
    }
    for name, stand_in in stand_ins.items():
        patch.setattr(torch.cuda, name, stand_in)


@contextmanager
def pretended_device() -> Iterator[PretendedDevice]:
    """In this scope there is one."""
    device = PretendedDevice()
    start = TritonKernel.start

    def start_apart(self: TritonKernel, *args: Any, **kwargs: Any) -> None:
        graph = device._operations.graph
        if graph is not None:
            graph.add(start, (self, *args), kwargs)
        with _apart():
            start(self, *args, **kwargs)

    with (
        interpreting(),
        np.errstate(all="ignore"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(TritonKernel, "start", start_apart)
        # What is kept of another such device is of no use here.
        patch.setattr(device_rows, "_launches", device_rows._Launches())
        patch.setattr(device_checks.listening, "unowned", device_checks.LateErrors())
        # A schedule is slow to ask where everything is followed.
        patch.setitem(DeviceClock.__init__.__kwdefaults__, "horizon", 32)
        _replace_cuda(device, patch)
        gives_right_bits.cache_clear()
        try:
            with device._operations, device:
                yield device
        finally:
            gives_right_bits.cache_clear()
