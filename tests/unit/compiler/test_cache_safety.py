"""Whatever befalls compiler or cache, an optimizer works and says so in one line.

Each case trains with kernels that this process has not yet compiled, and must give the
bits that undisturbed training gives.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as cache_calls
from pathlib import Path
from typing import NoReturn

import pytest
import torch

import thalweg as tw
from thalweg.compiler import build, cache, compilation
from thalweg.compiler.build import can_compile, find_compiler
from thalweg.step import bulk

PROGRAM = """
import torch
import tests.unit.compiler.test_cache_safety as module
torch.set_num_threads(1)
print(module.train())
"""
REAL = find_compiler()
pytestmark = pytest.mark.skipif(not can_compile(), reason="needs a C compiler")


@dataclass(frozen=True)
class Run:
    """What training gave: the weights as text, and what was said meanwhile."""

    weights: str
    said: list[str]


Train = Callable[..., Run]


def train() -> str:
    """Three steps of Adam; the weights, bit for bit, as text."""
    weight = tw.Variable(torch.linspace(-1, 1, 101))
    optimizer = tw.optimizers.Adam(0.1)
    for _ in range(3):
        optimizer.minimize(lambda: (weight * weight).sum(), [weight])
    return weight.numpy().tobytes().hex()


def start(folder: Path, **changes: str) -> subprocess.Popen[str]:
    """Train in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "THALWEG_CACHE_DIR": str(folder), **changes},
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Run:
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return Run(out.strip(), error.splitlines())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Train:
    """Train in this process, as if it had never compiled anything."""
    monkeypatch.setattr(logging.getLogger("thalweg.compiler"), "propagate", True)

    def in_this_process(folder: Path, **changes: str) -> Run:
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr(compilation, "_KERNELS", {})
            patch.setattr(bulk, "_calls", cache_calls(bulk._calls.__wrapped__))
            patch.setattr(build, "_SAID", set())
            patch.setattr(build, "_UNUSABLE", {})
            patch.setenv("THALWEG_CACHE_DIR", str(folder))
            for name, value in changes.items():
                patch.setenv(name, value)
            return Run(train(), list(caplog.messages))

    return in_this_process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Weights of training that nothing befell, and the cache it left."""
    folder = tmp_path_factory.mktemp("cache") / "kernels"
    found = finish(start(folder))
    assert found.said == []
    assert list(folder.glob("*.so"))
    return found.weights, folder


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def one_line(found: Run, *words: str) -> None:
    assert len(found.said) == 1, found.said
    assert "thalweg: " in found.said[0]
    for word in words:
        assert word in found.said[0]


def test_two_processes_compile_at_once(
    tmp_path: Path, undisturbed: tuple[str, Path]
) -> None:
    folder = tmp_path / "cache"
    found = [finish(process) for process in [start(folder) for _ in range(2)]]
    assert [f.said for f in found] == [[], []]
    assert {f.weights for f in found} == {undisturbed[0]}
    assert {path.suffix for path in folder.iterdir()} == {".so"}


def test_a_second_process_starts_no_compiler(
    tmp_path: Path, run: Train, undisturbed: tuple[str, Path]
) -> None:
    assert REAL is not None
    log = tmp_path / "log"
    counting = script(
        tmp_path / "cc", f'echo started >> {log}\nexec {REAL.command[0]} "$@"'
    )
    first = run(tmp_path / "cache", CC=counting)
    started = log.read_text()
    assert run(tmp_path / "cache", CC=counting) == first
    assert log.read_text() == started
    assert first.weights == undisturbed[0]


def test_a_killed_compile_leaves_nothing_behind_that_is_used(
    tmp_path: Path, run: Train, undisturbed: tuple[str, Path]
) -> None:
    folder, mark = tmp_path / "cache", tmp_path / "compiling"
    # Becomes the sleep itself, so that killing it leaves no child behind.
    slow = script(tmp_path / "cc", f"echo $$ > {mark}\nexec sleep 60")
    process = start(folder, CC=slow)
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    os.kill(int(mark.read_text()), signal.SIGKILL)
    assert run(folder) == Run(undisturbed[0], [])


def test_a_compiler_that_is_killed_is_one_that_fails(
    tmp_path: Path, run: Train, undisturbed: tuple[str, Path]
) -> None:
    found = run(tmp_path / "cache", CC=script(tmp_path / "cc", "kill -9 $$"))
    one_line(found, "interpreted", str(tmp_path / "cc"))
    assert found.weights == undisturbed[0]


def test_a_failing_compiler(
    tmp_path: Path, run: Train, undisturbed: tuple[str, Path]
) -> None:
    failing = script(tmp_path / "cc", "echo 'error: out of order' >&2; exit 1")
    found = run(tmp_path / "cache", CC=failing)
    one_line(found, "interpreted, which is slower", "error: out of order")
    assert found.weights == undisturbed[0]
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compiler_that_makes_nonsense(
    tmp_path: Path, run: Train, undisturbed: tuple[str, Path]
) -> None:
    text = 'while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"'
    found = run(tmp_path / "cache", CC=script(tmp_path / "cc", text))
    one_line(found, "interpreted", "could not be loaded")
    assert found.weights == undisturbed[0]


def test_no_compiler(tmp_path: Path, run: Train, undisturbed: tuple[str, Path]) -> None:
    found = run(tmp_path / "cache", PATH=str(tmp_path), CC="")
    one_line(found, "no C compiler was found", "set CC")
    assert found.weights == undisturbed[0]


def test_a_read_only_disk(
    tmp_path: Path,
    run: Train,
    undisturbed: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(**_: object) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(cache.tempfile, "mkstemp", refuse)
    found = run(tmp_path / "cache")
    one_line(found, "not kept on disk", "Read-only file system")
    assert found.weights == undisturbed[0]


def test_a_folder_that_cannot_be_made(
    tmp_path: Path, run: Train, undisturbed: tuple[str, Path]
) -> None:
    (tmp_path / "file").write_text("")
    found = run(tmp_path / "file" / "cache")
    one_line(found, "not kept on disk", str(tmp_path / "file"))
    assert found.weights == undisturbed[0]


def test_a_full_disk(
    tmp_path: Path,
    run: Train,
    undisturbed: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = cache.DiskCache.store

    def store_without_room(self: cache.DiskCache, key: str, library: bytes) -> Path:
        # A limit on the size of files stands for a disk that takes no more of them.
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            return store(self, key, library)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(cache.DiskCache, "store", store_without_room)
    found = run(tmp_path / "cache")
    one_line(found, "not kept on disk", "too large")
    assert found.weights == undisturbed[0]
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_room_for_the_compiler_either(
    tmp_path: Path, run: Train, undisturbed: tuple[str, Path]
) -> None:
    text = "echo 'cc: fatal error: No space left on device' >&2; exit 1"
    found = run(tmp_path / "cache", CC=script(tmp_path / "cc", text))
    one_line(found, "No space left on device")
    assert found.weights == undisturbed[0]


def test_libraries_of_other_kernels_are_built_again(
    tmp_path: Path, run: Train, undisturbed: tuple[str, Path]
) -> None:
    weights, good = undisturbed
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    paths = sorted(good.glob("*.so"))
    assert len(paths) > 1
    for path, other in zip(paths, [*paths[1:], paths[0]], strict=True):
        (folder / path.name).write_bytes(other.read_bytes())
    assert run(folder) == Run(weights, [])
    kept = {path.name: path.stat().st_size for path in folder.glob("*.so")}
    assert kept == {path.name: path.stat().st_size for path in paths}


def test_folders_where_libraries_belong(
    tmp_path: Path, run: Train, undisturbed: tuple[str, Path]
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    for path in undisturbed[1].glob("*.so"):
        (folder / path.name).mkdir()
    found = run(folder)
    one_line(found, "not kept on disk", "Is a directory", str(folder))
    assert found.weights == undisturbed[0]


@pytest.mark.parametrize("damage", ["empty", "truncated", "foreign", "flipped"])
def test_a_damaged_or_foreign_file_is_built_again(
    damage: str, tmp_path: Path, run: Train, undisturbed: tuple[str, Path]
) -> None:
    weights, good = undisturbed
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    for path in good.glob("*.so"):
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 1])
        (folder / path.name).write_bytes(
            {
                "empty": b"",
                "truncated": content[:middle],
                "foreign": b"\x7fELF" + bytes(1000),
                "flipped": content[:middle] + flipped + content[middle + 1 :],
            }[damage]
        )
    assert run(folder) == Run(weights, [])
    kept = {path.name: path.stat().st_size for path in folder.glob("*.so")}
    assert kept == {path.name: path.stat().st_size for path in good.glob("*.so")}


def test_a_stale_cache_of_another_compiler_is_not_used(
    tmp_path: Path, run: Train, undisturbed: tuple[str, Path]
) -> None:
    assert REAL is not None
    folder = tmp_path / "cache"
    before = run(folder)
    other = script(tmp_path / "cc", f'exec {REAL.command[0]} "$@"')
    names = {path.name for path in folder.iterdir()}
    assert run(folder, CC=other) == before == Run(undisturbed[0], [])
    assert names < {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_a_folder_open_to_others(
    mode: int, tmp_path: Path, run: Train, undisturbed: tuple[str, Path]
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    found = run(folder)
    one_line(found, "open to other users", f"chmod 700 {folder}")
    assert found.weights == undisturbed[0]
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can give files away")
def test_a_folder_of_somebody_else(
    tmp_path: Path, run: Train, undisturbed: tuple[str, Path]
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    found = run(folder)
    one_line(found, "belongs to another user")
    assert found.weights == undisturbed[0]
