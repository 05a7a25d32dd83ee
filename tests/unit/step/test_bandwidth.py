"""The measured bandwidth: kept, found again, and never trusted blindly."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest

from thalweg.compiler.cache import FolderRefusedError
from thalweg.step.bandwidth import Bandwidth, keep_bandwidth, read_bandwidth

MEASURED = Bandwidth(8e10, 2, "2026-01-31")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THALWEG_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_kept_is_found(folder: Path) -> None:
    assert read_bandwidth() is None
    assert keep_bandwidth(MEASURED).parent == folder
    assert read_bandwidth() == MEASURED
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == ["bandwidth.json"]


def test_devices_are_kept_apart() -> None:
    keep_bandwidth(MEASURED)
    keep_bandwidth(Bandwidth(4e12, 1, "2026-02-01"), "a GPU")
    assert read_bandwidth() == MEASURED
    gpu = read_bandwidth("a GPU")
    assert gpu is not None
    assert gpu.seconds(4e12) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[1]",
        '{"cpu": 3}',
        '{"cpu": {"threads": 2}}',
        '{"cpu": {"bytes_per_second": -1, "threads": 2, "date": ""}}',
        '{"cpu": {"bytes_per_second": "fast", "threads": 2, "date": ""}}',
    ],
)
def test_a_damaged_file_counts_as_none(folder: Path, text: str) -> None:
    folder.mkdir(mode=0o700)
    (folder / "bandwidth.json").write_text(text)
    assert read_bandwidth() is None


@pytest.mark.parametrize("mode", [0o777, 0o750, 0o705])
def test_a_folder_that_kernels_refuse_is_neither_read_nor_written(
    folder: Path, mode: int
) -> None:
    path = keep_bandwidth(MEASURED)
    text = path.read_text()
    folder.chmod(mode)
    assert read_bandwidth() is None
    with pytest.raises(FolderRefusedError, match="open to other users"):
        keep_bandwidth(MEASURED, "another")
    assert path.read_text() == text
    assert list(folder.iterdir()) == [path]
    folder.chmod(0o700)
    assert read_bandwidth() == MEASURED


def test_reading_makes_no_folder(folder: Path) -> None:
    assert read_bandwidth() is None
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("THALWEG_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(FolderRefusedError, match="Not a directory"):
        keep_bandwidth(MEASURED)


@pytest.mark.parametrize("place", [(tempfile, "mkstemp"), (Path, "replace")])
def test_a_file_that_cannot_be_written_names_the_folder(
    folder: Path, place: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "some.part")

    monkeypatch.setattr(*place, refuse)
    with pytest.raises(FolderRefusedError) as caught:
        keep_bandwidth(MEASURED)
    assert str(caught.value) == f"{folder}: Permission denied"
    assert list(folder.iterdir()) == []
