"""Memory stays flat while checkpoints are saved."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.leak import measure

PROJECT = Path(__file__).parents[2]


def test_memory_stays_flat() -> None:
    # In a process of its own, whose memory no other test has used.
    paths = [str(PROJECT / "src"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.leak", "--quick"],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "memory flat: True" in done.stdout


@pytest.mark.parametrize("kind", ["memory", "objects", "files"])
def test_a_leak_is_found(kind: str, tmp_path: Path) -> None:
    held: list[Any] = []

    def leak(step: int) -> None:
        if kind == "memory":
            # New pages: the heap may have room left over from other tests.
            held.append(mmap.mmap(-1, 1 << 20))
            held[-1].write(bytes(1 << 20))
        elif kind == "objects":
            held.append([[step] for _ in range(30)])
        elif step % 5 == 0:
            held.append((tmp_path / str(step)).open("w"))

    row = measure("save", 100, every=25, after_step=leak)
    for file in held if kind == "files" else []:
        file.close()
    assert not row["flat"]
