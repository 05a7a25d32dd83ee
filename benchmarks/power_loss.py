"""What a disk may hold after a power cut, from a log of what was done to it.

A log is a list of operations. Every prefix of it is a moment at which power can fail.
From that moment on, what was flushed is certain; any of the rest may be missing: single
writes, parts of a write in blocks of 512 bytes, names made, changed and removed, in any
order that a file system could have chosen. `states` deals out such disks at random.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

BLOCK_BYTES = 512
ACKNOWLEDGED = "acknowledged"
CALLS = (
    "openat,open,creat,write,pwrite64,writev,lseek,ftruncate,close,fsync,fdatasync,"
    "mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,copy_file_range,"
    "sendfile,link,linkat"
)


class Operation(NamedTuple):
    """One change: its kind (as in `thalweg.checkpoint.disk`), path, and what else.

    The detail is (offset, bytes) of a write, the new path of a rename, the size of a
    "truncate", and the number of a checkpoint that is "acknowledged".
    """

    kind: str
    path: str
    detail: Any = None


@dataclass(eq=False)
class File:
    """The data operations on a file; the first `durable` of them are certain."""

    changes: list[tuple[int, bytes | None]] = field(default_factory=list)
    durable: int = 0


@dataclass(eq=False)
class Folder:
    """A folder: what it holds while power is on."""

    names: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class NameChange:
    """A name made, changed or removed in a folder."""

    kind: str
    folder: Folder
    name: str
    node: File | Folder
    target: tuple[Folder, str] | None = None
    is_durable: bool = False


class Log:
    """Replays the first operations of a log and tells what is certain after them.

    Args:
        operations: The log's beginning, up to the power cut.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.root = Folder()
        self.changes: list[NameChange] = []
        self.acknowledged = -1
        for operation in operations:
            getattr(self, "_" + operation.kind.replace(" ", "_"))(*operation[1:])

    def _find(self, path: str) -> Any:
        node: Any = self.root
        for part in Path(path).parts:
            node = node.names[part]
        return node

    def _parent(self, path: str) -> tuple[Folder, str]:
        place = Path(path)
        return self._find(str(place.parent)), place.name

    def _make(self, path: str, node: File | Folder) -> None:
        folder, name = self._parent(path)
        folder.names[name] = node
        self.changes.append(NameChange("make", folder, name, node))

    def _create(self, path: str, _: Any) -> None:
        self._make(path, File())

    def _make_folder(self, path: str, _: Any) -> None:
        folder, name = self._parent(path)
        if name not in folder.names:
            self._make(path, Folder())

    def _write(self, path: str, detail: tuple[int, bytes]) -> None:
        self._find(path).changes.append(detail)

    def _truncate(self, path: str, size: int) -> None:
        self._find(path).changes.append((size, None))

    def _flush(self, path: str, _: Any) -> None:
        file = self._find(path)
        file.durable = len(file.changes)

    def _flush_folder(self, path: str, _: Any) -> None:
        folder = self._find(path)
        for change in self.changes:
            into = change.target[0] if change.target else None
            if folder in (change.folder, into):
                change.is_durable = True

    def _rename(self, path: str, target: str) -> None:
        folder, name = self._parent(path)
        into = self._parent(target)
        node = folder.names.pop(name)
        into[0].names[into[1]] = node
        self.changes.append(NameChange("rename", folder, name, node, into))

    def _remove(self, path: str, _: Any) -> None:
        folder, name = self._parent(path)
        node = folder.names.pop(name, None)
        if node is not None:
            self.changes.append(NameChange("remove", folder, name, node))

    _remove_folder = _remove

    def _acknowledged(self, _: str, number: int) -> None:
        self.acknowledged = number


def survivors(log: Log, chance: random.Random, kept: float) -> dict[Folder, Any]:
    """Names by folder after the cut: each change that is not certain may be lost."""
    names: dict[Any, dict[str, Any]] = {log.root: {}}
    for change in log.changes:
        if not change.is_durable and chance.random() >= kept:
            continue
        here = names.setdefault(change.folder, {})
        if change.kind == "make":
            here[change.name] = change.node
        elif here.get(change.name) is not change.node:
            continue  # what it would change has been lost
        elif change.target is None:
            if not names.get(change.node):  # a folder that is not empty stays
                del here[change.name]
        else:
            into = names.setdefault(change.target[0], {})
            taken = into.get(change.target[1])
            if taken is None or not names.get(taken):
                into[change.target[1]] = here.pop(change.name)
    return names


def content(file: File, chance: random.Random, kept: float) -> bytes:
    """A file's bytes after the cut: writes lost, or torn at 512 bytes."""
    data = bytearray()
    for number, (offset, written) in enumerate(file.changes):
        certain = number < file.durable
        luck = chance.random()
        if not certain and luck >= kept and chance.random() < 0.5:
            continue
        if written is None:
            del data[offset:]
            data.extend(bytes(max(0, offset - len(data))))
            continue
        end = offset + len(written)
        data.extend(bytes(max(0, end - len(data))))
        for block in range(offset - offset % BLOCK_BYTES, end, BLOCK_BYTES):
            begin, stop = max(block, offset), min(block + BLOCK_BYTES, end)
            if certain or luck < kept or chance.random() < 0.5:
                data[begin:stop] = written[begin - offset : stop - offset]
    return bytes(data)


def put_on_disk(
    names: dict[Folder, Any], node: Folder, read: Callable[[File], bytes], place: Path
) -> None:
    """Write the folder that survived to `place`, which is empty."""
    for name, child in names.get(node, {}).items():
        if isinstance(child, File):
            (place / name).write_bytes(read(child))
        else:
            (place / name).mkdir()
            put_on_disk(names, child, read, place / name)


def states(
    operations: Sequence[Operation], count: int, seed: int
) -> Iterator[tuple[int, Callable[[Path], None]]]:
    """Disks after a power cut: every moment in turn, until there are `count`.

    Gives the newest acknowledged checkpoint, and a function that writes the disk to
    an empty folder. At every moment, once all that is not certain is lost, once
    nothing is, and then chance decides.
    """
    chance = random.Random(seed)
    number = 0
    while True:
        kept = (0.0, 1.0, 0.5, 0.9, 0.1)[number % 5] if number < 10 else chance.random()
        for moment in range(1, len(operations) + 1):
            if count <= 0:
                return
            count -= 1
            log = Log(operations[:moment])
            names = survivors(log, chance, kept)

            read = partial(content, chance=chance, kept=kept)
            yield log.acknowledged, partial(put_on_disk, names, log.root, read)
        number += 1


# ---------------------------------------------------------------- from strace

_LINE = re.compile(r"(?P<time>[\d.]+) (?P<call>\w+)\((?P<rest>.*)\)\s+= (?P<result>.*)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"(-?\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>")


def traced(command: Sequence[str], folder: Path, logs: Path) -> list[Operation]:
    """Run a command under strace and log what it does to a folder.

    Args:
        command: What is run.
        folder: What is watched; a subfolder `acknowledged` gets a folder for each
            checkpoint that is acknowledged, named by its number.
        logs: An empty folder for strace's files.
    """
    tracer = ["strace", "-ff", "-ttt", "-y", "-xx", "-s", "10000000"]
    options = ["-e", f"trace={CALLS}", "-o", str(logs / "log")]
    subprocess.run([*tracer, *options, *command], check=True, timeout=300)
    lines: list[tuple[float, str]] = []
    for file in logs.iterdir():
        for line in file.read_text(encoding="ascii").splitlines():
            if re.match(r"[\d.]+ \w+\(", line):
                lines.append((float(line.split(" ", 1)[0]), line))
    trace = _Trace(folder)
    for _, line in sorted(lines):
        trace.add(line)
    return trace.operations


def _plain(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


class _Trace:
    """Turns lines of strace into operations."""

    def __init__(self, folder: Path) -> None:
        self.operations: list[Operation] = []
        self._folder = folder
        self._offsets: dict[int, int] = {}
        self._made: set[str] = set()

    def _inside(self, path: bytes) -> str | None:
        place = Path(path.decode())
        if not place.is_relative_to(self._folder):
            return None
        return str(place.relative_to(self._folder))

    def add(self, line: str) -> None:
        found = _LINE.fullmatch(line)
        if found is None or found["result"].startswith("-1"):
            return
        call = found["call"]
        rest, result = found["rest"], found["result"]
        if call in ("openat", "open", "creat"):
            self._opened(rest, result)
        elif call.startswith("rename"):
            self._renamed(_TEXT.findall(rest))
        elif call in ("mkdir", "mkdirat", "unlink", "unlinkat", "rmdir"):
            self._named(call, _TEXT.findall(rest), rest)
        else:
            self._on_descriptor(call, rest, result)

    def _opened(self, rest: str, result: str) -> None:
        found = _DESCRIPTOR.match(result)
        path = self._inside(_plain(found[2])) if found else None
        if found is None or path is None:
            return
        self._offsets[int(found[1])] = 0
        if "O_CREAT" in rest and path not in self._made:
            self._made.add(path)
            self.operations.append(Operation("create", path))
        elif "O_TRUNC" in rest:
            self.operations.append(Operation("truncate", path, 0))

    def _renamed(self, texts: list[str]) -> None:
        source, target = (self._inside(_plain(text)) for text in texts)
        if source is None or target is None:
            return
        self.operations.append(Operation("rename", source, target))
        self._made.discard(source)
        self._made.add(target)

    def _named(self, call: str, texts: list[str], rest: str) -> None:
        path = self._inside(_plain(texts[0]))
        if path is None or path == ".":
            return
        if path.startswith("acknowledged"):
            if path != "acknowledged":
                number = int(Path(path).name)
                self.operations.append(Operation(ACKNOWLEDGED, "", number))
        elif call.startswith("mkdir"):
            self.operations.append(Operation("make folder", path))
        else:
            self._made.discard(path)
            is_folder = call == "rmdir" or "AT_REMOVEDIR" in rest
            kind = "remove folder" if is_folder else "remove"
            self.operations.append(Operation(kind, path))

    def _on_descriptor(self, call: str, rest: str, result: str) -> None:
        found = _DESCRIPTOR.match(rest)
        path = self._inside(_plain(found[2])) if found else None
        if found is None or path is None:
            return
        number = int(found[1])
        if call == "lseek":
            self._offsets[number] = int(result.split()[0])
        elif call in ("fsync", "fdatasync"):
            is_folder = path == "." or path not in self._made
            kind = "flush folder" if is_folder else "flush"
            self.operations.append(Operation(kind, path))
        elif call == "ftruncate":
            size = int(rest.rsplit(",", 1)[1])
            self.operations.append(Operation("truncate", path, size))
        elif call in ("write", "pwrite64", "writev"):
            data = b"".join(map(_plain, _TEXT.findall(rest)))[: int(result)]
            offset = self._offsets.get(number, 0)
            if call == "pwrite64":
                offset = int(rest.rsplit(",", 1)[1])
            else:
                self._offsets[number] = offset + len(data)
            self.operations.append(Operation("write", path, (offset, data)))
        elif call in ("copy_file_range", "sendfile"):
            sys.stderr.write(f"not understood: {call} on {path}\n")
