"""`thalweg compare`: a small comparison, and its table."""

from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

from tests.unit.tasks.test_training_run import LINE
from thalweg.cli import app as entry
from thalweg.cli import main
from thalweg.cli.compare import _plain, table
from thalweg.tasks import Standing

runner = CliRunner()


def test_digits_are_compared() -> None:
    arguments = ["compare", "digits", "--optimizers", "sgd, Adam", "--epochs", "1"]
    arguments += ["--rates", "1", "--seeds", "2", "--batch-size", "64", "--json"]
    done = runner.invoke(entry.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("SGD: test accuracy ")
    assert lines[3].split()[:2] == ["optimizer", "test_accuracy"]
    assert lines[4].split()[0] == "Adam"
    assert lines[-2] == "Adam is best, with every seed"
    found = json.loads(lines[-1])
    assert found["task"] == "digits"
    assert [one["optimizer"] for one in found["standings"]] == ["Adam", "SGD"]
    assert len(found["standings"][0]["figures"]) == 2


def test_a_rate_at_the_edge_is_told() -> None:
    found = [
        Standing("Adam", 0.004, (0.5, 0.75), 1.25, True),
        Standing("RowWiseAdagrad", 0.01, (0.625, 0.875), 1.0, False),
    ]
    assert list(table(LINE, found)) == [
        "optimizer       test_loss  of all seeds   rate   bytes    seconds",
        "Adam            0.6250     0.5000–0.7500  0.004  8           1.25",
        "RowWiseAdagrad  0.7500     0.6250–0.8750  0.01   4 a row     1.00",
        "",
        "Adam: 0.004 is at the edge; try more --rates",
        "no clear difference between Adam, RowWiseAdagrad",
    ]


def test_what_is_wrong_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "digits", "--optimizers", "adam,sgdd"]
    monkeypatch.setattr(sys, "argv", ["thalweg", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "Did you mean 'sgd'" in capsys.readouterr().err


def test_a_run_that_failed_is_null_in_json() -> None:
    found = _plain(Standing("Adam", 0.1, (1.0, float("nan")), 1.0, False))
    assert found["figures"] == [1.0, None]
    assert json.dumps(found, allow_nan=False)
