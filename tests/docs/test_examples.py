"""The examples run, stay short, and reach what they promise."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / name))["main"]()


def test_three_blocks_train_the_digits() -> None:
    assert run("three_blocks.py") >= 0.95


def test_own_optimizer_goes_down_the_valley() -> None:
    assert run("own_optimizer.py") < 0.01


def test_keras2_momentum_fits_the_line() -> None:
    assert run("keras2_momentum.py") < 1e-3


def test_sparse_embedding_learns() -> None:
    assert run("sparse_embedding.py") > 0.99


@pytest.mark.distributed
def test_three_blocks_on_two_ranks() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(EXAMPLES / "three_blocks.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    # Two processes print at once, so a line may hold both.
    printed = re.findall(r"accuracy (\d\.\d{3})", done.stdout)
    assert len(printed) == 2
    assert printed[0] == printed[1]
    assert float(printed[0]) >= 0.95


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_example_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80
