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
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import torch

from thalweg.checkpoint.boxes import Box, is_tiling
from thalweg.checkpoint.durable import FILE_NAME
from thalweg.checkpoint.encoding import (
    decode,
    dump,
    encode,
    parse,
    parsed_bytes,
    tensor_keys,
)
from thalweg.checkpoint.members import ALWAYS_ALLOWED, Allowance, Members
from thalweg.checkpoint.tensor_file import (
    DTYPE_NAMES,
    LARGEST_RANK,
    check_count,
    damaged,
)
from thalweg.errors import CheckpointError, describe, message

FORMAT: Final = "thalweg-checkpoint"
FORMAT_VERSION: Final = 1
LARGEST_MANIFEST_BYTES: Final = 1 << 28
# Entries of tensors that are alike are read once, up to so many different ones.
MOST_KNOWN: Final = 1 << 12
BLANK: Final = "00000000"
CRC: Final = re.compile("[0-9a-f]{8}")
# The first in the text are the manifest's own: nothing that holds more precedes them.
OWN_CRC: Final = re.compile(rb'"crc32": "([0-9a-f]{8})"')
OWN_VERSION: Final = re.compile(rb'"format_version": (\d{1,9})\b')


def _pattern(*tokens: bytes) -> re.Pattern[bytes]:
    """What matches these tokens of JSON, with any space around them."""
    return re.compile(rb"[ \n\r\t]*+".join([b"", *tokens, b""]))


HEAD: Final = _pattern(
    *(rb"\{", b'"format"', b":", b'"%s"' % FORMAT.encode(), b","),
    *(b'"format_version"', b":", b"%d" % FORMAT_VERSION, b","),
    *(b'"crc32"', b":", rb'"[0-9a-f]{8}"', b","),
    *(b'"step"', b":", rb"(null|\d{1,19})", b",", b'"files"', b":"),
)
TENSORS_FOLLOW: Final = _pattern(b",", b'"tensors"', b":")
REST_FOLLOWS: Final = _pattern(b",")
REST: Final = {"aliases", "hyperparameters", "values", "metadata"}


class FileEntry(NamedTuple):
    """Size in bytes and crc32 (eight hex digits) of one file."""

    bytes: int
    crc32: str


class StoredBox(NamedTuple):
    """A part of a tensor and the file that holds it, under the tensor's key."""

    file: str
    box: Box


class TensorEntry(NamedTuple):
    """Global shape and dtype of one tensor, and the boxes that it is stored as."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    boxes: tuple[StoredBox, ...]

    @classmethod
    def whole(cls, file: str, shape: tuple[int, ...], dtype: torch.dtype) -> Self:
        """The entry of a tensor that lies in one file."""
        return cls(shape, dtype, (StoredBox(file, Box.whole(shape)),))

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

    def to_json(self) -> bytes:
        """The text of `manifest.json`, with blanks if it is small for what it says.

        Raises:
            CheckpointError: If it is longer than anybody reads.
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
        if parsed_bytes(text) > ALWAYS_ALLOWED:
            needed = Allowance(len(text) + stored, unlimited=True)
            _read(text, needed)
            text = seal(content, blanks=needed.excess) if needed.excess else text
        if len(text) > LARGEST_MANIFEST_BYTES:
            raise CheckpointError(
                message(
                    "Checkpoint.save",
                    f"a manifest of {LARGEST_MANIFEST_BYTES:,} bytes at most",
                    f"{len(text):,} bytes",
                    "Put many small tensors or values together in one tensor.",
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
    version = OWN_VERSION.search(text)
    if version is not None and int(version[1]) != FORMAT_VERSION:
        raise ValueError(f"format version {int(version[1])}")
    found = OWN_CRC.search(text)
    if found is None:
        raise ValueError("no checksum")
    view = memoryview(text)
    begin, end = found.span(1)
    crc = zlib.crc32(BLANK.encode(), zlib.crc32(view[:begin]))
    if int(found[1], 16) != zlib.crc32(view[end:], crc):
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


def parse_manifest(text: bytes, path: Path, stored: int = 0) -> Manifest:
    """Read a manifest's text, believing none of it.

    Args:
        text: The bytes of the file.
        path: The file, for the error text.
        stored: Bytes of the other files in the folder.

    Raises:
        CheckpointError: If the text is not what `Manifest.to_json` can have written.
    """
    try:
        _check_seal(text)
        return _read(text, Allowance(len(text) + stored))
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise damaged(path, f"a malformed manifest ({problem})") from problem


def _read(text: bytes, allowance: Allowance) -> Manifest:
    allowance.spend(len(text))
    head = _expect(HEAD, text, 0)
    names = Members(text, head.end(), allowance)
    files = _read_files(names, allowance)
    entries = Members(text, _expect(TENSORS_FOLLOW, text, names.end).end(), allowance)
    tensors = _read_tensors(entries, files, allowance)
    rest = _expect(REST_FOLLOWS, text, entries.end).end()
    content = _read_rest(text, rest, allowance)
    manifest = Manifest(
        step=None if head[1] == b"null" else check_count(int(head[1])),
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


def _read_files(members: Members, allowance: Allowance) -> dict[str, FileEntry]:
    files: dict[str, FileEntry] = {}
    for name, entry in members:
        allowance.spend_member(name)
        allowance.spend_record(entry)
        _check_new(name, files)
        files[name] = _file_entry(name, parse(entry, is_shallow=True))
    return files


def _read_tensors(
    members: Members, files: dict[str, FileEntry], allowance: Allowance
) -> dict[str, TensorEntry]:
    tensors: dict[str, TensorEntry] = {}
    known: dict[bytes, TensorEntry] = {}
    for key, entry in members:
        allowance.spend_member(key)
        _check_new(key, tensors)
        found = known.get(entry)
        if found is None:
            allowance.spend_record(entry)
            found = _tensor_entry(key, parse(entry, is_shallow=True), files)
            if len(known) < MOST_KNOWN:
                allowance.spend_member(key)
                allowance.spend(len(entry))
                known[entry] = found
        tensors[key] = found
    return tensors


def _read_rest(text: bytes, begin: int, allowance: Allowance) -> dict[str, Any]:
    end = text.rfind(b"}") + 1
    allowance.spend(end - begin)
    rest = b"".join((b"{", memoryview(text)[begin:end]))
    allowance.spend(parsed_bytes(rest))
    content = parse(rest)
    if set(content) != REST:
        raise ValueError(f"the fields {sorted(set(content) ^ REST)}")
    return content


def _check_new(key: str, table: Container[str]) -> None:
    if key in table:
        raise ValueError(f"the key {key!r} stands twice")


def _file_entry(name: str, entry: dict[str, Any]) -> FileEntry:
    if FILE_NAME.fullmatch(name) is None:
        raise ValueError(f"the file name {name[:80]!r}")
    crc = entry["crc32"]
    if not isinstance(crc, str) or CRC.fullmatch(crc) is None:
        raise ValueError(f"the checksum of {name!r}")
    return FileEntry(check_count(entry["bytes"]), crc)


def _tensor_entry(
    key: str, entry: dict[str, Any], files: Mapping[str, FileEntry]
) -> TensorEntry:
    shape = _counts(entry["shape"])
    boxes = tuple(_stored_box(box) for box in entry["boxes"])
    names = [box.file for box in boxes]
    for file in names:
        if file not in files:
            raise ValueError(f"'{key}' lies in the file {file!r}, not listed")
    if len(set(names)) != len(names):
        raise ValueError(f"two boxes of '{key}' in one file")
    if not is_tiling(shape, [stored.box for stored in boxes]):
        raise ValueError(f"boxes of '{key}' that are not the whole of it")
    return TensorEntry(shape, DTYPE_NAMES[entry["dtype"]], boxes)


def _stored_box(box: dict[str, Any]) -> StoredBox:
    found = StoredBox(box["file"], Box(_counts(box["offset"]), _counts(box["shape"])))
    if len(found.box.offset) != len(found.box.shape):
        raise ValueError(f"a box at {found.box.offset} of shape {found.box.shape}")
    return found


def _counts(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > LARGEST_RANK:
        raise ValueError(f"{str(value)[:80]} is no shape")
    return tuple(map(check_count, value))


def _check_references(manifest: Manifest) -> None:
    for alias, key in manifest.aliases.items():
        if alias in manifest.tensors or key not in manifest.tensors:
            raise ValueError(f"the alias {alias!r}")
    for key in tensor_keys(list(manifest.values.values())):
        if key not in manifest.tensors:
            raise ValueError(f"the value of a tensor {key!r} that is not listed")
