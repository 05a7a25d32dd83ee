"""One checkpoint folder: written whole, and opened only when it is whole."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from thalweg.checkpoint.allowance import TEXT_OF_A_FILE, most_text
from thalweg.checkpoint.boxes import Box, divide, is_tiling, overlaps
from thalweg.checkpoint.durable import (
    MANIFEST,
    abandon,
    asides,
    begin,
    checkpoints_below,
    checksum,
    holds_tensors,
    place_of,
    publish,
    write_file,
)
from thalweg.checkpoint.entries import FileEntry, StoredBox, TensorEntry
from thalweg.checkpoint.manifest import Manifest, parse_files, parse_manifest
from thalweg.checkpoint.pieces import Piece, piece_of
from thalweg.checkpoint.ranks import Ranks
from thalweg.checkpoint.tensor_file import (
    DTYPE_NAMES,
    Layout,
    TensorFile,
    damaged,
    file_chunks,
    header_length,
)
from thalweg.errors import CheckpointError, message

TENSORS = "tensors.safetensors"
# Looking at each of more would take longer than reading the rest.
MOST_FILES = 1 << 14


def write_folder(
    path: Path,
    tensors: Mapping[str, torch.Tensor | Piece],
    manifest: Manifest,
    overwrite: bool,
    ranks: Ranks | None = None,
) -> None:
    """Write a checkpoint so that it appears whole or not at all.

    Args:
        path: Where the folder shall stand; with several ranks the first one's counts.
        tensors: Key to tensor (plain, or a DTensor) or to this rank's piece of it, of
            dtypes that the format knows.
        manifest: All of the manifest but its files and tensors; the first rank's
            counts.
        overwrite: Whether a checkpoint that stands at `path` is replaced.
        ranks: Who saves together; every one of them calls this, and sees the same
            disk. Each writes what it holds and no rank before it does.

    Raises:
        CheckpointError: If `path` is taken, the ranks' pieces are not the whole of a
            tensor, or another rank failed.
        OSError: From the system; what stood at `path` stands there still.
    """
    ranks = Ranks.alone() if ranks is None else ranks
    pieces = {
        key: value if isinstance(value, Piece) else piece_of(value, key)
        for key, value in tensors.items()
    }
    entries, own = _plan(pieces, ranks)
    place = Path(ranks.share(str(path))[0])
    temporary = Path(ranks.lead(lambda: str(begin(place, overwrite))))
    try:
        _fill(
            temporary,
            {key: pieces[key].tensor for key in own},
            ranks,
            (replace(manifest, tensors=entries)),
        )
        ranks.lead(lambda: publish(temporary, place, overwrite))
    except BaseException as problem:
        if ranks.number == 0:
            abandon(temporary, place, problem)
        raise


def _plan(
    pieces: Mapping[str, Piece], ranks: Ranks
) -> tuple[dict[str, TensorEntry], list[str]]:
    """Entries of all tensors, and the keys that this rank writes."""
    offers = [_Offer.read(told) for told in ranks.share(_Offer.of(pieces))]
    written = divide([offer.boxes for offer in offers])
    stored: dict[str, list[StoredBox]] = {}
    for number, boxes in enumerate(written):
        for key, box in boxes.items():
            file = _file_name(number, ranks.size)
            stored.setdefault(key, []).append(StoredBox(file, box))
    entries: dict[str, TensorEntry] = {}
    for key, boxes in stored.items():
        kinds = {offer.kinds[key] for offer in offers if key in offer.kinds}
        whole = is_tiling(next(iter(kinds))[0], [stored.box for stored in boxes])
        if len(kinds) > 1 or not whole:
            expected = f"pieces that are the whole of '{key}'"
            got = f"{sorted(map(str, kinds))} in boxes {[tuple(b) for _, b in boxes]}"
            action = "Save a tensor that every rank holds alike, or a DTensor."
            raise CheckpointError(message("Checkpoint.save", expected, got, action))
        entries[key] = TensorEntry.divided(*kinds.pop(), boxes)
    return entries, list(written[ranks.number])


class _Offer(NamedTuple):
    """Which boxes a rank holds, of tensors of which shape and dtype."""

    boxes: dict[str, Box]
    kinds: dict[str, tuple[tuple[int, ...], torch.dtype]]

    @classmethod
    def of(cls, pieces: Mapping[str, Piece]) -> dict[str, Any]:
        return {
            key: [
                list(piece.shape),
                str(piece.tensor.dtype).removeprefix("torch."),
                list(piece.box.offset),
                list(piece.box.shape),
            ]
            for key, piece in pieces.items()
        }

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> "_Offer":
        return cls(
            {key: Box(tuple(o), tuple(s)) for key, (_, _, o, s) in told.items()},
            {k: (tuple(g), DTYPE_NAMES[dtype]) for k, (g, dtype, _, _) in told.items()},
        )


def _file_name(number: int, size: int) -> str:
    if size == 1:
        return TENSORS
    return f"tensors-{number + 1:05d}-of-{size:05d}.safetensors"


def _fill(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    ranks: Ranks,
    manifest: Manifest,
) -> None:
    def write_own() -> list[Any]:
        name = _file_name(ranks.number, ranks.size)
        return [name, *write_file(folder / name, file_chunks(tensors))]

    files = {
        name: FileEntry(size, crc) for name, size, crc in ranks.together(write_own)
    }
    text = replace(manifest, files=files).to_json
    ranks.lead(lambda: write_file(folder / MANIFEST, [text()]))


def find_folder(path: str | os.PathLike[str]) -> Path:
    """The folder to read for `path`: itself, or what an overwrite moved aside.

    Raises:
        TypeError: If `path` is no path.
        CheckpointError: If there is neither, or a folder that is no checkpoint.
    """
    place = place_of("Checkpoint", path)
    if place.is_dir():
        if os.path.lexists(place / MANIFEST):
            return place
        if holds_tensors(place) and not checkpoints_below(place):
            return place  # a checkpoint that has lost its manifest
        raise _no_checkpoint(place, f"a folder without {MANIFEST}")
    moved = asides(place)
    if moved:
        return moved[0]
    raise _no_checkpoint(place, "a file" if place.exists() else "nothing")


def _no_checkpoint(place: Path, got: str) -> CheckpointError:
    action = "Pass the path that save returned."
    inside = checkpoints_below(place) if place.is_dir() else []
    if inside:
        got += f", with {len(inside):,} checkpoint{'s' * (len(inside) > 1)} inside"
        action = f"Pass {inside[0]}{', the newest one' * (len(inside) > 1)}."
    elif place.is_file() and os.path.lexists(place.parent / MANIFEST):
        action = f"Pass {place.parent}."
    return CheckpointError(
        message(f"Checkpoint: {place}", "a checkpoint folder", got, action)
    )


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read and check the manifest of a checkpoint, without touching its tensors.

    Args:
        path: The checkpoint folder.

    Raises:
        CheckpointError: If there is no checkpoint or its manifest is not sound.
    """
    folder = find_folder(path)
    return parse_manifest(*_text_of(folder))


def _text_of(folder: Path) -> tuple[bytes, Path, int]:
    """The manifest's bytes, its place, and how many bytes the other files have."""
    file = folder / MANIFEST
    check_file(file)
    with os.scandir(folder) as found:
        entries = list(islice(found, MOST_FILES + 1))
    if len(entries) > MOST_FILES:
        raise damaged(file, f"more than {MOST_FILES:,} files beside it")
    size = file.stat().st_size
    stored = sum(map(_size_of, entries)) - size
    if size > most_text(stored):
        got = f"a manifest of {size} bytes beside {stored} bytes of other files"
        raise damaged(file, got)
    return file.read_bytes(), file, stored


def _read_checked(folder: Path) -> Manifest:
    """The manifest, once its files are there in full size with headers to be read."""
    text, file, stored = _text_of(folder)
    files = parse_files(text, file)
    for name, entry in files.items():
        _check_size(folder / name, entry)
    lengths = sum(header_length(folder / name) for name in files)
    return parse_manifest(text, file, stored, lengths + TEXT_OF_A_FILE * len(files))


def _size_of(entry: os.DirEntry[str]) -> int:
    is_file = entry.is_file(follow_symlinks=False)
    return entry.stat(follow_symlinks=False).st_size if is_file else 0


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dict that was given to `Checkpoint.save` as metadata.

    Args:
        path: The checkpoint folder.

    Returns:
        The same values, floats to the last bit; an empty dict if none was given.

    Raises:
        CheckpointError: If there is no checkpoint or its manifest is not sound.
    """
    return read_manifest(path).user_metadata()


def check_structure(path: str | os.PathLike[str]) -> Manifest:
    """Check a checkpoint's manifest, and that its files are there in full size.

    Raises:
        CheckpointError: If there is no checkpoint, or it is not sound.
    """
    return _read_checked(find_folder(path))


def verify(path: str | os.PathLike[str]) -> Manifest:
    """Check a whole checkpoint, to the last byte of its files.

    Args:
        path: The checkpoint folder.

    Returns:
        The manifest.

    Raises:
        CheckpointError: If a file is missing, torn, changed, or not as listed.
    """
    return Reader(path).manifest


class Reader:
    """A checkpoint whose structure and checksums have been found sound.

    It goes on reading what it opened, also when the folder is replaced or removed.

    Args:
        path: The checkpoint folder.
        checksums: False leaves out reading all files through for their checksums.

    Raises:
        CheckpointError: If a file is missing, torn, changed, or not as listed.
    """

    def __init__(self, path: str | os.PathLike[str], checksums: bool = True) -> None:
        self.folder = find_folder(path)
        self.manifest = _read_checked(self.folder)
        self._files = {n: TensorFile(self.folder / n) for n in self.manifest.files}
        self._check_layouts()
        if checksums:
            self.check_checksums()

    def _check_layouts(self) -> None:
        layouts = {name: file.layout for name, file in self._files.items()}
        listed = dict.fromkeys(layouts, 0)
        for key, (shape, dtype, stored) in self.manifest.tensors.items():
            whole = isinstance(stored, str)
            for name, box in ((stored, None),) if whole else stored:
                place = layouts[name].get(key)
                extent = shape if box is None else box.shape
                if place is None or place.dtype != dtype or place.shape != extent:
                    got = f"a '{key}' unlike the manifest's"
                    raise damaged(self.folder / name, got)
                listed[name] += 1
        for name, layout in layouts.items():
            if len(layout) != listed[name]:
                self._refuse_unlisted(name, layout)

    def _refuse_unlisted(self, name: str, layout: Mapping[str, Layout]) -> None:
        tensors = self.manifest.tensors
        for key in layout:
            if key not in tensors or all(
                name != file for file, _ in tensors[key].boxes
            ):
                raise damaged(self.folder / name, f"a '{key}' that is not listed")

    def check_checksums(self) -> None:
        """Read all files through.

        Raises:
            CheckpointError: If one was changed since it was written.
        """
        for name, entry in self.manifest.files.items():
            if checksum(self.folder / name) != entry.crc32:
                raise damaged(self.folder / name, "bytes with another checksum")

    def read(self, key: str) -> torch.Tensor:
        """The whole tensor of that key; copy it, do not keep it.

        It is mapped from its file, or put together if it was saved in boxes.
        """
        entry = self.manifest.tensors[key]
        if isinstance(entry.stored, str):
            return self._files[entry.stored].read(key)
        whole = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
        self._copy_box(key, Box.whole(entry.shape), whole)
        return whole

    def read_into(self, key: str, target: torch.Tensor) -> None:
        """Copy a saved tensor into one of its global shape, without a detour.

        Args:
            key: The saved tensor's.
            target: A plain tensor, or a DTensor, which takes its own part only.
        """
        self.read_piece(key, piece_of(target, key))

    def read_piece(self, key: str, piece: Piece) -> None:
        """Copy a box of a saved tensor into the piece's tensor."""
        with torch.no_grad():
            self._copy_box(key, piece.box, piece.tensor)

    def _copy_box(self, key: str, wanted: Box, target: torch.Tensor) -> None:
        boxes: Sequence[StoredBox] = self.manifest.tensors[key].boxes
        for index, source, part in overlaps(wanted, [box for _, box in boxes]):
            stored = self._files[boxes[index].file].read(key)
            target[part].copy_(stored[source])


def _check_size(file: Path, entry: FileEntry) -> None:
    check_file(file)
    size = file.stat().st_size
    if size != entry.bytes:
        raise damaged(file, f"{size} bytes where {entry.bytes} were written")


def check_file(file: Path) -> None:
    """Refuse what is not a regular file: links may lead out of the folder.

    Raises:
        CheckpointError: If `file` is missing, a link, or a folder.
    """
    if file.is_symlink() or not file.is_file():
        raise damaged(file, "a link" if file.is_symlink() else "no such file")
