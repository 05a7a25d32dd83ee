"""Disks that are full, broken or read-only: an error, and the old one as it was."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from pathlib import Path

import pytest
import torch

from benchmarks import reliability
from thalweg.checkpoint import Checkpoint
from thalweg.state import Variable


def test_every_change_is_refused_in_turn() -> None:
    (row,) = reliability.full_disk((errno.ENOSPC,))
    assert row["trials"] >= 80
    assert row["failures"] == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder(tmp_path: Path) -> None:
    os.chmod(tmp_path, stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PermissionError):
        Checkpoint(x=Variable(torch.ones(2))).save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    checkpoint = Checkpoint(x=Variable(torch.ones(100_000)))
    path = checkpoint.save(tmp_path / "x")
    before = reliability.listing(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            checkpoint.save(path, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert reliability.listing(tmp_path) == before
