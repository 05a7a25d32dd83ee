"""The benchmark without a compiler runs, and does without."""

from __future__ import annotations

import pytest

from benchmarks import interpreter
from benchmarks.cases import arguments
from thalweg.compiler import compilation


def test_every_rule_is_timed_in_every_size() -> None:
    options = arguments(None).parse_args(["--quick"])
    names = [case.name for case in interpreter.cases(options)]
    assert len(names) == len(set(names)) == 39


def test_a_case_runs_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels: dict[object, compilation.Kernel] = {}
    monkeypatch.setattr(compilation, "_KERNELS", kernels)
    monkeypatch.setenv("THALWEG_COMPILER", "0")
    interpreter.main(["--quick", "--only", "300 × 1,024 SGD momentum"])
    assert {kernel.backend for kernel in kernels.values()} == {"interpreter"}
    assert "torch for-loop / thalweg" in capsys.readouterr().out
