"""Which checkpoints of a folder a manager has made: it removes no others.

`checkpoints.json` names each checkpoint before it is written, and holds the checksum
of its manifest as soon as it stands. What has been put there in its place by somebody
else has another one, and is left alone.
"""

import logging
import zlib
from pathlib import Path
from typing import Any, Final

from thalweg.checkpoint.allowance import Allowance, most_text
from thalweg.checkpoint.durable import MANIFEST, replace_file
from thalweg.checkpoint.encoding import dump, parse, parsed_bytes
from thalweg.checkpoint.folder import read_manifest
from thalweg.errors import CheckpointError

logger = logging.getLogger(__name__)

RECORD: Final = "checkpoints.json"
FORMAT: Final = "thalweg-checkpoints"
LARGEST_BYTES: Final = 1 << 24


class Record:
    """The names of checkpoints that were made in one folder.

    A record that cannot be read counts as empty: nothing is removed then.

    Args:
        directory: The folder of checkpoints.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[str, str | None] = {}
        file = directory / RECORD
        try:
            if file.is_file() and file.stat().st_size <= LARGEST_BYTES:
                text = file.read_bytes()
                Allowance(len(text), most_text(0)).memory.check(parsed_bytes(text))
                self._made = _checked(parse(text))
        except (OSError, ValueError) as problem:
            logger.warning(
                "%s cannot be read (%s): checkpoints made before are kept for good.",
                *(file, problem),
            )

    @property
    def names(self) -> list[str]:
        """Names of all checkpoints that were announced and not removed since."""
        return list(self._made)

    def owns(self, name: str) -> bool:
        """Whether what stands at `name` is what was made there, or its remains."""
        if name not in self._made:
            return False
        crc = _manifest_crc(self._directory / name)
        known = crc is None or self._made[name] in (None, crc)
        return known or not _has_manifest(self._directory / name)

    def announce(self, name: str) -> None:
        """Write down that a checkpoint is going to be made."""
        self._store({**self._made, name: None})

    def complete(self, name: str) -> None:
        """Write down that it stands."""
        self._store({**self._made, name: _manifest_crc(self._directory / name)})

    def forget(self, names: list[str]) -> None:
        """Write down that checkpoints have been removed."""
        if names:
            self._store({k: v for k, v in self._made.items() if k not in names})

    def _store(self, made: dict[str, str | None]) -> None:
        content = {"format": FORMAT, "format_version": 1, "made": made}
        replace_file(self._directory / RECORD, dump(content, levels=2))
        self._made = made


def _manifest_crc(folder: Path) -> str | None:
    try:
        return f"{zlib.crc32((folder / MANIFEST).read_bytes()):08x}"
    except OSError:
        return None


def _has_manifest(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except CheckpointError:
        return False
    return True


def _checked(content: Any) -> dict[str, str | None]:
    made = content.get("made") if isinstance(content, dict) else None
    if not isinstance(made, dict) or content.get("format") != FORMAT:
        raise ValueError("not a record of checkpoints")
    if not all(value is None or isinstance(value, str) for value in made.values()):
        raise ValueError("a malformed record of checkpoints")
    return made
