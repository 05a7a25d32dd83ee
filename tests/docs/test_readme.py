"""The README's Python runs, from top to bottom, as one program."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import thalweg as tw

KNOWN = tw.optimizers.names()
PARTS = "thalweg.optimizers."
README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE
)


def make_names() -> dict[str, Any]:
    """What the text takes for granted: data, and a name or two."""
    generator = np.random.default_rng(1)
    x = generator.random((40, 64), dtype=np.float32)
    return {"torch": torch, "x": x, "y": generator.integers(0, 10, 40)}


def test_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = make_names()
    assert len(BLOCKS) >= 4
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), names)
    assert names["history"].history["loss"]
    assert names["manager"].latest() is not None
    lion = names["Lion"](learning_rate=0.5)
    weight = tw.Variable([1.0])
    lion.apply_gradients([(torch.ones(1), weight)])
    assert weight.detach().tolist() == [0.5]


def test_the_step_of_the_readme_measures_as_the_default_one_does() -> None:
    names, figures = make_names(), []
    (block,) = [block for block in BLOCKS if "def train_step" in block]
    exec(compile(block, str(README), "exec"), names | {"tw": tw}, names)
    for kind in (tw.Model, names["Classifier"]):
        torch.manual_seed(0)
        model = kind(torch.nn.Linear(64, 10))
        model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
        history = model.fit(names["x"], names["y"], epochs=8, verbose=0)
        figures.append(history.history)
    assert figures[1]["accuracy"] == figures[0]["accuracy"] != [0.0] * 8
    assert figures[1]["loss"] == pytest.approx(figures[0]["loss"], rel=1e-6)


def test_the_table_of_rules_has_every_optimizer_and_leads_to_files() -> None:
    _, _, text = README.read_text().partition("## Where is the maths")
    rows = re.findall(r"^\| `(\w+)` \|(.*)$", text.partition("\n## ")[0], re.MULTILINE)
    own = {name for name in tw.optimizers.__all__ if name.lower() in KNOWN}
    assert {name for name, _ in rows} == own
    for name, row in rows:
        paths = re.findall(r"\]\(([^)]+)\)", row)
        assert paths, name
        assert all((README.parent / path).is_file() for path in paths), name


def test_the_map_of_the_base_class_is_its_order() -> None:
    text = (README.parent / "ARCHITECTURE.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", text, re.MULTILINE)
    parts = [c for c in tw.Optimizer.__mro__ if c.__module__.startswith(PARTS)]
    order = [(c.__name__, c.__module__.removeprefix(PARTS)) for c in parts]
    assert listed == order[::-1]


def test_the_changed_import_is_all_that_changes() -> None:
    (text,) = re.findall(r"^```diff\n(.*?)^```", README.read_text(), re.DOTALL | re.M)
    removed = [line[1:] for line in text.splitlines() if line.startswith("-")]
    added = [line[1:] for line in text.splitlines() if line.startswith("+")]
    assert [line.replace("torch", "thalweg") for line in removed] == added
    kept = [line[1:] for line in text.splitlines() if not line.startswith("-")]
    model = torch.nn.Linear(3, 1)
    loader = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(3)]
    names = {"model": model, "loader": loader, "criterion": torch.nn.MSELoss()}
    before = model.weight.detach().clone()
    exec("\n".join(kept), names)
    assert isinstance(names["optimizer"], torch.optim.AdamW)
    assert not torch.equal(model.weight, before)
