"""The doctor's findings: what is there, and what is wrong."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch

from thalweg import compiler
from thalweg.compiler import compilation
from thalweg.compiler.build import can_compile
from thalweg.step.bandwidth import Bandwidth, keep_bandwidth
from thalweg.testing import machine
from thalweg.testing.machine import Finding, examine, openmp_runtimes

needs_compiler = pytest.mark.skipif(not can_compile(), reason="needs a C compiler")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THALWEG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("THALWEG_COMPILER", "1")
    return tmp_path / "cache"


def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in examine()}


@needs_compiler
def test_a_sound_machine_has_nothing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    # Other tests of this process import packages that bring a runtime of their own.
    monkeypatch.setattr(machine, "openmp_runtimes", lambda: ["libgomp.so.1"])
    keep_bandwidth(Bandwidth(8e10, 2, "2026-01-31"))
    found = findings()
    assert [f.name for f in found.values() if f.is_wrong] == []
    assert "torch" in found["versions"].text
    assert "bits" in found["vector width"].text
    assert "same bits" in found["kernel = interpreter"].text
    assert found["bandwidth"].text.startswith("80.0 GB/s with 2 threads")


def test_no_compiler_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compilation, "_KERNELS", {})
    found = findings()
    assert found["compiler"].is_wrong
    assert "set CC" in found["compiler"].text
    assert found["kernel = interpreter"].is_wrong
    assert found["vector width"].text.startswith("unknown")


@needs_compiler
def test_a_choice_that_names_no_program_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CC", "no-such-program -O2")
    found = findings()["compiler"]
    assert found.is_wrong
    assert found.text.startswith("CC='no-such-program -O2' names no program; /")


def test_a_compiler_that_does_not_run_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "cc"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    assert "does not run" in findings()["compiler"].text


def test_a_compiler_that_is_switched_off_is_not_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("THALWEG_COMPILER", "0")
    monkeypatch.setattr(compilation, "_KERNELS", {})
    found = findings()
    assert not found["compiler"].is_wrong
    assert not found["kernel = interpreter"].is_wrong


def test_a_wrong_setting_is_shown_and_the_rest_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("THALWEG_COMPILER", "no")
    found = findings()
    assert found["settings"].is_wrong
    assert found["settings"].text.startswith("THALWEG_COMPILER: expected '0' or '1'")
    assert next(f.name for f in found.values() if f.is_wrong) == "settings"
    assert str(folder) in found["cache"].text
    assert {"compiler", "flags", "threads", "OpenMP runtimes", "GPU"} <= set(found)


def test_an_open_cache_is_wrong(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    found = findings()["cache"]
    assert found.is_wrong
    assert "chmod 700" in found.text


@needs_compiler
def test_wrong_bits_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_a_bit(*arguments: object) -> object:
        first, *others = compiler.interpret(*arguments)  # pyright: ignore[reportArgumentType] - as it was called
        return (first.nextafter(first + 1), *others)

    monkeypatch.setattr(machine, "interpret", off_by_a_bit)
    found = findings()["kernel = interpreter"]
    assert found.is_wrong
    assert "100003 of 300009 numbers differ" in found.text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torch_brings_one_openmp_runtime() -> None:
    found = openmp_runtimes()
    assert found is not None
    assert all("omp" in Path(path).name for path in found)


@pytest.mark.parametrize("count", [0, 2])
def test_any_other_number_of_runtimes_is_wrong(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ["lib/libgomp.so.1", "lib/libiomp5.so"][:count]
    monkeypatch.setattr(machine, "openmp_runtimes", lambda: paths)
    assert findings()["OpenMP runtimes"].is_wrong


def test_a_kernel_is_run_on_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def has_kernels(device: torch.device) -> bool:
        if device.index == 1:
            text = "got ptxas: no such file. See `thalweg doctor`."
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        return device.index == 0

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(machine, "has_triton", lambda: True)
    monkeypatch.setattr(machine, "has_device_kernels", has_kernels)
    found = findings()
    assert not found["kernel on cuda:0"].is_wrong
    assert "same bits" in found["kernel on cuda:0"].text
    assert found["kernel on cuda:1"].is_wrong
    assert found["kernel on cuda:1"].text == "got ptxas: no such file."
    assert found["kernel on cuda:2"].is_wrong
    monkeypatch.setattr(machine, "has_triton", lambda: False)
    assert "no Triton" in findings()["kernel on cuda:0"].text
