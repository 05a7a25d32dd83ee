"""Compiled kernels on disk.

A loaded kernel is code, so its folder must belong to the user and be closed to
others, and each file ends with a digest of itself and its name: a truncated or foreign
file is never loaded, nor one of another kernel. Files are written beside their place
and renamed into it, so that two processes may compile the same kernel at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DiskCache", "FolderRefusedError"]

_DIGEST_BYTES = 32


class FolderRefusedError(OSError):
    """The cache folder cannot be trusted or used; the message says why."""


@dataclass(frozen=True)
class DiskCache:
    """A folder of shared libraries, named by the digest of all they depend on.

    Attributes:
        folder: Where they are.
    """

    folder: Path

    def open(self) -> None:
        """Make the folder, or check that it is the user's own.

        Raises:
            FolderRefusedError: If it cannot be made, belongs to somebody else, or is
                open to others.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.folder.stat()
        except OSError as error:
            raise FolderRefusedError(f"{self.folder}: {error.strerror}") from error
        if status.st_uid != os.geteuid():
            raise FolderRefusedError(f"{self.folder} belongs to another user")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise FolderRefusedError(
                f"{self.folder} is open to other users; say chmod 700 {self.folder}"
            )

    def path(self, key: str) -> Path:
        """Where the library of a key is or will be."""
        return self.folder / f"{key}.so"

    def find(self, key: str) -> Path | None:
        """The library of a key, if it is there, whole and the user's own.

        A file that is not is removed, so that it is built again.
        """
        path = self.path(key)
        try:
            with path.open("rb") as file:
                owner = os.fstat(file.fileno()).st_uid
                content = file.read()
        except OSError:
            return None
        if owner == os.geteuid() and _is_whole(key, content):
            return path
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def store(self, key: str, library: bytes) -> Path:
        """Keep a library under its key.

        Raises:
            OSError: If the disk is full or read-only.
        """
        path = self.path(key)
        handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(library + _digest(key, library))
            Path(temporary).chmod(0o700)
            Path(temporary).replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
        return path


def _is_whole(key: str, content: bytes) -> bool:
    library, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    return _digest(key, library) == digest


def _digest(key: str, library: bytes) -> bytes:
    return hashlib.sha256(key.encode() + library).digest()
