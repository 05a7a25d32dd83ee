"""`thalweg doctor` and `thalweg bench` as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from thalweg.cli import app as entry
from thalweg.compiler.build import find_compiler
from thalweg.step.bandwidth import Bandwidth, read_bandwidth
from thalweg.testing import device_speed, machine, speed

runner = CliRunner()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THALWEG_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")
def test_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    # Other tests of this process import packages that bring a runtime of their own.
    monkeypatch.setattr(machine, "openmp_runtimes", lambda: ["libgomp.so.1"])
    done = runner.invoke(entry.app, ["doctor"], catch_exceptions=False)
    assert done.exit_code == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "All is well."


def test_what_is_wrong_is_marked_and_ends_in_status_1(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    done = runner.invoke(entry.app, ["doctor"], catch_exceptions=False)
    assert done.exit_code == 1
    (line,) = [text for text in done.stdout.splitlines() if text.startswith("! cache")]
    assert "chmod 700" in line
    assert done.stdout.splitlines()[-1].startswith("Something is wrong")


def test_a_wrong_setting_is_marked_and_not_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THALWEG_COMPILER", "no")
    done = runner.invoke(entry.app, ["doctor"], catch_exceptions=False)
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    (line,) = [text for text in lines if text.startswith("! settings")]
    assert line.endswith(
        "THALWEG_COMPILER: expected '0' or '1'; got 'no'. Set one of them."
    )
    assert any(text.startswith("  cache") and str(folder) in text for text in lines)
    assert lines[-1].startswith("Something is wrong")


def test_bench_keeps_what_it_measured(folder: Path) -> None:
    arguments = ["bench", "--elements", "4096", "--threads", "1"]
    done = runner.invoke(entry.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("memory: ")
    assert lines[0].endswith(" GB/s, 1 thread")
    assert sum(line.endswith("from caches") for line in lines) == 5
    kept = json.loads((folder / "bandwidth.json").read_text())
    assert kept["cpu"]["threads"] == 1
    doctor = runner.invoke(entry.app, ["doctor"], catch_exceptions=False)
    assert "GB/s with 1 threads" in doctor.stdout


def test_bench_tells_the_share_of_memory_where_caches_do_not_help(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speed, "cache_bytes", lambda: 1 << 15)
    arguments = ["bench", "--elements", "8192", "--threads", "1"]
    done = runner.invoke(entry.app, arguments, catch_exceptions=False)
    _, sgd, lion, adam, small, rows, _ = done.stdout.splitlines()
    assert sgd.endswith("from caches")  # two arrays of 32 KiB
    for line in (lion, adam, small):
        assert line.endswith(" % of memory")
    assert rows.endswith("from caches")


@pytest.mark.filterwarnings("ignore:.*not kept on disk")  # said once in a process
def test_bench_without_a_folder_says_so_and_ends_well(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    arguments = ["bench", "--elements", "4096", "--threads", "1"]
    done = runner.invoke(entry.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"not kept: {folder} is open to other users")
    assert not (folder / "bandwidth.json").exists()


def test_bench_keeps_what_it_measured_of_a_gpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[int, torch.device]] = []

    def measure(elements: int, device: torch.device) -> Bandwidth:
        measured.append((elements, device))
        return Bandwidth(3e12, 0, "2026-01-31")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device}")
    monkeypatch.setattr(device_speed, "measure_device_bandwidth", measure)
    for device in ("cuda", "cuda:0"):
        arguments = ["bench", "--device", device]
        done = runner.invoke(entry.app, arguments, catch_exceptions=False)
        assert done.exit_code == 0
    assert "GPU cuda:0: 3000.0 GB/s" in done.stdout
    assert [place.index for _, place in measured] == [1, 0]
    kept = json.loads((folder / "bandwidth.json").read_text())
    assert set(kept) == {"GPU cuda:0", "GPU cuda:1"}
    assert read_bandwidth("GPU cuda:0") == Bandwidth(3e12, 0, "2026-01-31")


def test_bench_refuses_a_device_that_is_not_there() -> None:
    done = runner.invoke(entry.app, ["bench", "--device", "cuda:77"])
    assert done.exit_code == 2
    assert "expected one of cpu" in done.output
    assert "got 'cuda:77'" in done.output
