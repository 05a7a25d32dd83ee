"""The benchmark of raw ops in short form: every case runs, nothing is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import harness, raw_op


def test_every_case_runs(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    threads = torch.get_num_threads()
    raw_op.main(["--quick", "--threads", str(threads)])
    printed = capsys.readouterr().out
    for name in ("ResourceApplyAdam", "ResourceSparseApplyAdagrad", "by hand"):
        assert name in printed
    assert not list(tmp_path.iterdir())
