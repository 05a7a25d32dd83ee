"""`thalweg inspect`, `verify`, `diff` and `convert` as commands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import thalweg as tw
from thalweg.cli import app as entry
from thalweg.cli import main
from thalweg.schedules import ExponentialDecay

runner = CliRunner()
MAKE = """
import torch
from weights_beside import WIDTH

def make():
    model = torch.nn.Linear(WIDTH, 1)
    return model, torch.optim.Adam(model.parameters())

def only():
    return torch.nn.Linear(2, 1)
"""


def run(*arguments: object) -> tuple[int, list[str]]:
    """Call the command line in this process; exit status and lines of output."""
    words = [str(argument) for argument in arguments]
    done = runner.invoke(entry.app, words, catch_exceptions=False)
    return done.exit_code, done.output.splitlines()


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """A checkpoint after one step of Adam."""
    model, optimizer = nn.Linear(2, 3), tw.optimizers.Adam(0.25)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.apply_gradients([(p.grad, p) for p in model.parameters()])
    objects = tw.Checkpoint(model=model, optimizer=optimizer, epoch=3)
    return objects.save(tmp_path / "saved")


def test_inspect_shows_a_table(saved: str) -> None:
    status, lines = run("inspect", saved)
    assert status == 0
    assert lines[0] == "step: 1"
    assert lines[1] == "learning rate: 0.25 (optimizer)"
    assert lines[2].startswith("files: 1, ")
    table = [line.split("  ") for line in lines]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in table]
    assert ["name", "shape", "dtype", "bytes"] in cells
    assert ["model/weight", "3 × 2", "float32", "24"] in cells
    assert ["model/weight/.slot/optimizer/m", "3 × 2", "float32", "24"] in cells
    assert ["optimizer/iterations", "number", "int64", "8"] in cells
    assert ["7 tensors", "116"] in cells
    alone = tw.Checkpoint(x=torch.ones(1)).save(Path(saved).parent / "alone")
    assert any(line.startswith("1 tensor  ") for line in run("inspect", alone)[1])
    assert lines[-1] == "values: epoch"


def test_inspect_shows_aliases(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    _, lines = run("inspect", tw.Checkpoint(model=model).save(tmp_path / "c"))
    assert lines[0] == "step: unknown"
    assert lines[-1] == "model/1.weight is model/0.weight"


def test_inspect_shows_every_kind_of_learning_rate(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.5}]
    schedule = ExponentialDecay(0.125, 10, 0.5)
    objects = tw.Checkpoint(
        model=model,
        theirs=torch.optim.SGD(groups, lr=0.25),
        ours=tw.optim.SGD([model.weight], lr=0.75),
        scheduled=tw.optimizers.SGD(schedule),
    )
    _, lines = run("inspect", objects.save(tmp_path / "c"))
    rates = {line for line in lines if line.startswith("learning rate")}
    assert rates >= {
        "learning rate: 0.25 (theirs)",
        "learning rate: 0.5 (theirs)",
        "learning rate: 0.75 (ours)",
    }
    (line,) = [line for line in rates if line.endswith("(scheduled)")]
    assert "ExponentialDecay(initial_learning_rate=0.125, decay_steps=10" in line


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = tw.Checkpoint(weights={"\x1b[2J": torch.ones(1)}).save(tmp_path / "c")
    _, lines = run("inspect", path)
    assert "\x1b" not in "".join(lines)
    assert any(line.startswith(r"weights/\x1b[2J") for line in lines)


def test_verify_says_that_a_checkpoint_is_sound(saved: str) -> None:
    status, lines = run("verify", saved)
    assert status == 0
    assert lines[0].startswith("sound: 7 tensors, 1 file, ")


def test_verify_names_what_is_wrong(saved: str, tmp_path: Path) -> None:
    file = Path(saved) / "tensors.safetensors"
    whole = file.read_bytes()
    for content, reason in (
        (whole[:-1] + bytes([whole[-1] ^ 1]), "another checksum"),
        (whole[:-1], "were written"),
    ):
        file.write_bytes(content)
        status, lines = run("verify", saved)
        assert status == 1
        assert reason in "\n".join(lines)
        assert "tensors.safetensors" in "\n".join(lines)
    status, lines = run("verify", tmp_path / "nothing")
    assert status == 1
    assert "expected a checkpoint folder" in "\n".join(lines)


def test_diff_shows_what_differs(saved: str, tmp_path: Path) -> None:
    assert run("diff", saved, saved) == (0, ["no difference"])
    first = tw.Checkpoint(epoch=3).save(tmp_path / "first")
    other = tw.Checkpoint(epoch=4).save(tmp_path / "other")
    assert run("diff", first, other) == (1, ["epoch: 3 and 4", "1 difference"])
    status, lines = run("diff", saved, other)
    assert status == 1
    assert "epoch: 3 and 4" in lines
    assert "model/bias: only in the first" in lines
    assert lines[-1].endswith(" differences")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A file of torch with an optimizer's state, and one that makes its model."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (tmp_path / "make.py").write_text(MAKE)
    (tmp_path / "weights_beside.py").write_text("WIDTH = 2")
    return tmp_path / "optimizer.pt"


def test_convert_makes_a_checkpoint(state: Path, tmp_path: Path) -> None:
    arguments = (state, tmp_path / "c", "--module", f"{tmp_path}/make.py:make")
    status, lines = run("convert", *arguments, "--weights", tmp_path / "model.pt")
    assert (status, lines) == (0, [f"checkpoint: {tmp_path}/c"])
    _, lines = run("inspect", tmp_path / "c")
    assert lines[:2] == ["step: 1", "learning rate: 0.5 (optimizer)"]
    assert any("model/weight/.slot/optimizer/exp_avg" in line for line in lines)
    restored = nn.Linear(2, 1)
    tw.Checkpoint(model=restored).restore(tmp_path / "c").expect_partial()
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.equal(restored.weight, saved["weight"])
    assert run("convert", *arguments, "--overwrite")[0] == 0
    assert str(tmp_path) not in sys.path


def test_convert_says_where_weights_are_from(state: Path, tmp_path: Path) -> None:
    arguments = (state, tmp_path / "c", "--module", f"{tmp_path}/make.py:make")
    _, lines = run("convert", *arguments)
    assert lines == ["weights: as make() gave them", f"checkpoint: {tmp_path}/c"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.pt", "c"], "expected a file of torch.save; got no file none.pt."),
        ([".", "c"], "expected a file of torch.save; got no file ."),
        (["optimizer.pt", "taken"], "Choose another path, or pass --overwrite."),
        (
            ["optimizer.pt", "c", "--weights", "none.pt"],
            "--weights: expected a file of weights; got no file none.pt.",
        ),
    ],
)
def test_convert_refuses_paths_before_it_runs_anything(
    words: list[str],
    message: str,
    state: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "never.py").write_text("raise AssertionError('this was run')")
    command = ["thalweg", "convert", *words, "--module", "never.py:make"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("make.py", "expected FILE.py:FUNCTION"),
        ("none.py:make", "expected FILE.py:FUNCTION"),
        ("make.py:mak", "Did you mean 'make'?"),
        ("make.py:only", "expected a model and its optimizer; got Linear"),
    ],
)
def test_convert_refuses_what_makes_no_model(
    place: str,
    message: str,
    state: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["convert", str(state), "c", "--module", place]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["thalweg", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
