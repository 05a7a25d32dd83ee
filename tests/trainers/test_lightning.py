"""Lightning: the guide page, with automatic and manual optimization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.pages import assert_same_bits, bits_of, needs, run_page

pytestmark = needs("lightning")
QUIET = (
    (
        "enable_checkpointing=False,",
        "enable_checkpointing=False, enable_progress_bar=False, "
        "enable_model_summary=False,",
    ),
)
FACE = (
    *QUIET,
    ("from thalweg.optim import AdamW", "import thalweg as tw, thalweg.interop"),
    (
        "AdamW(self.named_parameters(), lr=2e-2, weight_decay=0.1)",
        "tw.interop.as_torch(tw.optimizers.AdamW(2e-2, 0.1), self)",
    ),
)


@pytest.mark.parametrize("changes", [QUIET, FACE], ids=["optim", "as_torch"])
def test_the_page_resumes_to_the_same_bits(
    tmp_path: Path, changes: tuple[tuple[str, str], ...]
) -> None:
    page = run_page("lightning", tmp_path, changes)
    for name, clip in (("Automatic", 1.0), ("Manual", None)):
        straight = page[name]()
        trainer = page["trainer"](4, clip)
        trainer.fit(straight, page["loader"]())
        assert trainer.global_step == 64
        resumed = page[name.lower()]
        assert_same_bits(bits_of(resumed), bits_of(straight))
        inputs, targets = page["loader"]().dataset.tensors
        assert torch.nn.functional.mse_loss(straight.net(inputs), targets) < 0.1


def test_a_checkpoint_loads_as_plain_values(tmp_path: Path) -> None:
    page: dict[str, Any] = run_page("lightning", tmp_path, QUIET)
    saved = torch.load(tmp_path / "automatic.ckpt", weights_only=True)
    (state,) = saved["optimizer_states"]
    assert state["param_groups"][0]["param_names"][0] == "net.0.weight"
    assert len(state["state"]) == len(list(page["automatic"].parameters()))
    assert saved["global_step"] == 32
