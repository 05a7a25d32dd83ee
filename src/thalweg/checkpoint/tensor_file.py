"""One safetensors file: written tensor by tensor with its checksum, read by mapping.

The file is what the safetensors library reads: eight bytes with the header's length,
a JSON header, then the tensors' bytes without holes, widest dtype first so that each
tensor is aligned. The writer holds one tensor in memory beyond those of the caller;
the reader maps the file, so its tensors cost no memory until they are touched.
"""

import math
import mmap
import os
import re
import struct
from collections.abc import Iterator, Mapping
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from thalweg.checkpoint.allowance import (
    ALWAYS_ALLOWED,
    OBJECT_BYTES,
    Allowance,
    most_text,
)
from thalweg.checkpoint.encoding import dump, parsed_bytes
from thalweg.checkpoint.members import (
    NUMBER,
    NUMBERS,
    SPACE,
    Counts,
    Table,
    keys_of,
    object_pattern,
    row_pattern,
    without_collections,
)
from thalweg.errors import CheckpointError, message

LENGTH: Final = struct.Struct("<Q")
ALIGNMENT: Final = 8
LARGEST_HEADER_BYTES: Final = 100_000_000
BLANKS: Final = re.compile(SPACE)
ENTRY: Final = row_pattern(
    object_pattern(
        dtype=rb'"([A-Z0-9_]++)"',
        shape=NUMBERS,
        data_offsets=rb"\[%b%b%b,%b%b%b\]"
        % (SPACE, NUMBER, SPACE, SPACE, NUMBER, SPACE),
    )
)
# Other programs put strings there; nothing is made of them.
_STRING: Final = rb'"(?:[^"\\\x00-\x1f]++|\\.)*+"'
_FOLLOWS: Final = rb'%b(?:,(?=%b")|(?=\}))' % (SPACE, SPACE)
_PAIR: Final = SPACE.join([b"", _STRING, b":", _STRING]) + _FOLLOWS
METADATA: Final = re.compile(
    SPACE.join([b"", b'"__metadata__"', b":", rb"\{(?:%b)*+" % _PAIR, rb"\}"])
    + _FOLLOWS
)

# None where the system does not offer it; mapped pages then count until the end.
DROP_PAGES: Final = getattr(mmap, "MADV_DONTNEED", None)

CODES: Final[dict[torch.dtype, str]] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES_OF_TEXT: Final = {code.encode(): dtype for dtype, code in CODES.items()}
ITEMSIZES: Final = {dtype: dtype.itemsize for dtype in CODES}
DTYPE_NAMES: Final = {str(dtype).removeprefix("torch."): dtype for dtype in CODES}


class Layout(NamedTuple):
    """Where a tensor lies: `begin` and `end` count from the start of the data."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def num_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Bytes that a tensor of this dtype and shape takes."""
    return math.prod(shape) * dtype.itemsize


def plan_layout(tensors: Mapping[str, torch.Tensor]) -> dict[str, Layout]:
    """Place tensors one after the other, widest dtype first, then by key."""
    order = sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key))
    layout: dict[str, Layout] = {}
    begin = 0
    for key in order:
        dtype, shape = tensors[key].dtype, tuple(tensors[key].shape)
        end = begin + num_bytes(dtype, shape)
        layout[key] = Layout(dtype, shape, begin, end)
        begin = end
    return layout


def file_chunks(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """Give the bytes of a safetensors file piece by piece, one tensor at a time."""
    layout = plan_layout(tensors)
    header = {
        key: {
            "dtype": CODES[place.dtype],
            "shape": list(place.shape),
            "data_offsets": [place.begin, place.end],
        }
        for key, place in layout.items()
    }
    text = dump(header, levels=1)
    size = max((place.end for place in layout.values()), default=0)
    needed = Allowance(size + len(text), largest_header(size), unlimited=True)
    if parsed_bytes(text) > ALWAYS_ALLOWED:
        _read_table(text, needed)
        text += b" " * needed.memory.excess
    text += b" " * (-len(text) % ALIGNMENT)
    most = needed.text.left
    if len(text) > most:
        expected = f"{most:,} bytes of names at most beside tensors of this size"
        got = f"{len(text):,}, of {len(tensors):,} tensors"
        action = "Put many small tensors together in one."
        raise CheckpointError(message("Checkpoint.save", expected, got, action))
    yield LENGTH.pack(len(text)) + text
    for key in layout:
        if tensors[key].numel():
            yield tensor_bytes(tensors[key])


def largest_header(stored: int) -> int:
    """Bytes of the longest header that is read beside so many bytes of tensors."""
    return min(LARGEST_HEADER_BYTES, most_text(stored))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The elements of a tensor in row-major order; a view where it is one already."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    # A single element counts as contiguous whatever its stride, but must not keep it.
    flat = plain.as_strided((plain.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data


class TensorFile:
    """A safetensors file, mapped; every claim of its header is checked at once.

    Args:
        path: The file.

    Raises:
        CheckpointError: If header and file do not agree (torn, cut, overlapping).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.layout, self._start = _read_header(file.read, size, path)
            _check_extents(self.layout, size - self._start, path)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def read(self, key: str) -> torch.Tensor:
        """The tensor of that key, on the CPU; it shares memory with the mapping.

        Memory that reading other tensors took is given back, so that all of them
        together take no more than the largest.
        """
        place, mapped = self.layout[key], self._map
        if place.begin == place.end:
            return torch.empty(place.shape, dtype=place.dtype, device="cpu")
        if DROP_PAGES is not None:
            # Tensors given before stay valid: what is touched again is read again.
            mapped.madvise(DROP_PAGES)
        offset = self._start + place.begin
        count = math.prod(place.shape)
        if offset % place.dtype.itemsize:
            piece = bytearray(mapped[offset : self._start + place.end])
            flat = torch.frombuffer(piece, dtype=place.dtype, count=count)
        else:
            flat = torch.frombuffer(
                mapped, dtype=place.dtype, count=count, offset=offset
            )
        return flat.reshape(place.shape)


def header_length(path: Path) -> int:
    """How long the header of a file is, which is not read for this.

    Raises:
        CheckpointError: If it is longer than the file, or than what is read.
    """
    with open(path, "rb") as file:
        return _header_length(file.read, os.fstat(file.fileno()).st_size, path)


def _header_length(read: Any, size: int, path: Path) -> int:
    if size < LENGTH.size:
        raise damaged(path, f"a file of {size} bytes")
    (length,) = LENGTH.unpack(read(LENGTH.size))
    stored = size - LENGTH.size - length
    if stored < 0 or length > largest_header(stored):
        raise damaged(path, f"a header of {length} bytes in a file of {size}")
    return length


def _read_header(read: Any, size: int, path: Path) -> tuple[dict[str, Layout], int]:
    length = _header_length(read, size, path)
    allowance = Allowance(size, largest_header(size - LENGTH.size - length))
    try:
        allowance.text.spend(length)
        with without_collections():
            table = _read_table(read(length), allowance)
    except ValueError as problem:
        raise damaged(path, f"a malformed header ({problem})") from problem
    return table, LENGTH.size + length


def _read_table(text: bytes, allowance: Allowance) -> dict[str, Layout]:
    allowance.memory.spend(len(text))
    rows = Table(text, 0, ENTRY, allowance, skipped=METADATA)
    counts = Counts(allowance)
    table: dict[str, Layout] = {}
    for some in rows:
        keys = keys_of(some)
        allowance.spend_members(keys)
        allowance.memory.spend(OBJECT_BYTES * len(keys))
        before = len(table)
        table.update(zip(keys, _read_entries(keys, some, counts), strict=True))
        if len(table) != before + len(keys):
            raise ValueError(f"a key from {keys[0]!r} on stands twice")
    if BLANKS.fullmatch(text, rows.end) is None:
        raise ValueError("text behind it")
    return table


def _read_entries(
    keys: list[str], rows: list[tuple[bytes, ...]], counts: Counts
) -> list[Layout]:
    _, codes, texts, begins, ends, _ = zip(*rows, strict=True)
    try:
        dtypes = [DTYPES_OF_TEXT[code] for code in codes]
        shapes = counts.read(texts)
        places = list(map(int, begins)), list(map(int, ends))
    except (KeyError, ValueError) as problem:
        raise ValueError(f"a malformed entry from '{keys[0]}' on ({problem})") from None
    for key, dtype, shape, begin, end in zip(
        keys, dtypes, shapes, *places, strict=True
    ):
        if end - begin != math.prod(shape) * ITEMSIZES[dtype]:
            raise ValueError(f"an extent of '{key}' that is not that of its shape")
    make = partial(tuple.__new__, Layout)
    return list(map(make, zip(dtypes, shapes, *places, strict=True)))


def _check_extents(layout: dict[str, Layout], size: int, path: Path) -> None:
    reached = 0
    for place in layout.values():
        if place.begin != reached:
            break
        reached = place.end
    else:
        if reached == size:
            return
    # Not in this order, as other programs may write them, or not sound.
    end = 0
    for place in sorted(layout.values(), key=attrgetter("begin", "end")):
        if place.begin != end:
            raise damaged(path, f"a hole or overlap before byte {place.begin}")
        end = place.end
    if end != size:
        raise damaged(path, f"{size} bytes of tensors where the header tells of {end}")


class DamagedError(CheckpointError):
    """A file that cannot be what was written; another checkpoint may be sound."""


def damaged(path: Path, got: str) -> DamagedError:
    """The error for a file that cannot be what was written."""
    return DamagedError(
        message(
            f"Checkpoint: {path}",
            "a whole file as it was written",
            got,
            "The file is damaged: restore another checkpoint.",
        )
    )
