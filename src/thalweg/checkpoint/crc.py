"""CRC-32 of large data: beside the writing of it, and on several cores.

The sums are those of zlib. Large data go through `crc.c`, which is several times as
fast where there is a C compiler and a processor with carry-less multiplication. A file
is cut into as many parts as there are threads, and their sums are joined: appending n
bytes to a text is a linear map on its sum, the n-th power of the map of one byte.
"""

import ctypes
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy

from thalweg.compiler.build import build

PIECE_BYTES: Final = 1 << 20
LARGEST_THREADS: Final = 4
POLYNOMIAL: Final = 0xEDB88320

# From here on it pays to have a compiler make something faster than zlib.
LARGE_BYTES: Final = 1 << 26
LANE_BYTES: Final = 64

Sum = Callable[[memoryview, int], int]
# Where each of the 32 bits of a sum goes.
Map = list[int]


@cache
def fastest() -> Sum:
    """The fastest function for sums here; zlib's if there is no other."""
    try:
        text = (
            resources.files("thalweg.checkpoint").joinpath("crc.c").read_text("utf-8")
        )
    except OSError:
        return zlib.crc32
    library = build(text)
    if library is None:
        return zlib.crc32
    call = library.long.thalweg_crc
    pointer = ctypes.c_void_p
    call.argtypes = [pointer, ctypes.c_int64, ctypes.c_uint32, pointer]

    def summed(data: memoryview, crc: int = 0) -> int:
        count = data.nbytes - data.nbytes % LANE_BYTES
        left = ctypes.create_string_buffer(16)
        address = numpy.frombuffer(data, numpy.uint8).ctypes.data
        if not count or not call(address, count, crc, left):
            return zlib.crc32(data, crc)
        # What is left is the data's remainder: its sum begins at a register of zeros.
        return zlib.crc32(data[count:], zlib.crc32(left.raw, 0xFFFFFFFF))

    sample = memoryview(bytes(range(200)))
    return summed if summed(sample, 7) == zlib.crc32(sample, 7) else zlib.crc32


class RunningCrc:
    """The sum of data that is written meanwhile: large pieces on another thread."""

    def __init__(self) -> None:
        self._crc = self._count = 0
        self._sum: Sum = zlib.crc32
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[int] | None = None

    def __enter__(self) -> "RunningCrc":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def pieces(self, data: memoryview) -> Iterator[memoryview]:
        """Give `data` piece by piece; each is summed while the caller writes it."""
        for begin in range(0, data.nbytes, PIECE_BYTES):
            piece = data[begin : begin + PIECE_BYTES]
            self._add(piece)
            yield piece

    def _add(self, piece: memoryview) -> None:
        before = self.value()
        self._count += piece.nbytes
        if self._count >= LARGE_BYTES:
            self._sum = fastest()
        if piece.nbytes < PIECE_BYTES:
            self._crc = zlib.crc32(piece, before)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "checksum")
        self._pending = self._pool.submit(self._sum, piece, before)

    def value(self) -> int:
        """The sum of all that was given."""
        if self._pending is not None:
            self._crc = self._pending.result()
            self._pending = None
        return self._crc


def file_crc(path: Path) -> int:
    """The sum of a file's bytes, read on several threads."""
    size = path.stat().st_size
    threads = max(1, min(LARGEST_THREADS, os.cpu_count() or 1, size // PIECE_BYTES))
    bounds = [size * part // threads for part in range(threads + 1)]
    parts = list(pairwise(bounds))
    function = fastest() if size >= LARGE_BYTES else zlib.crc32
    if threads == 1:
        return _span_crc(path, 0, size, function)
    with ThreadPoolExecutor(threads, "checksum") as pool:
        sums = list(
            pool.map(lambda part: _span_crc(path, part[0], part[1], function), parts)
        )
    crc = 0
    for part, (begin, end) in zip(sums, parts, strict=True):
        crc = join(crc, part, end - begin)
    return crc


def _span_crc(path: Path, begin: int, end: int, function: Sum) -> int:
    crc, room = 0, memoryview(bytearray(min(PIECE_BYTES, max(1, end - begin))))
    with open(path, "rb", buffering=0) as file:
        file.seek(begin)
        while begin < end:
            count = file.readinto(room[: end - begin])
            if not count:
                break
            crc = function(room[:count], crc)
            begin += count
    return crc


def join(first: int, second: int, num_bytes: int) -> int:
    """The sum of two texts, one behind the other.

    Args:
        first: Sum of the first text.
        second: Sum of the second text.
        num_bytes: Length of the second text.

    Example:
        >>> import zlib
        >>> join(zlib.crc32(b"thal"), zlib.crc32(b"weg"), 3) == zlib.crc32(b"thalweg")
        True
    """
    power = [POLYNOMIAL, *(1 << bit for bit in range(31))]  # one zero bit appended
    for _ in range(3):
        power = _twice(power)
    while num_bytes:
        if num_bytes & 1:
            first = _apply(power, first)
        power = _twice(power)
        num_bytes >>= 1
    return first ^ second


def _apply(table: Map, crc: int) -> int:
    result = 0
    for image in table:
        if crc & 1:
            result ^= image
        crc >>= 1
    return result


def _twice(table: Map) -> Map:
    return [_apply(table, image) for image in table]
