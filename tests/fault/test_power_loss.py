"""Power cuts replayed from a log: every disk that may be left has the newest."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.power_loss import (
    ACKNOWLEDGED,
    BLOCK_BYTES,
    File,
    Log,
    Operation,
    content,
    states,
    traced,
)
from benchmarks.reliability import judged, scratch, watched
from benchmarks.savers import SAVERS, Saver, state_of


class Recorder:
    """A log of what passes the seam through which checkpoints change the disk."""

    def __init__(self, folder: Path) -> None:
        self.operations: list[Operation] = []
        self._folder, self._sizes = folder, dict[Path, int]()

    def __call__(self, kind: str, path: Path, detail: Any) -> None:
        if kind == "create":
            self._sizes[path] = 0
        if kind == "write":
            offset = self._sizes[path]
            self._sizes[path] += detail.nbytes
            detail = (offset, bytes(detail))
        if kind == "rename":
            detail = str(detail.relative_to(self._folder))
        name = str(path.relative_to(self._folder))
        self.operations.append(Operation(kind, name, detail))


def recorded(saver: Saver, folder: Path, saves: int) -> list[Operation]:
    recorder = Recorder(folder)
    for number in range(saves):
        with watched(recorder):
            saver.save(number, folder)
        recorder.operations.append(Operation(ACKNOWLEDGED, "", number))
    return recorder.operations


def outcomes(name: str, operations: list[Operation], count: int) -> list[str]:
    saver, found = SAVERS[name](), []
    for acknowledged, write in states(operations, count, seed=1):
        with scratch(fast=True) as place:
            write(place)
            found.append(judged(saver.load(place), acknowledged))
    return found


@pytest.mark.parametrize("name", ["thalweg, manager", "thalweg, overwrite"])
def test_the_newest_or_a_newer_one_is_found(tmp_path: Path, name: str) -> None:
    operations = recorded(SAVERS[name](), tmp_path, 4)
    assert set(outcomes(name, operations, 300)) == {"good"}


@pytest.mark.parametrize("forgotten", ["flush", "flush folder"])
def test_what_forgets_to_flush_is_found_out(tmp_path: Path, forgotten: str) -> None:
    operations = recorded(SAVERS["thalweg, overwrite"](), tmp_path, 3)
    careless = [operation for operation in operations if operation.kind != forgotten]
    assert set(outcomes("thalweg, overwrite", careless, 100)) != {"good"}


def test_strace_tells_what_the_seam_tells(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    place, logs = tmp_path / "disk", tmp_path / "logs"
    (place / "acknowledged").mkdir(parents=True)
    logs.mkdir()
    script = (
        "import sys, os; f = open(sys.argv[1] + '/a', 'xb', buffering=0);"
        "f.write(b'abc'); f.write(b'de'); os.fsync(f.fileno()); f.close();"
        "os.rename(sys.argv[1] + '/a', sys.argv[1] + '/b');"
        "d = os.open(sys.argv[1], 0); os.fsync(d);"
        "os.mkdir(sys.argv[1] + '/acknowledged/7'); os.unlink(sys.argv[1] + '/b')"
    )
    assert traced([sys.executable, "-c", script, str(place)], place, logs) == [
        Operation("create", "a"),
        Operation("write", "a", (0, b"abc")),
        Operation("write", "a", (3, b"de")),
        Operation("flush", "a"),
        Operation("rename", "a", "b"),
        Operation("flush folder", "."),
        Operation(ACKNOWLEDGED, "", 7),
        Operation("remove", "b"),
    ]


def test_what_is_not_flushed_may_be_lost_or_torn() -> None:
    file = File([(0, bytes([1]) * 2000), (2000, bytes([2]) * 2000)], durable=1)
    seen = {content(file, random.Random(seed), kept=0.3) for seed in range(60)}
    assert bytes([1]) * 2000 in seen
    assert bytes([1]) * 2000 + bytes([2]) * 2000 in seen
    assert all(found[:2000] == bytes([1]) * 2000 for found in seen)
    torn = [found for found in seen if len(found) == 4000 and 0 in found]
    assert torn
    for found in torn:
        for begin in range(2048, 3584, BLOCK_BYTES):
            assert len(set(found[begin : begin + BLOCK_BYTES])) == 1


def test_a_name_is_certain_only_when_its_folder_was_flushed() -> None:
    operations = [
        Operation("create", "a"),
        Operation("flush folder", "."),
        Operation("rename", "a", "b"),
    ]
    log = Log(operations)
    assert [change.is_durable for change in log.changes] == [True, False]
    found = set()
    for _, write in states(operations, 60, seed=2):
        with scratch(fast=True) as place:
            write(place)
            found.add(tuple(path.name for path in place.iterdir()))
    assert found == {(), ("a",), ("b",)}


def test_a_torn_state_is_no_state() -> None:
    assert judged(None, 3) == "wrong values"
    assert judged(-1, 3) == "nothing"
    assert judged(2, 3) == "an older one"
    assert judged(4, 3) == judged(-1, -1) == "good"
    assert len(state_of(3)) == 4
