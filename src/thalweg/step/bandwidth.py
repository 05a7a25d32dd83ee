"""The memory bandwidth of this machine, measured once and kept beside the kernels.

An update is one pass over memory, so bytes over bandwidth is the time it takes.
`thalweg bench` measures; `explain` reads what it left in the cache folder.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thalweg import settings
from thalweg.compiler.cache import DiskCache, FolderRefusedError

__all__ = ["Bandwidth", "keep_bandwidth", "read_bandwidth"]

_FILE = "bandwidth.json"


@dataclass(frozen=True)
class Bandwidth:
    """What was measured on one device.

    Attributes:
        bytes_per_second: Bytes read and written.
        threads: Threads that shared the work; 0 on a GPU.
        date: Day of the measurement, as YYYY-MM-DD.
    """

    bytes_per_second: float
    threads: int
    date: str

    def seconds(self, num_bytes: float) -> float:
        """How long a pass over so many bytes takes."""
        return num_bytes / self.bytes_per_second


def read_bandwidth(device: str = "cpu") -> Bandwidth | None:
    """What was kept for a device.

    Args:
        device: ``"cpu"``, or the name of a GPU.

    Returns:
        The measurement; None if there is none, the file cannot be understood, or the
        folder is one that kernels are not kept in.

    Example:
        >>> read_bandwidth("a device that was never measured") is None
        True
    """
    found: Any = _read_all().get(device)
    try:
        rate, threads = float(found["bytes_per_second"]), int(found["threads"])
        return Bandwidth(rate, threads, str(found["date"])) if rate > 0 else None
    except (KeyError, TypeError, ValueError):
        return None


def keep_bandwidth(bandwidth: Bandwidth, device: str = "cpu") -> Path:
    """Keep a measurement; those of other devices stay.

    Args:
        bandwidth: The measurement.
        device: ``"cpu"``, or the name of a GPU.

    Returns:
        The file, in the folder of compiled kernels.

    Raises:
        FolderRefusedError: If the folder cannot be made or written, or would not be
            used for kernels either.
    """
    folder = settings.read().cache_dir
    DiskCache(folder).open()
    content = {**_read_all(), device: asdict(bandwidth)}
    try:
        return _write(folder / _FILE, json.dumps(content, indent=2))
    except OSError as error:
        raise FolderRefusedError(f"{folder}: {error.strerror}") from error


def _write(path: Path, text: str) -> Path:
    """Write a file beside its place, and rename it into it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        return Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read_all() -> dict[str, Any]:
    folder = settings.read().cache_dir
    try:
        text = (folder / _FILE).read_text(encoding="utf-8")
        # Looked at after the file, so that reading makes no folder.
        DiskCache(folder).open()
        return {**json.loads(text)}
    except (OSError, TypeError, ValueError):
        return {}
