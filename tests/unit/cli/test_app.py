"""The command line: help, version, a training run, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import thalweg
from thalweg.cli import app as entry
from thalweg.cli import main
from thalweg.cli.train import _run_folder

runner = CliRunner()


def run(*arguments: str) -> tuple[int, list[str]]:
    """Call the command line in this process; exit status and lines of stdout."""
    done = runner.invoke(entry.app, list(arguments), catch_exceptions=False)
    return done.exit_code, done.stdout.splitlines()


def test_help_lists_the_commands() -> None:
    status, lines = run("--help")
    assert status == 0
    assert any(line.strip().startswith("train ") for line in lines)


def test_the_version_is_the_package_s() -> None:
    assert run("--version") == (0, [f"thalweg {thalweg.__version__}"])


def test_help_imports_no_torch() -> None:
    program = (
        "import sys; sys.argv = ['thalweg', '--help']\n"
        "from thalweg.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'rich', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_digits_train_and_end_in_json(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    status, lines = run("train", "digits", "--epochs", "8", "--out", out, "--json")
    assert status == 0
    result = json.loads(lines[-1])
    assert result["test_accuracy"] > 0.9
    assert result["steps"] == 8 * 45
    assert result["seconds"] > 0
    assert (Path(result["checkpoint"]) / "manifest.json").is_file()
    assert Path(result["curves"]).is_file()
    assert any(line.startswith("test accuracy: 0.9") for line in lines)
    assert sum(line.startswith("epoch ") for line in lines) == 8


@pytest.mark.parametrize("named", ["run", "checkpoint"])
def test_a_resumed_run_goes_on_where_it_is(named: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "mine" / "checkpoint"
    checkpoint.mkdir(parents=True)
    resumed = checkpoint if named == "checkpoint" else checkpoint.parent
    assert _run_folder(resumed) == tmp_path / "mine"
    assert _run_folder(None) is None
    assert _run_folder(tmp_path) is None


def test_a_run_can_be_resumed(tmp_path: Path) -> None:
    out = str(tmp_path)
    run("train", "digits", "--epochs", "1", "--out", out)
    _, lines = run(
        "train", "digits", "--epochs", "2", "--out", out, "--resume", out, "--json"
    )
    assert json.loads(lines[-1])["steps"] == 2 * 45
    assert any("after epoch 1" in line for line in lines)


def test_options_reach_the_training(tmp_path: Path) -> None:
    arguments = ("--optimizer", "sgd", "--learning-rate", "0.1", "--batch-size", "479")
    where = ("--epochs", "1", "--seed", "3", "--out", str(tmp_path), "--device", "cpu")
    status, lines = run("train", "digits", *arguments, *where, "--json")
    assert status == 0
    assert json.loads(lines[-1])["steps"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digit"], "Did you mean 'digits'?"),
        (["train", "digits", "--optimizer", "adm"], "Did you mean 'adam'?"),
        (["train", "digits", "--epochs", "0"], "expected a number ≥ 1"),
        (["train", "digits", "--resume", "nowhere"], "expected a checkpoint"),
    ],
)
def test_a_refusal_is_one_message_without_a_traceback(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["thalweg", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.err.startswith("thalweg: ")
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_process_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    out = str(tmp_path)
    status, lines = run("train", "digits", "--epochs", "1", "--out", out, "--json")
    assert status == 0
    assert [line for line in lines if "accuracy:" in line or line.startswith("{")] == []


def test_the_package_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "thalweg", "train", "nothing"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Known: digits, skipgram, text." in done.stderr
