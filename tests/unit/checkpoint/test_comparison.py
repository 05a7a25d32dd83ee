"""What differs in two checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from thalweg.checkpoint import Checkpoint
from thalweg.checkpoint.comparison import PIECE, compare
from thalweg.errors import CheckpointError


def saved(path: Path, **objects: Any) -> str:
    return Checkpoint(**objects).save(path)


def texts(tmp_path: Path, one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    places = saved(tmp_path / "one", **one), saved(tmp_path / "other", **other)
    return [f"{key}: {text}" for key, text in compare(*places)]


def test_equal_checkpoints_have_no_difference(tmp_path: Path) -> None:
    nan = torch.tensor([float("nan"), -0.0])
    objects = {"model": torch.nn.Linear(2, 3), "epoch": 3, "rate": 0.5, "nan": nan}
    assert texts(tmp_path, objects, objects) == []


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.bfloat16, torch.float8_e5m2),
        *(torch.int64, torch.uint8, torch.complex64),
    ],
)
def test_the_largest_difference_is_found(tmp_path: Path, dtype: torch.dtype) -> None:
    one = torch.zeros(5, dtype=torch.float32).to(dtype)
    other = torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0]).to(dtype)
    found = texts(tmp_path, {"weight": one}, {"weight": other})
    assert found == ["weight: 2 of 5 elements, by at most 2"]


def test_it_is_found_in_any_piece(tmp_path: Path) -> None:
    one = torch.zeros(2 * PIECE + 1, dtype=torch.bool)
    other = one.clone()
    other[-1] = True
    found = texts(tmp_path, {"mask": one}, {"mask": other})
    assert found == [f"mask: 1 of {2 * PIECE + 1} elements, by at most 1"]


def test_bits_count(tmp_path: Path) -> None:
    one, other = torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0])
    found = texts(tmp_path, {"weight": one}, {"weight": other})
    assert found == ["weight: 1 of 2 elements, by at most 0"]
    nan = torch.tensor([float("nan"), 9.0])
    (text,) = texts(tmp_path / "nan", {"weight": one}, {"weight": nan})
    assert text.endswith("by at most nan")


def test_what_is_on_one_side_only(tmp_path: Path) -> None:
    one = {"weight": torch.ones(1), "epoch": 1}
    other = {"bias": torch.ones(1), "turn": 1}
    assert texts(tmp_path, one, other) == [
        "epoch: only in the first",
        "turn: only in the second",
        "weight: only in the first",
        "bias: only in the second",
    ]


def test_values_and_kinds(tmp_path: Path) -> None:
    one = {"weight": torch.ones(2), "rate": 0.5, "flag": True, "more": [1] * 99}
    other = {"weight": torch.ones(3), "rate": 0.25, "flag": 1, "more": [1] * 98 + [2]}
    assert texts(tmp_path, one, other) == [
        "rate: 0.5 and 0.25",
        "flag: True and 1",
        "more: one value and another",
        "weight: float32 (2,) and torch.float32 (3,)".replace("torch.", ""),
    ]


def test_hyperparameters_and_metadata(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    checkpoint = Checkpoint(weight=weight, optimizer=optimizer)
    one = checkpoint.save(tmp_path / "one", metadata={"run": 1})
    optimizer.param_groups[0]["lr"] = 0.25
    other = checkpoint.save(tmp_path / "other", metadata={"run": 2})
    found = [f"{key}: {text}" for key, text in compare(one, other)]
    assert found == ["optimizer/.hyper/0.lr: 0.5 and 0.25", "metadata/run: 1 and 2"]


def test_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "one", weight=torch.ones(1))
    file = Path(path) / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="another checksum"):
        list(compare(path, path))
