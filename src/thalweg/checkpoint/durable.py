"""Folders that appear whole or not at all, and stay after a power cut.

A folder is built under a temporary name beside its place, every file and the folder
itself are flushed to the disk, and one rename puts it in place. A folder that stood
there is moved aside first and removed only when the new one is durable. Nothing is
removed that is not a file of ours.
"""

import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from thalweg.checkpoint import disk
from thalweg.checkpoint.crc import RunningCrc, file_crc
from thalweg.errors import CheckpointError, describe, message

MANIFEST = "manifest.json"
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
TEMPORARY = re.compile(r"(?P<name>.+)\.tmp-[0-9a-f]{32}")
ASIDE = re.compile(r"(?P<name>.+)\.old-[0-9a-f]{32}")
LAST_NUMBER = re.compile(r"\d{1,18}$")
# Names of a folder that are looked at to say what is in it.
MOST_SEEN = 1 << 10


def place_of(where: str, path: str | os.PathLike[str]) -> Path:
    """A path that a user gave, absolute.

    Raises:
        TypeError: If it is none, as of a manager that has no checkpoint yet.
    """
    given: object = path
    if isinstance(given, (str, os.PathLike)):
        return Path(os.path.abspath(path))
    action = "Pass a str or a pathlib.Path."
    if given is None:
        action += (
            " Where there may be no checkpoint yet, call restore_or_initialize() of a "
            "CheckpointManager."
        )
    raise TypeError(message(where, "a path", describe(given), action))


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a new file and flush it to the disk.

    Returns:
        Size in bytes, and crc32 as eight hex digits, computed while writing.

    Raises:
        OSError: If the system cannot write or flush (a full disk, a broken one).
    """
    size = 0
    with disk.NewFile(path) as file, RunningCrc() as crc:
        for chunk in chunks:
            for piece in crc.pieces(memoryview(chunk).cast("B")):
                file.write(piece)
                size += piece.nbytes
        total = crc.value()
        file.flush()
    return size, f"{total:08x}"


def replace_file(path: Path, content: bytes) -> None:
    """Give a file new content in one step that a power cut cannot halve.

    Raises:
        OSError: From the system; the file is as it was.
    """
    temporary = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")
    try:
        write_file(temporary, [content])
        disk.rename(temporary, path)
        disk.flush_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            disk.remove(temporary)
        raise


def checksum(path: Path) -> str:
    """crc32 of a file's bytes, as eight hex digits."""
    return f"{file_crc(path):08x}"


def flush_folder(path: Path) -> None:
    """Flush a folder's list of names to the disk."""
    disk.flush_folder(path)


def make_parents(folder: Path) -> None:
    """Create `folder` and what it needs, each durable in its parent."""
    if not folder.is_dir():
        make_parents(folder.parent)
        disk.make_folder(folder, exist_ok=True)
        disk.flush_folder(folder.parent)


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a real folder that holds a manifest and only our files."""
    if path.is_symlink() or not (path / MANIFEST).is_file():
        return False
    return all(map(_is_ours, path.iterdir()))


def _is_ours(file: Path) -> bool:
    named = file.name == MANIFEST or FILE_NAME.fullmatch(file.name) is not None
    return named and file.is_file() and not file.is_symlink()


def holds_tensors(path: Path) -> bool:
    """Whether a folder holds tensors, as one that has lost its manifest does."""
    with os.scandir(path) as found:
        return any(
            FILE_NAME.fullmatch(entry.name) for entry in islice(found, MOST_SEEN)
        )


def checkpoints_below(path: Path) -> list[Path]:
    """Checkpoints in a folder or in folders in it, newest first.

    Those with a number at the end of their names, as of a step, go by that.
    """
    children = list(_folders_in(path))
    found = [*children, *(inner for child in children for inner in _folders_in(child))]
    return sorted(filter(is_checkpoint, found[:MOST_SEEN]), key=_age, reverse=True)


def _folders_in(path: Path) -> Iterator[Path]:
    with suppress(OSError), os.scandir(path) as found:
        for entry in islice(found, MOST_SEEN):
            if entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _age(path: Path) -> tuple[int, int, str]:
    number = LAST_NUMBER.search(path.name)
    written = (path / MANIFEST).stat().st_mtime_ns
    return int(number[0]) if number else -1, written, path.name


def remove_checkpoint(path: Path) -> None:
    """Remove our files from a folder, the manifest first, then the folder.

    What others have put there stays, and then the folder stays too.
    """
    disk.remove(path / MANIFEST)
    for file in list(path.iterdir()):
        if _is_ours(file):
            disk.remove(file)
    if not any(path.iterdir()):
        disk.remove_folder(path)


def asides(path: Path) -> list[Path]:
    """Checkpoints that an interrupted overwrite of `path` moved aside, newest first."""
    return sorted(filter(is_checkpoint, _siblings(path, ASIDE)), reverse=True)


def _siblings(path: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    if path.parent.is_dir():
        for sibling in path.parent.iterdir():
            found = pattern.fullmatch(sibling.name)
            named = found is not None and found["name"] == path.name
            if named and sibling.is_dir() and not sibling.is_symlink():
                yield sibling


def _aside(path: Path) -> Path:
    # The time comes first, so that the order of names is that of moving aside.
    return path.with_name(
        f"{path.name}.old-{time.time_ns():016x}{uuid.uuid4().hex:.16}"
    )


@contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends well.

    Args:
        path: Where the folder shall stand.
        overwrite: Whether a checkpoint that stands there is replaced.

    Raises:
        CheckpointError: If `path` exists and may not be replaced.
        OSError: From the system. The temporary folder is removed and what stood at
            `path` stands there still.
    """
    temporary = begin(path, overwrite)
    try:
        yield temporary
        publish(temporary, path, overwrite)
    except BaseException as problem:
        abandon(temporary, path, problem)
        raise


def begin(path: Path, overwrite: bool) -> Path:
    """Make the temporary folder beside `path`.

    Raises:
        CheckpointError: If `path` exists and may not be replaced.
        OSError: From the system; nothing is left.
    """
    check_free(path, overwrite)
    make_parents(path.parent)
    temporary = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")
    disk.make_folder(temporary)
    return temporary


def abandon(temporary: Path, path: Path, problem: BaseException | None = None) -> None:
    """Remove what a failed save has left, and note on its error that it did."""
    with suppress(OSError):  # the error that led here is the one to be told
        if temporary.is_dir():
            remove_checkpoint(temporary)
    if isinstance(problem, OSError):
        problem.add_note(f"Nothing was saved; what was at {path} is unchanged.")


def clear_leavings(path: Path) -> None:
    """Remove what processes that died while saving `path` have left beside it.

    To be called only where no other process can be saving `path`.
    """
    for temporary in list(_siblings(path, TEMPORARY)):
        remove_checkpoint(temporary)
    if is_checkpoint(path):
        for old in list(_siblings(path, ASIDE)):
            remove_checkpoint(old)


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse a path that is taken.

    Raises:
        CheckpointError: If something stands at `path` and `overwrite` is False, or
            if what stands there is not a checkpoint.
    """
    if not os.path.lexists(path) or (overwrite and is_checkpoint(path)):
        return
    expected = "a path where nothing stands"
    action = "Choose another path, or pass overwrite=True."
    if overwrite:
        expected = "a checkpoint to overwrite, or nothing"
        action = "It holds other files, so it is not removed: choose another path."
    got = f"the existing {path}"
    raise CheckpointError(message("Checkpoint.save", expected, got, action))


def publish(temporary: Path, path: Path, overwrite: bool) -> None:
    """Put a filled temporary folder in its place; it stays there from then on.

    Raises:
        CheckpointError: If `path` has been taken meanwhile.
        OSError: From the system; what stood at `path` stands there.
    """
    disk.flush_folder(temporary)
    check_free(path, overwrite)
    aside = _aside(path)
    try:
        if overwrite and path.exists():
            disk.rename(path, aside)
        disk.rename(temporary, path)
        disk.flush_folder(path.parent)
    except BaseException:
        if not temporary.exists():
            disk.rename(path, temporary)
        if aside.exists():
            disk.rename(aside, path)
        raise
    # The new one stands: what cannot be removed now is at the next overwrite.
    with suppress(OSError):
        for old in list(_siblings(path, ASIDE)):
            remove_checkpoint(old)
