"""`thalweg optimizers`: the table, one optimizer, and a wrong name."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

import thalweg as tw
from thalweg.cli import app as entry
from thalweg.cli import main

runner = CliRunner()


def run(*arguments: str) -> list[str]:
    done = runner.invoke(entry.app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout.splitlines()


def test_all_are_listed_with_what_they_keep() -> None:
    head, *lines = run("optimizers")
    count = len(tw.optimizers.names())
    assert head.split() == ["name", "slots", "sparse", "bytes", "source"]
    rows = {line.split()[0]: line for line in lines[:count]}
    assert [name.lower() for name in rows] == tw.optimizers.names()
    assert rows["Adam"].split("  ")[-1] == "Kingma and Ba, ICLR 2015"
    assert "m v [vhat]" in rows["Adam"]
    assert " 8 [12]  " in rows["Adam"]
    assert "all rows" in rows["Lamb"]
    assert " 4 a row  " in rows["RowWiseAdagrad"]
    assert " 0 [4]  " in rows["SGD"]
    assert lines[count] == ""
    assert lines[-1].endswith("thalweg optimizers NAME")


def test_one_of_them_is_told_in_full() -> None:
    first, _, row, _, *text = run("optimizers", "lion")
    assert first.startswith("Lion(learning_rate=0.001, beta_1=0.9, beta_2=0.99")
    assert row == "slots: m; sparse: its rows; bytes: 4"
    assert any("thalweg.rules.lion" in line for line in text)


@pytest.mark.parametrize("name", tw.optimizers.names())
def test_units_that_are_used_are_explained(name: str) -> None:
    *text, last = run("optimizers", name)
    uses_them = any("Unit " in line for line in text)
    assert last.startswith("Units: U is that of the variable, L") == uses_them


def test_an_unknown_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["thalweg", "optimizers", "adm"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "Did you mean 'adam'" in capsys.readouterr().err
