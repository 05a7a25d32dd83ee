"""The Hugging Face Trainer: the guide page on a tiny GPT-2 made on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.pages import assert_same_bits, bits_of, needs, run_page

pytestmark = needs("transformers", "accelerate")
QUIET = (
    ("resumed.train(", "keep = resumed.train("),
    ('report_to="none",', 'report_to="none", disable_tqdm=True, logging_steps=1,'),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hugging-face")


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        # Where there is a device, the page's seeds are those of the processor.
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield run_page("hugging-face", folder, QUIET)


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def rates(trainer: Any) -> list[float]:
    history = trainer.state.log_history
    return [entry["learning_rate"] for entry in history if "loss" in entry]


def test_an_optimizer_made_before(page: dict[str, Any], folder: Path) -> None:
    trainer, resumed = page["trainer"], page["resumed"]
    assert isinstance(trainer.optimizer.optimizer, page["AdamW"])
    assert losses(trainer)[-1] < 1.5 < 3.0 < losses(trainer)[0]
    assert rates(resumed) == rates(trainer)
    assert_same_bits(bits_of(resumed.model), bits_of(trainer.model))
    path = folder / "hugging-face" / "checkpoint-10" / "optimizer.pt"
    saved = torch.load(path, weights_only=True)
    assert "transformer.wte.weight" in saved["param_groups"][0]["param_names"]


@pytest.mark.parametrize("door", ["by_class", "by_factory"])
def test_a_class_and_a_factory(
    page: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = page[door]("run")
    trainer.train()
    resumed = page[door]("run")
    resumed.train(resume_from_checkpoint="run/checkpoint-10")
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert rates(resumed) == rates(trainer)
    assert_same_bits(bits_of(resumed.model), bits_of(trainer.model))
    groups = trainer.optimizer.param_groups
    if door == "by_class":
        assert [group["weight_decay"] for group in groups] == [0.0, 0.0]
        assert groups[0]["betas"] == (0.9, 0.99)
    else:
        assert trainer.optimizer.optimizer.iterations.item() == 24
