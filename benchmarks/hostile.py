"""Checkpoint folders with the right checksums and as much text as may be read.

Each is as slow to refuse, or as large in memory, as we know how to make it: its fault
is the last thing that is looked at, and all before it is spelt in as few characters as
possible. The tensor file is sparse, so that memory is granted which it does not hold.
"""

from __future__ import annotations

import re
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch

from thalweg.checkpoint import Checkpoint
from thalweg.checkpoint.allowance import (
    ALWAYS_ALLOWED,
    PARSED_BYTES_OF_TEXT,
    TEXT_OF_A_BOX,
    TEXT_OF_A_CUT,
    TEXT_OF_A_FILE,
    TEXT_OF_A_ROW,
    most_text,
)
from thalweg.errors import CheckpointError
from thalweg.state import Variable

FILE, MANIFEST = "tensors.safetensors", "manifest.json"
SPARSE_BYTES = 1 << 25
HEAD = (
    '{"format":"thalweg-checkpoint","format_version":1,"crc32": "00000000",'
    '"step":0,"files":{%s},"tensors":{%s},"aliases":{},"hyperparameters":{},'
    '"values":{%s},"metadata":{}}'
)
DENSE = '"{0:x}":{{"shape":[{0}],"dtype":"bool","boxes":[{1}]}}'
BOX = '{{"file":"{}","offset":[{}],"shape":[{}]}}'
UNEVEN_RANK = 40


def sealed(text: str) -> bytes:
    """The text with its own checksum."""
    blank = text.encode()
    crc = b'"crc32": "%08x"' % zlib.crc32(blank)
    return re.sub(rb'"crc32": "0{8}"', crc, blank, count=1)


def filled(items: Iterator[str], room: int, last: str, more: int = 0) -> str:
    """As many rows as there is room for, and another one behind them.

    Args:
        items: Rows.
        room: Bytes of text, and of what counts as text.
        last: The last row.
        more: What a row counts for beside itself and its being a row.
    """
    found: list[str] = []
    left = room - len(last) - TEXT_OF_A_ROW - more
    for item in items:
        left -= len(item) + 1 + TEXT_OF_A_ROW + more
        if left < 0:
            break
        found.append(item)
    return ",".join([*found, last])


class Folder:
    """A folder to be made: files by name, and what is told of them.

    Args:
        path: Where it is made.
        names: Of the tensor files.
        header: Text of the header of each, without its end.
    """

    def __init__(self, path: Path, names: list[str], header: str = "") -> None:
        path.mkdir()
        self.path = path
        told: list[str] = []
        each = SPARSE_BYTES // len(names)
        entry = f'"x":{{"dtype":"U8","shape":[{each}],"data_offsets":[0,{each}]}}'
        text = f"{{{header}{entry}}}".encode()
        for name in names:
            with open(path / name, "wb") as file:
                file.write(struct.pack("<Q", len(text)) + text)
                file.truncate(8 + len(text) + each)
            size = 8 + len(text) + each
            told.append(f'"{name}":{{"bytes":{size},"crc32":"00000000"}}')
        self.files = ",".join(told)
        self.stored = len(names) * (8 + len(text) + each)
        opened = len(names) * (8 + len(text) + TEXT_OF_A_FILE)
        bare = len(HEAD % (self.files, "", ""))
        self.room = most_text(self.stored) - opened - bare - 8

    def write(self, tensors: str = "", values: str = "") -> None:
        """Write a manifest that says this."""
        text = sealed(HEAD % (self.files, tensors, values))
        (self.path / MANIFEST).write_bytes(text)


def single(path: Path, last: str = '"a":{"shape":[-1]}') -> None:
    """Tensors in one box each, told of as shortly as possible."""
    folder = Folder(path, [FILE])
    items = (DENSE.format(i, BOX.format(FILE, 0, i)) for i in count())
    folder.write(filled(items, folder.room, last))


def listed(path: Path) -> None:
    """The same tensors in manifest and header; only the checksum is wrong."""
    entry = '"{0:x}":{{"dtype":"BOOL","shape":[0],"data_offsets":[0,0]}}'
    row = 2 * TEXT_OF_A_ROW + len(entry) + len(DENSE) + len(BOX) + len(FILE)
    number = most_text(SPARSE_BYTES) // row
    header = ",".join(entry.format(i) for i in range(number))
    folder = Folder(path, [FILE], header + ",")
    told = '"{0:x}":{{"shape":[0],"dtype":"bool","boxes":[{1}]}}'
    items = (told.format(i, BOX.format(FILE, 0, 0)) for i in range(number))
    box = BOX.format(FILE, 0, SPARSE_BYTES)
    last = f'"x":{{"shape":[{SPARSE_BYTES}],"dtype":"uint8","boxes":[{box}]}}'
    folder.write(filled(items, folder.room, last))


def header(path: Path) -> None:
    """A header of tensors that are told of as shortly as possible."""
    entry = '"{0:x}":{{"dtype":"U8","shape":[],"data_offsets":[{0},{1}]}}'
    room = most_text(SPARSE_BYTES) - 2 * TEXT_OF_A_FILE
    items = (entry.format(i, i + 1) for i in count())
    Folder(path, [FILE], filled(items, room, '"a":{"dtype":"U8"},')).write()


def divided(path: Path, parts: int, rank: int = 1) -> None:
    """Tensors cut into rows; in the last one an element is missing."""
    names = [f"{part}.safetensors" for part in range(parts)]
    folder = Folder(path, names)

    def tensor(number: int, miss: int = 0) -> str:
        rest = ",1" * (rank - 1)
        boxes = ",".join(
            BOX.format(name, f"{part * number}{',0' * (rank - 1)}", f"{number}{rest}")
            for part, name in enumerate(names)
        )
        shape = f"{parts * number + miss}{rest}"
        return f'"{number}":{{"shape":[{shape}],"dtype":"bool","boxes":[{boxes}]}}'

    items = (tensor(number) for number in count(1))
    last = tensor(10**9, miss=1)
    folder.write(filled(items, folder.room, last, parts * TEXT_OF_A_BOX))


def peeled(path: Path, parts: int, rank: int = 2) -> None:
    """Boxes that come apart one at a time, by cuts of one dimension and the next."""
    names = [f"{part}.safetensors" for part in range(parts)]
    folder = Folder(path, names)
    boxes: list[str] = []
    offset, size = [0] * rank, [parts] * rank
    for part, name in enumerate(names):
        axis = rank - 1 - part % 2
        box = [*size]
        if part < parts - 1:
            box[axis] = 1
        places = BOX.format(name, ",".join(map(str, offset)), ",".join(map(str, box)))
        boxes.append(places)
        offset[axis] += 1
        size[axis] -= 1
    shape = ",".join([str(parts)] * rank)
    told = f'{{"shape":[{shape}],"dtype":"bool","boxes":[{",".join(boxes)}]}}'
    items = (f'"{number:x}":{told}' for number in count())
    more = parts * (TEXT_OF_A_BOX + TEXT_OF_A_CUT)
    folder.write(filled(items, folder.room, '"a":{"shape":[-1]}', more))


def staggered(path: Path, parts: int) -> None:
    """Boxes that overlap in every one of many dimensions, where no cut is found."""
    names = [f"{part}.safetensors" for part in range(parts)]
    folder = Folder(path, names)
    boxes = ",".join(
        BOX.format(
            name,
            ",".join([str(part)] * UNEVEN_RANK),
            ",".join([str(parts)] * UNEVEN_RANK),
        )
        for part, name in enumerate(names)
    )
    shape = ",".join([str(2 * parts)] * UNEVEN_RANK)
    one = f'"a":{{"shape":[{shape}],"dtype":"bool","boxes":[{boxes}]}}'
    good = (DENSE.format(i, BOX.format(names[0], 0, i)) for i in count())
    room = folder.room - parts * (TEXT_OF_A_BOX + TEXT_OF_A_CUT)
    # Boxes of one piece of text are read together, and count alike.
    folder.write(filled(good, room - (1 << 18), one))


def one_list(path: Path) -> None:
    """One tensor with a box in each file, and the files are too few."""
    folder = Folder(path, [FILE])
    items = (BOX.format(FILE, i, 1) for i in count())
    more = TEXT_OF_A_BOX - TEXT_OF_A_ROW
    boxes = filled(items, folder.room - 200, BOX.format(FILE, 1, 1), more)
    folder.write(f'"a":{{"shape":[1],"dtype":"bool","boxes":[{boxes}]}}')


def many_files(path: Path) -> None:
    """As many files as may be; the manifest is at fault."""
    number = most_text(SPARSE_BYTES) // (TEXT_OF_A_FILE + 200)
    folder = Folder(path, [f"{part}.safetensors" for part in range(number)])
    folder.write('"a":{"shape":[-1]}')


def values(item: str, parsed: int) -> Callable[[Path], None]:
    """Plain values of one kind, of which one is estimated to take so much."""

    def make(path: Path) -> None:
        folder = Folder(path, [FILE])
        room = folder.room * PARSED_BYTES_OF_TEXT // (parsed + 2 * len(item) + 2)
        number = min(folder.room // (len(item) + 1), room) * 99 // 100
        folder.write(values=f'"a":[{",".join([item] * number)},{{"$tensor":"n"}}]')

    return make


def blanks(path: Path) -> None:
    """Indented by much, and keys that are spelt in escapes."""
    folder = Folder(path, [FILE])
    one = DENSE.replace(":x}", ":x}\\u0061").replace(",", " ,\n  ")
    items = (one.format(i, BOX.format(FILE, 0, i)) for i in count())
    folder.write(filled(items, folder.room, '"a":{"shape":[-1]}'))


def quotes(path: Path) -> None:
    """Text that looks like the beginning of a row again and again."""
    folder = Folder(path, [FILE])
    text = '"\\\\' * (folder.room // 8)
    folder.write(f'"a":{{"shape":[1]}},{text}')


KINDS: dict[str, Callable[[Path], None]] = {
    "tensors": single,
    "tensors, listed twice": listed,
    "header": header,
    "blanks and escapes": blanks,
    "2 boxes": lambda path: divided(path, 2),
    "64 boxes": lambda path: divided(path, 64),
    "64 boxes of 4 dimensions": lambda path: divided(path, 64, 4),
    "8 boxes, peeled": lambda path: peeled(path, 8),
    "24 boxes, peeled": lambda path: peeled(path, 24),
    "64 boxes, peeled": lambda path: peeled(path, 64),
    "staggered boxes": lambda path: staggered(path, 200),
    "one list of boxes": one_list,
    "files": many_files,
    "lists": values("[]", 149),
    "objects": values('{"":0}', 419),
    "numbers": values("300", 45),
    "strings": values('"ab"', 101),
    "quotes": quotes,
}


def refuse(path: Path) -> dict[str, Any]:
    """Restore from a folder: the error, the least seconds of three, and memory."""
    x = Variable(torch.zeros(2))
    checkpoint = Checkpoint(x=x)
    said, seconds = "", []
    for _ in range(3):
        start = time.process_time()
        said = _refused(checkpoint, path)
        seconds.append(time.process_time() - start)
    tracemalloc.start()
    try:
        again = _refused(checkpoint, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = sum(file.stat().st_size for file in path.iterdir())
    return {
        "sound": said == again and str(path) in said and not x.any(),
        "said": said,
        "seconds": min(seconds),
        "peak": peak,
        "granted": ALWAYS_ALLOWED + 2 * size,
        "manifest": (path / MANIFEST).stat().st_size,
    }


def _refused(checkpoint: Checkpoint, path: Path) -> str:
    try:
        checkpoint.restore(path)
    except CheckpointError as problem:
        return str(problem)
    return ""
