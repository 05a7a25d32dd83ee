"""Damaged and hostile files: a typed error that names the file, at once and cheaply."""

from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import hostile, reliability
from thalweg.checkpoint import Checkpoint
from thalweg.checkpoint.manifest import seal
from thalweg.errors import CheckpointError
from thalweg.state import Variable

TENSORS, MANIFEST = "tensors.safetensors", "manifest.json"
FLOAT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_300_damaged_checkpoints() -> None:
    (row,) = reliability.fuzz(300)
    assert row["failures"] == 0, row


def test_asynchronous_saves_hold_what_was_there_when_they_began() -> None:
    (row,) = reliability.races(10)
    assert row["failures"] == 0


Attack = Callable[[Path], None]


def manifest(change: Callable[[Any], None]) -> Attack:
    """Change the manifest and give it the right checksum."""

    def attack(path: Path) -> None:
        content = json.loads((path / MANIFEST).read_bytes())
        change(content)
        (path / MANIFEST).write_bytes(seal(content))

    return attack


def text(content: bytes) -> Attack:
    return lambda path: void((path / MANIFEST).write_bytes(content))


def header(content: Any) -> Attack:
    """Give the tensor file another header; the manifest fits the file."""

    def attack(path: Path) -> None:
        told = content if isinstance(content, bytes) else json.dumps(content).encode()
        file = struct.pack("<Q", len(told)) + told + bytes(8)
        (path / TENSORS).write_bytes(file)
        manifest(lambda m: m["files"][TENSORS].update(bytes=len(file)))(path)

    return attack


def sparse(name: str) -> Attack:
    return lambda path: os.truncate(path / name, 1 << 40)


def link(name: str) -> Attack:
    def attack(path: Path) -> None:
        (path / name).rename(path.parent / name)
        (path / name).symlink_to(path.parent / name)

    return attack


def pipe(path: Path) -> None:
    (path / TENSORS).unlink()
    os.mkfifo(path / TENSORS)


def void(_: object) -> None:
    pass


def moved(name: str) -> Attack:
    """Have the manifest name a file elsewhere."""

    def change(content: Any) -> None:
        content["files"][name] = content["files"].pop(TENSORS)
        content["tensors"]["x"]["boxes"][0]["file"] = name

    return manifest(change)


def boxes(*found: tuple[int, int]) -> Attack:
    """Divide the tensor into boxes in files of their own."""

    def change(content: Any) -> None:
        content["tensors"]["x"]["boxes"] = []
        for number, (offset, size) in enumerate(found):
            name = f"t{number}.safetensors"
            content["files"][name] = content["files"][TENSORS]
            box = {"file": name, "offset": [offset], "shape": [size]}
            content["tensors"]["x"]["boxes"].append(box)

    return manifest(change)


ATTACKS: dict[str, Attack] = {
    "a parent folder": moved("../evil.safetensors"),
    "an absolute path": moved("/etc/evil.safetensors"),
    "a backslash": moved("..\\evil.safetensors"),
    "a null": moved("a\0.safetensors"),
    "a file not there": moved("other.safetensors"),
    "a link for tensors": link(TENSORS),
    "a link for the manifest": link(MANIFEST),
    "a pipe": pipe,
    "a sparse file": sparse(TENSORS),
    "a sparse manifest": sparse(MANIFEST),
    "overlapping boxes": boxes((0, 2), (1, 1)),
    "boxes with a hole": boxes((0, 1)),
    "boxes beyond the shape": boxes((0, 1), (1, 2)),
    "a negative offset": boxes((-1, 1), (0, 2)),
    "a huge box": boxes((0, 2**62)),
    "many boxes": boxes(*[(0, 2)] * 1000),
    "a huge shape": manifest(lambda m: m["tensors"]["x"].update(shape=[2**62] * 60)),
    "many dimensions": manifest(lambda m: m["tensors"]["x"].update(shape=[2] * 10**5)),
    "a true size": manifest(lambda m: m["files"][TENSORS].update(bytes=True)),
    "many tensors": manifest(
        lambda m: m["tensors"].update({f"y{i}": m["tensors"]["x"] for i in range(2000)})
    ),
    "a later version": manifest(lambda m: m.update(format_version=2)),
    "deep JSON": text(b"[" * 10**6),
    "deep objects": text(b'{"crc32": "00000000", "a":' * 10**5),
    "duplicate keys": text(b'{"format": 1, "format": 2}'),
    "NaN": text(b'{"format": NaN}'),
    "a million digits": text(b'{"step": ' + b"9" * 10**6 + b"}"),
    "no text": text(b"\xff\xfe" * 1000),
    "a NaN length": header({"x": FLOAT | {"data_offsets": [0, float("nan")]}}),
    "a billion elements": header({"x": FLOAT | {"shape": [10**9]}}),
    "a hundred thousand headers": header({str(i): 0 for i in range(10**5)}),
    "overlapping tensors": header({"x": FLOAT, "y": FLOAT}),
    "a negative place": header({"x": FLOAT | {"data_offsets": [-8, 0]}}),
    "a deep header": header(b"[" * 10**5),
    "the same tensor twice": header(b'{"x": 1, "x": 2}'),
    "a header that is longer": lambda path: void(
        (path / TENSORS).write_bytes(struct.pack("<Q", 2**62) + bytes(92))
    ),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_hostile_checkpoint_is_refused_at_once(
    tmp_path: Path, attack: Attack
) -> None:
    place = tmp_path / "x"
    Checkpoint(x=Variable(torch.ones(2))).save(place)
    attack(place)
    x = Variable(torch.zeros(2))
    checkpoint = Checkpoint(x=x)
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"manifest\.json|\.safetensors"):
        checkpoint.restore(place)
    assert time.process_time() - start < 1.0
    assert not x.any()


@pytest.mark.parametrize("size", [10**5, 4 * 10**6])
def test_a_file_of_noise_takes_no_more_than_twice_its_size(
    tmp_path: Path, size: int
) -> None:
    place = tmp_path / "x"
    Checkpoint(x=Variable(torch.ones(2))).save(place)
    head = (place / MANIFEST).read_bytes().partition(b'"files":')[0]
    noise = head + b'"files": [' + b"[]," * (size // 3) + b"0]}"
    (place / MANIFEST).write_bytes(noise)
    checkpoint = Checkpoint(x=Variable(torch.zeros(2)))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="another checksum"):
            checkpoint.restore(place)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 2 * len(noise) + (1 << 20)


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_as_much_text_as_may_be_read_is_refused_within_its_memory(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small form: the benchmark holds the largest folders to a second."""
    monkeypatch.setattr("thalweg.checkpoint.allowance.TEXT_BYTES", 1 << 18)
    monkeypatch.setattr(hostile, "SPARSE_BYTES", 1 << 22)
    hostile.KINDS[kind](tmp_path / "x")
    found = hostile.refuse(tmp_path / "x")
    assert found["sound"], found
    assert found["peak"] <= found["granted"]
