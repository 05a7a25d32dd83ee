"""Every change that a checkpoint makes on the disk passes through these functions.

They are the one place where a test can end the process, refuse an operation or write
a log: `before` is called with the kind of each change before it is made.
"""

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

Watcher = Callable[[str, Path, Any], None]

WHOLE_BLOCKS: Final = 1 << 22
# While more is written the disk is not left idle until the flush.
BEGIN_BYTES: Final = 1 << 24
SYNC_FILE_RANGE_WRITE: Final = 2


def _unwatched(kind: str, path: Path, detail: Any) -> None:
    """Nobody looks on."""


# Called with "create", "write" (and the bytes), "flush", "make folder", "flush folder",
# "rename" (and the new path), "remove" or "remove folder".
before: Watcher = _unwatched


def _find_begin_flush() -> Callable[[int, int, int], object]:
    """Linux's call that has the disk begin to write, and does not wait for it."""
    offset = ctypes.c_int64
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError, TypeError):
        return lambda descriptor, begin, count: None
    call.argtypes = [ctypes.c_int, offset, offset, ctypes.c_uint]
    # What goes wrong is told by the flush that follows.
    return lambda descriptor, begin, count: call(
        descriptor, begin, count, SYNC_FILE_RANGE_WRITE
    )


_begin_flush = _find_begin_flush()


class NewFile:
    """A file that did not exist, open for writing without a buffer.

    Args:
        path: Where it is made.

    Raises:
        FileExistsError: If something stands there.
        OSError: From the system.
    """

    def __init__(self, path: Path) -> None:
        before("create", path, None)
        self._path = path
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115  closed by the with
        self._size = self._begun = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, data: memoryview) -> None:
        """Write all of `data`, however little the system takes at a time."""
        while data.nbytes:
            piece = data[:WHOLE_BLOCKS]
            before("write", self._path, piece)
            count = self._file.write(piece)
            data = data[count:]
            self._size += count
        if self._size - self._begun >= BEGIN_BYTES:
            _begin_flush(self._file.fileno(), self._begun, self._size - self._begun)
            self._begun = self._size

    def flush(self) -> None:
        """Have the disk keep what was written. A failure is never tried again."""
        before("flush", self._path, None)
        os.fsync(self._file.fileno())


def flush_folder(path: Path) -> None:
    """Have the disk keep a folder's list of names."""
    before("flush folder", path, None)
    if os.name == "nt":  # a folder cannot be opened there; renames are journalled
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path, exist_ok: bool = False) -> None:
    """Make one folder in an existing one."""
    before("make folder", path, None)
    path.mkdir(exist_ok=exist_ok)


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name in one step; a file takes another's place."""
    before("rename", source, target)
    os.replace(source, target)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    before("remove", path, None)
    with suppress(FileNotFoundError):
        path.unlink()


def remove_folder(path: Path) -> None:
    """Remove an empty folder."""
    before("remove folder", path, None)
    path.rmdir()
