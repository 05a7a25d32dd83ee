"""The tables of a manifest: what is told of each file and each tensor.

A row is proven by a pattern and never made into a dict; see `members`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple, Self

import torch

from thalweg.checkpoint.allowance import (
    OBJECT_BYTES,
    TEXT_OF_A_BOX,
    TEXT_OF_A_CUT,
    Allowance,
)
from thalweg.checkpoint.boxes import Box, is_grid, is_tiling
from thalweg.checkpoint.durable import FILE_NAME
from thalweg.checkpoint.members import (
    NUMBER,
    NUMBERS,
    SPACE,
    Counts,
    Table,
    check_count,
    items_pattern,
    keys_of,
    object_pattern,
    row_pattern,
)
from thalweg.checkpoint.tensor_file import DTYPE_NAMES

_PLAIN: Final = rb'"([^"\\\x00-\x1f{}]*+)"'
_BOXES: Final = rb"\[((?:[, \n\r\t]*+\{[^{}]*+\})*+)%b\]" % SPACE
FILE: Final = row_pattern(object_pattern(bytes=NUMBER, crc32=rb'"([0-9a-f]{8})"'))
TENSOR: Final = row_pattern(object_pattern(shape=NUMBERS, dtype=_PLAIN, boxes=_BOXES))
BOX: Final = items_pattern(object_pattern(file=_PLAIN, offset=NUMBERS, shape=NUMBERS))
BOX_PARTS: Final = 3  # a stored box, its box, and a place in a list
DTYPES_OF_TEXT: Final = {name.encode(): dtype for name, dtype in DTYPE_NAMES.items()}


class FileEntry(NamedTuple):
    """Size in bytes and crc32 (eight hex digits) of one file."""

    bytes: int
    crc32: str


class StoredBox(NamedTuple):
    """A part of a tensor and the file that holds it, under the tensor's key."""

    file: str
    box: Box


class TensorEntry(NamedTuple):
    """Global shape and dtype of one tensor, and where it is stored.

    Made by `whole` or `divided`, so that what is alike is equal. `stored` is the name
    of the file that holds all of it, or its boxes.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: "str | tuple[StoredBox, ...]"

    @classmethod
    def whole(cls, file: str, shape: tuple[int, ...], dtype: torch.dtype) -> Self:
        """The entry of a tensor that lies in one file."""
        return cls(shape, dtype, file)

    @classmethod
    def divided(
        cls, shape: tuple[int, ...], dtype: torch.dtype, boxes: Sequence[StoredBox]
    ) -> Self:
        """The entry of a tensor that lies in these boxes, which are the whole of it."""
        return cls(shape, dtype, boxes[0].file if len(boxes) == 1 else tuple(boxes))

    @property
    def boxes(self) -> tuple[StoredBox, ...]:
        """The boxes that the tensor is stored as."""
        if isinstance(self.stored, str):
            return (StoredBox(self.stored, Box.whole(self.shape)),)
        return self.stored

    def to_json(self) -> dict[str, Any]:
        """What the manifest says of the tensor."""
        return {
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "boxes": [
                {"file": file, "offset": list(box.offset), "shape": list(box.shape)}
                for file, box in self.boxes
            ],
        }


def read_files(table: Table) -> dict[str, FileEntry]:
    """Read the table of files.

    Raises:
        ValueError: If it has another form, or a name that is no plain file's.
    """
    files: dict[str, FileEntry] = {}
    for rows in table:
        keys = keys_of(rows)
        table.allowance.spend_members(keys)
        table.allowance.memory.spend(2 * OBJECT_BYTES * len(rows))
        for name, (_, size, crc, _) in zip(keys, rows, strict=True):
            if FILE_NAME.fullmatch(name) is None:
                raise ValueError(f"the file name {name[:80]!r}")
            if not size or not crc:
                raise ValueError(f"size or checksum of {name!r}")
            if name in files:
                raise ValueError(f"the key {name!r} stands twice")
            files[name] = FileEntry(check_count(int(size)), crc.decode())
    return files


def read_tensors(
    table: Table, files: Mapping[str, FileEntry], allowance: Allowance
) -> dict[str, TensorEntry]:
    """Read the table of tensors.

    Args:
        table: The table.
        files: What the tensors lie in.
        allowance: For what stays.

    Raises:
        ValueError: If it has another form, or boxes that are not the whole of a tensor.
    """
    reading = _Tensors({name.encode(): name for name in files}, allowance)
    tensors: dict[str, TensorEntry] = {}
    for rows in table:
        keys = keys_of(rows)
        allowance.spend_members(keys)
        before = len(tensors)
        tensors.update(zip(keys, reading.entries(keys, rows), strict=True))
        if len(tensors) != before + len(keys):
            _refuse_twice(keys, list(tensors)[:before])
    return tensors


class _Tensors:
    """Makes entries of rows, many at a time: each step goes down a column.

    Args:
        files: Names of the files by their text.
        allowance: For what stays.
    """

    def __init__(self, files: dict[bytes, str], allowance: Allowance) -> None:
        self._files = files
        self._allowance = allowance
        self._counts = Counts(allowance)

    def entries(
        self, keys: list[str], rows: list[tuple[bytes, ...]]
    ) -> list[TensorEntry]:
        """The entries of rows that have these keys.

        Raises:
            ValueError: If one is not an entry, or its boxes are not the whole of it.
        """
        _, shapes, dtypes, lists, _ = zip(*rows, strict=True)
        boxes: list[tuple[bytes, ...]] = BOX.findall(b",".join(lists))
        numbers = [text.count(b"{") for text in lists]
        if sum(numbers) != len(boxes) or (boxes and boxes[-1][-1]):
            raise ValueError(f"a malformed box of a tensor from {keys[0]!r} on")
        try:
            kinds = [DTYPES_OF_TEXT[text] for text in dtypes]
            files = [self._files[box[0]] for box in boxes]
        except KeyError as problem:
            name = problem.args[0].decode(errors="replace")
            raise ValueError(f"the dtype or file {name[:80]!r}, not listed") from None
        sizes = self._counts.read(shapes)
        offsets = self._counts.read([box[1] for box in boxes])
        if max(numbers) == 1 and [box[2] for box in boxes] == list(shapes):
            same_ranks = list(map(len, offsets)) == list(map(len, sizes))
            if same_ranks and not any(map(any, offsets)):
                make = partial(tuple.__new__, TensorEntry)
                return list(map(make, zip(sizes, kinds, files, strict=True)))
        parts = self._counts.read([box[2] for box in boxes])
        self._allowance.memory.spend(BOX_PARTS * OBJECT_BYTES * len(boxes))
        self._allowance.text.spend(TEXT_OF_A_BOX * len(boxes))
        inner = map(partial(tuple.__new__, Box), zip(offsets, parts, strict=True))
        make = partial(tuple.__new__, StoredBox)
        stored = iter(map(make, zip(files, inner, strict=True)))
        return [
            self._divided(key, size, kind, list(islice(stored, number)))
            for key, size, kind, number in zip(keys, sizes, kinds, numbers, strict=True)
        ]

    def _divided(
        self,
        key: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        stored: list[StoredBox],
    ) -> TensorEntry:
        if len({file for file, _ in stored}) != len(stored):
            raise ValueError(f"two boxes of '{key}' in one file")
        boxes = [box for _, box in stored]
        if not is_grid(shape, boxes):
            self._allowance.text.spend(TEXT_OF_A_CUT * len(boxes))
            if not is_tiling(shape, boxes):
                raise ValueError(f"boxes of '{key}' that are not the whole of it")
        return TensorEntry.divided(shape, dtype, stored)


def _refuse_twice(keys: list[str], before: list[str]) -> None:
    seen = set(before)
    twice = next(key for key in keys if key in seen or seen.add(key))
    raise ValueError(f"the key {twice!r} stands twice")
