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
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from thalweg.checkpoint.encoding import dump, parse, parsed_bytes
from thalweg.checkpoint.members import ALWAYS_ALLOWED, Allowance, Members
from thalweg.errors import CheckpointError, message

LENGTH: Final = struct.Struct("<Q")
ALIGNMENT: Final = 8
LARGEST_HEADER_BYTES: Final = 100_000_000
METADATA: Final = "__metadata__"
BLANKS: Final = re.compile(rb"[ \n\r\t]*+")
LARGEST_RANK: Final = 64
# No entry takes more beside its key, which may be spelt \uXXXX, however it is indented.
ENTRY_BYTES: Final = 4096

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
DTYPES: Final = {code: dtype for dtype, code in CODES.items()}
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
    if parsed_bytes(text) > ALWAYS_ALLOWED:
        size = max((place.end for place in layout.values()), default=0) + len(text)
        needed = Allowance(size, unlimited=True)
        _read_table(text, needed)
        text += b" " * needed.excess
    text += b" " * (-len(text) % ALIGNMENT)
    if len(text) > LARGEST_HEADER_BYTES:
        expected, got = f"{LARGEST_HEADER_BYTES:,} bytes of names", f"{len(text):,}"
        action = "Put many small tensors together in one."
        raise CheckpointError(message("Checkpoint.save", expected, got, action))
    yield LENGTH.pack(len(text)) + text
    for key in layout:
        if tensors[key].numel():
            yield tensor_bytes(tensors[key])


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
        keys: The tensors that it should hold; a header that is too long for them is
            not even read.

    Raises:
        CheckpointError: If header and file do not agree (torn, cut, overlapping).
    """

    def __init__(self, path: Path, keys: Collection[str] | None = None) -> None:
        self.path = path
        largest = LARGEST_HEADER_BYTES
        if keys is not None:
            room = sum(ENTRY_BYTES + 6 * len(key) for key in keys)
            largest = min(largest, ENTRY_BYTES + room)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.layout, self._start = _read_header(file.read, size, path, largest)
            _check_extents(self.layout, size - self._start, path)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def read(self, key: str) -> torch.Tensor:
        """The tensor of that key, on the CPU; it shares memory with the mapping.

        Memory that reading other tensors took is given back, so that all of them
        together take no more than the largest.
        """
        place, mapped = self.layout[key], self._map
        if place.begin == place.end:
            return torch.empty(place.shape, dtype=place.dtype)
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


def _read_header(
    read: Any, size: int, path: Path, largest: int
) -> tuple[dict[str, Layout], int]:
    if size < LENGTH.size:
        raise damaged(path, f"a file of {size} bytes")
    (length,) = LENGTH.unpack(read(LENGTH.size))
    if length > min(size - LENGTH.size, largest):
        raise damaged(path, f"a header of {length} bytes in a file of {size}")
    try:
        return _read_table(read(length), Allowance(size)), LENGTH.size + length
    except ValueError as problem:
        raise damaged(path, f"a malformed header ({problem})") from problem


def _read_table(text: bytes, allowance: Allowance) -> dict[str, Layout]:
    allowance.spend(len(text))
    members = Members(text, 0, allowance)
    table: dict[str, Layout] = {}
    keys: set[str] = set()
    for key, entry in members:
        if key in keys:
            raise ValueError(f"the key {key!r} stands twice")
        keys.add(key)
        content = parse(entry, is_shallow=True)
        if key != METADATA:
            allowance.spend_member(key)
            allowance.spend_record(entry)
            table[key] = _read_entry(key, content)
    if BLANKS.fullmatch(text, members.end) is None:
        raise ValueError("text behind it")
    return table


def _read_entry(key: str, entry: Any) -> Layout:
    try:
        dtype = DTYPES[entry["dtype"]]
        shape = tuple(map(check_count, entry["shape"]))
        if len(shape) > LARGEST_RANK:
            raise ValueError("too many dimensions")
        begin, end = map(check_count, entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"a malformed entry for '{key}'") from problem
    if end - begin != num_bytes(dtype, shape):
        raise ValueError(f"an extent of '{key}' that is not that of its shape")
    return Layout(dtype, shape, begin, end)


def _check_extents(layout: dict[str, Layout], size: int, path: Path) -> None:
    end = 0
    for key, place in sorted(layout.items(), key=lambda item: item[1][2:]):
        if place.begin != end:
            raise damaged(path, f"a hole or overlap before '{key}'")
        end = place.end
    if end != size:
        raise damaged(path, f"{size} bytes of tensors where the header tells of {end}")


def check_count(value: object) -> int:
    """Let only a whole number from 0 to 2⁶³ − 1 pass.

    Raises:
        ValueError: For anything else, True and False included.
    """
    if type(value) is int and 0 <= value < 2**63:
        return value
    raise ValueError(f"{value!r} is not a size")


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
