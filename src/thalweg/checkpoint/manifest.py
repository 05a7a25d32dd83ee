"""The manifest: what a checkpoint folder holds, checked word for word when read.

It is the last file written, so a folder with a whole manifest is a whole checkpoint.
It names every file with size and crc32, every tensor with dtype and boxes, the
aliases of tied variables, the hyperparameters of each optimizer, and plain values.
It carries a checksum of itself, because a wrong learning rate looks like a right one.

Reading takes no more memory than twice what the checkpoint takes on the disk, whoever
wrote it. Where an honest text would need more, blanks are written behind it.
"""

import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from thalweg.checkpoint.allowance import (
    ALWAYS_ALLOWED,
    PARSED_BYTES_OF_TEXT,
    TEXT_OF_A_FILE,
    Allowance,
    most_text,
)
from thalweg.checkpoint.encoding import (
    decode,
    dump,
    encode,
    parse,
    parsed_bytes,
    tensor_keys,
)
from thalweg.checkpoint.entries import (
    FILE,
    TENSOR,
    FileEntry,
    TensorEntry,
    read_files,
    read_tensors,
)
from thalweg.checkpoint.members import (
    SPACE,
    Table,
    check_count,
    without_collections,
)
from thalweg.checkpoint.tensor_file import damaged, num_bytes
from thalweg.errors import CheckpointError, describe, message

FORMAT: Final = "thalweg-checkpoint"
FORMAT_VERSION: Final = 1
BLANK: Final = "00000000"


def _pattern(*tokens: bytes) -> re.Pattern[bytes]:
    """What matches these tokens of JSON, with any space around them."""
    return re.compile(SPACE.join([b"", *tokens, b""]))


_NAME_OF_FORMAT: Final = (rb"\{", b'"format"', b":", b'"%s"' % FORMAT.encode(), b",")
VERSION: Final = _pattern(
    *_NAME_OF_FORMAT,
    *(b'"format_version"', b":", rb"(\d{1,9})\b"),
)
HEAD: Final = _pattern(
    *_NAME_OF_FORMAT,
    *(b'"format_version"', b":", b"%d" % FORMAT_VERSION, b","),
    *(b'"crc32"', b":", rb'"(?P<crc>[0-9a-f]{8})"', b","),
    *(b'"step"', b":", rb"(?P<step>null|0|[1-9]\d{0,18})", b","),
    *(b'"files"', b":"),
)
TENSORS_FOLLOW: Final = _pattern(b",", b'"tensors"', b":")
REST_FOLLOWS: Final = _pattern(b",")
ONLY_SPACE: Final = re.compile(rb"%b\Z" % SPACE)
REST: Final = {"aliases", "hyperparameters", "values", "metadata"}


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        step: Applied steps of the first optimizer; None if there was none.
        files: Name of each tensor file to size and checksum.
        tensors: Key to global shape, dtype and boxes.
        aliases: Key of a tied variable's other path to the key that holds it.
        hyperparameters: Optimizer's key to encoded values by name.
        values: Key to an encoded plain value or state.
        metadata: The caller's own dict, encoded.
    """

    step: int | None = None
    files: dict[str, FileEntry] = field(default_factory=dict)
    tensors: dict[str, TensorEntry] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    hyperparameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def resolve(self, key: str) -> str | None:
        """The key that holds the tensor called `key`, directly or as an alias."""
        return key if key in self.tensors else self.aliases.get(key)

    def user_metadata(self) -> dict[str, Any]:
        """The dict that was given to `save` as metadata."""
        return decode(self.metadata, "metadata")

    def text_of_files(self) -> int:
        """What opening the tensor files counts for, beside the manifest's text."""
        tensors = sum(num_bytes(e.dtype, e.shape) for e in self.tensors.values())
        stored = sum(file.bytes for file in self.files.values())
        return max(0, stored - tensors) + TEXT_OF_A_FILE * len(self.files)

    def to_json(self) -> bytes:
        """The text of `manifest.json`, with blanks if it is small for what it says.

        Raises:
            CheckpointError: If there is more of it than anybody reads.
        """
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "crc32": BLANK,
            "step": self.step,
            "files": {name: file._asdict() for name, file in self.files.items()},
            "tensors": {k: entry.to_json() for k, entry in self.tensors.items()},
            "aliases": self.aliases,
            "hyperparameters": self.hyperparameters,
            "values": self.values,
            "metadata": self.metadata,
        }
        text = seal(content)
        stored = sum(file.bytes for file in self.files.values())
        needed = Allowance(len(text) + stored, most_text(stored), unlimited=True)
        needed.text.spend(self.text_of_files())
        # Nothing takes more memory or counts for more text than this estimate of it.
        if parsed_bytes(text) > min(ALWAYS_ALLOWED, needed.text.left - len(text)):
            with without_collections():
                _read(text, needed)
            blanks = needed.memory.excess
            text = seal(content, blanks) if blanks else text
        needed.text.spend(len(text))
        if needed.text.excess:
            raise CheckpointError(
                message(
                    "Checkpoint.save",
                    f"{needed.text.granted:,} bytes of names, boxes and values at "
                    f"most, which is what is read beside {stored:,} bytes of tensors",
                    f"{needed.text.spent:,}, of {len(self.tensors):,} tensors in "
                    f"{len(self.files):,} files",
                    "Put many small tensors or values together in one tensor, or save "
                    "from fewer ranks.",
                )
            )
        return text


def seal(content: dict[str, Any], blanks: int = 0) -> bytes:
    """The text of a manifest with its own checksum in the field `crc32`.

    The checksum is that of the text with eight zeros in the place of the checksum.
    """
    text = dump({**content, "crc32": BLANK}, levels=2) + b" " * blanks
    return text.replace(_crc_field(BLANK), _crc_field(f"{zlib.crc32(text):08x}"), 1)


def _crc_field(crc: str) -> bytes:
    return f'"crc32": "{crc}"'.encode()


def _check_seal(text: bytes) -> None:
    """Refuse a text that was changed, before anything is made of it."""
    version = VERSION.match(text)
    if version is not None and int(version[1]) != FORMAT_VERSION:
        raise ValueError(f"format version {int(version[1])}")
    found = _expect(HEAD, text, 0)
    view = memoryview(text)
    begin, end = found.span("crc")
    crc = zlib.crc32(BLANK.encode(), zlib.crc32(view[:begin]))
    if int(found["crc"], 16) != zlib.crc32(view[end:], crc):
        raise ValueError("another checksum")


def encode_metadata(metadata: dict[str, Any] | None) -> dict[str, Any]:
    """Encode the caller's metadata.

    Raises:
        CheckpointError: If it is not a dict of plain values with string keys.
    """
    if metadata is not None and not isinstance(metadata, dict):
        expected, action = "a dict of plain values", "Put it in a dict, under a name."
        raise CheckpointError(
            message("Checkpoint.save(metadata=…)", expected, describe(metadata), action)
        )
    return encode(metadata or {}, "metadata")


def parse_files(text: bytes, path: Path) -> dict[str, FileEntry]:
    """Read only which files there should be.

    Args:
        text: The bytes of `manifest.json`.
        path: The file, for the error text.

    Raises:
        CheckpointError: If the text is not what `Manifest.to_json` can have written.
    """
    try:
        _check_seal(text)
        allowance = Allowance(len(text), most_text(0))
        return read_files(Table(text, _expect(HEAD, text, 0).end(), FILE, allowance))
    except ValueError as problem:
        raise damaged(path, f"a malformed manifest ({problem})") from problem


def parse_manifest(
    text: bytes, path: Path, stored: int = 0, text_of_files: int = 0
) -> Manifest:
    """Read a manifest's text, believing none of it.

    Args:
        text: The bytes of the file.
        path: The file, for the error text.
        stored: Bytes of the other files in the folder.
        text_of_files: What opening them counts for.

    Raises:
        CheckpointError: If the text is not what `Manifest.to_json` can have written.
    """
    allowance = Allowance(len(text) + stored, most_text(stored))
    try:
        allowance.text.spend(len(text) + text_of_files)
        _check_seal(text)
        with without_collections():
            return _read(text, allowance)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise damaged(path, f"a malformed manifest ({problem})") from problem


def _read(text: bytes, allowance: Allowance) -> Manifest:
    allowance.memory.spend(len(text))
    head = _expect(HEAD, text, 0)
    names = Table(text, head.end(), FILE, allowance)
    files = read_files(names)
    begin = _expect(TENSORS_FOLLOW, text, names.end).end()
    entries = Table(text, begin, TENSOR, allowance)
    tensors = read_tensors(entries, files, allowance)
    rest = _expect(REST_FOLLOWS, text, entries.end).end()
    content = _read_rest(text, rest, allowance)
    manifest = Manifest(
        step=None if head["step"] == b"null" else check_count(int(head["step"])),
        files=files,
        tensors=tensors,
        aliases=dict(content["aliases"].items()),
        hyperparameters={
            owner: dict(table.items())
            for owner, table in content["hyperparameters"].items()
        },
        values=dict(content["values"].items()),
        metadata=dict(content["metadata"].items()),
    )
    _check_references(manifest)
    return manifest


def _expect(pattern: re.Pattern[bytes], text: bytes, at: int) -> re.Match[bytes]:
    found = pattern.match(text, at)
    if found is None:
        raise ValueError(f"other fields, or in another order, at byte {at}")
    return found


def _read_rest(text: bytes, begin: int, allowance: Allowance) -> dict[str, Any]:
    end = text.rfind(b"}") + 1
    _expect(ONLY_SPACE, text, end)
    allowance.memory.spend(end - begin)
    rest = b"".join((b"{", memoryview(text)[begin:end]))
    parsed = parsed_bytes(rest)
    allowance.memory.spend(parsed)
    allowance.text.spend(max(0, parsed // PARSED_BYTES_OF_TEXT - len(rest)))
    content = parse(rest)
    if set(content) != REST:
        raise ValueError(f"the fields {sorted(set(content) ^ REST)}")
    return content


def _check_references(manifest: Manifest) -> None:
    for alias, key in manifest.aliases.items():
        if alias in manifest.tensors or key not in manifest.tensors:
            raise ValueError(f"the alias {alias!r}")
    for key in tensor_keys(list(manifest.values.values())):
        if key not in manifest.tensors:
            raise ValueError(f"the value of a tensor {key!r} that is not listed")
