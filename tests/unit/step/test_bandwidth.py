"""The measured bandwidth: kept, found again, and never trusted blindly."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    folder.mkdir()
    (folder / "bandwidth.json").write_text(text)
    assert read_bandwidth() is None


def test_a_folder_that_cannot_be_made_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("THALWEG_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="file"):
        keep_bandwidth(MEASURED)
