"""Checkpoints of what torch has saved."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import thalweg as tw
from thalweg.errors import CheckpointError
from thalweg.interop import as_torch, convert


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))


def step(model: nn.Module, optimizer: Any) -> None:
    model.zero_grad()
    model(torch.ones(2, 3)).square().sum().backward()
    if isinstance(optimizer, tw.Optimizer):
        optimizer.apply_gradients([(p.grad, p) for p in model.parameters()])
    else:
        optimizer.step()


@pytest.fixture
def trained(tmp_path: Path) -> tuple[nn.Module, torch.optim.Optimizer, Path]:
    """A model and its optimizer after three steps, and a file with its state."""
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        step(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return model, optimizer, tmp_path


MAKERS = [
    lambda model: torch.optim.Adam(model.parameters()),
    lambda model: torch.optim.Adam(list(model.named_parameters())),
    lambda model: tw.optim.Adam(model),
    lambda model: tw.optim.Adam(model.parameters()),
    lambda model: tw.optimizers.Adam(),
    lambda model: as_torch(tw.optimizers.Adam(), model),
]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("weights", ["model.pt", "model.safetensors", ""])
def test_training_goes_on_from_the_checkpoint(
    trained: Any, make: Any, weights: str
) -> None:
    model, optimizer, folder = trained
    other = make_model()
    where = folder / weights if weights else folder
    path = convert(
        folder / "optimizer.pt", folder / "c", other, make(other), weights=where
    )
    fresh = make_model()
    again = make(fresh)
    tw.Checkpoint(model=fresh, optimizer=again).restore(path).assert_consumed()
    for _ in range(3):
        step(model, optimizer)
        step(fresh, again)
    for one, two in zip(model.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_names_are_matched_in_any_order(trained: Any) -> None:
    model, _, folder = trained
    pairs = list(model.named_parameters())[::-1]
    optimizer = torch.optim.SGD(pairs, lr=0.1, momentum=0.5)
    step(model, optimizer)
    torch.save({"epoch": 1, "inner": optimizer.state_dict()}, folder / "all.pt")
    other = copy.deepcopy(model)
    again = torch.optim.SGD(other.parameters(), lr=1.0)
    convert(folder / "all.pt", folder / "c", other, again)
    assert again.param_groups[0]["momentum"] == 0.5
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        buffers = optimizer.state[one], again.state[two]
        assert torch.equal(buffers[0]["momentum_buffer"], buffers[1]["momentum_buffer"])


def test_a_checkpoint_that_stands_is_replaced_only_when_asked(trained: Any) -> None:
    model, _, folder = trained
    arguments = (folder / "optimizer.pt", folder / "c", model)
    convert(*arguments, torch.optim.Adam(model.parameters()))
    with pytest.raises(CheckpointError, match="overwrite=True"):
        convert(*arguments, torch.optim.Adam(model.parameters()))
    convert(*arguments, torch.optim.Adam(model.parameters()), overwrite=True)


def test_a_path_that_is_taken_is_refused_before_anything_is_loaded(
    trained: Any,
) -> None:
    _, _, folder = trained
    (folder / "c").mkdir()
    other = make_model()
    optimizer = torch.optim.Adam(other.parameters())
    before = copy.deepcopy(other.state_dict())
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="got the existing"):
            convert(
                *(folder / "optimizer.pt", folder / "c", other, optimizer),
                weights=folder / "model.pt",
                overwrite=overwrite,
            )
    assert not optimizer.state
    torch.testing.assert_close(other.state_dict(), before, rtol=0, atol=0)


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("hostile",)


def test_nothing_in_a_file_is_executed(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, folder = trained
    monkeypatch.chdir(folder)
    torch.save({"state": Hostile(), "param_groups": []}, folder / "hostile.pt")
    (folder / "plain.pt").write_bytes(pickle.dumps(Hostile()))
    for name in ("hostile.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match=name):
            convert(folder / name, folder / "c", model, tw.optimizers.Adam())
    assert not (folder / "hostile").exists()
    assert not (folder / "c").exists()


@pytest.mark.parametrize("name", ["state", "weights"])
def test_a_saved_object_is_named_in_words_of_our_own(trained: Any, name: str) -> None:
    model, _, folder = trained
    torch.save(model, folder / "object.pt")
    files = {"state": folder / "optimizer.pt", "weights": folder / "model.pt"}
    files[name] = folder / "object.pt"
    with pytest.raises(CheckpointError) as caught:
        convert(
            *(files["state"], folder / "c", model, tw.optimizers.Adam()),
            weights=files["weights"],
        )
    assert str(caught.value) == (
        f"convert: {folder}/object.pt: expected a file of torch.save with tensors and "
        "plain values; got an object of torch.nn.modules.container.Sequential. Save "
        "state dicts, not objects: no code of a file is run."
    )


@pytest.mark.parametrize("content", [b"", b"x", b"hello world", b"\x80\x02abc"])
def test_a_damaged_file_is_told_in_words_of_our_own(
    trained: Any, content: bytes
) -> None:
    model, _, folder = trained
    (folder / "bad.pt").write_bytes(content)
    pattern = r"got one that cannot be read\. It is damaged, or none of torch\.save\.$"
    with pytest.raises(CheckpointError, match=pattern):
        convert(folder / "bad.pt", folder / "c", model, tw.optimizers.Adam())


def test_weights_that_are_none_are_told_in_words_of_our_own(trained: Any) -> None:
    model, _, folder = trained
    torch.save([1], folder / "list.pt")
    for name, got in (
        ("optimizer.pt", 'Missing key(s) in state_dict: "0.weight"'),
        ("list.pt", "a list of 1 item"),
    ):
        with pytest.raises(CheckpointError) as caught:
            convert(
                *(folder / "optimizer.pt", folder / "c", model, tw.optimizers.Adam()),
                weights=folder / name,
            )
        text = str(caught.value)
        start = f"convert: {folder}/{name}: expected the state dict of this Sequential;"
        assert text.startswith(f"{start} got {got}")
        assert text.endswith(". Name a file of model.state_dict() as weights.")
        assert "\n" not in text
        assert ".." not in text


def test_bad_files_are_refused(trained: Any) -> None:
    model, _, folder = trained
    whole = (folder / "optimizer.pt").read_bytes()
    bad = folder / "bad.pt"
    for content in (b"", b"x", whole[: len(whole) // 2], whole[100:]):
        bad.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"bad\.pt"):
            convert(bad, folder / "c", model, tw.optimizers.Adam())
    torch.save([1], bad)
    with pytest.raises(CheckpointError, match="state dict of an optimizer"):
        convert(bad, folder / "c", model, tw.optimizers.Adam())
    with pytest.raises(FileNotFoundError):
        convert(folder / "none.pt", folder / "c", model, tw.optimizers.Adam())


def test_what_does_not_fit_is_refused(trained: Any) -> None:
    model, _, folder = trained
    state = folder / "optimizer.pt"
    with pytest.raises(CheckpointError, match=r"a group of Adam or AdamW, with"):
        convert(state, folder / "c", model, torch.optim.SGD(model.parameters()))
    other = nn.Linear(3, 4)
    with pytest.raises(CheckpointError, match="groups of"):
        convert(state, folder / "c", other, torch.optim.Adam(other.parameters()))
    other = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
    with pytest.raises(CheckpointError, match="shapes"):
        convert(state, folder / "c", other, torch.optim.Adam(other.parameters()))
    weights = folder / "model.pt"
    with pytest.raises(CheckpointError, match="size mismatch for 0"):
        convert(state, folder / "c", other, tw.optimizers.Adam(), weights=weights)
    with pytest.raises(CheckpointError, match="an optimizer of thalweg"):
        convert(state, folder / "c", model, "adam")
    assert not (folder / "c").exists()
