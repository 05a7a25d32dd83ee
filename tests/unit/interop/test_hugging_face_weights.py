"""Weights of Hugging Face models."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from thalweg.errors import CheckpointError
from thalweg.interop import load_weights


class Tied(nn.Module):
    """The names of a language model whose head is its embedding."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4, dtype=dtype)
        self.norm = nn.LayerNorm(4, dtype=dtype)
        self.head = nn.Linear(4, 6, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight


def write(
    folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1
) -> dict[str, torch.Tensor]:
    """Write tensors as transformers does: one file, or several with an index."""
    kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        return kept
    table = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(kept.items())[number::shards])
        save_file(part, folder / name, metadata={"format": "pt"})
        table |= dict.fromkeys(part, name)
    content = {"metadata": {"total_size": 1e3}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return kept


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_weights_are_loaded_in_place(tmp_path: Path, shards: int) -> None:
    kept = write(tmp_path, weights_of(Tied()), shards)
    model = Tied()
    places = [p.data_ptr() for p in model.parameters()]
    loaded = load_weights(model, tmp_path)
    assert loaded == (("embed.weight", "norm.weight", "norm.bias"), (), ())
    assert [p.data_ptr() for p in model.parameters()] == places
    for name, value in kept.items():
        assert torch.equal(model.get_parameter(name), value)
    assert model.head.weight is model.embed.weight


def test_a_file_or_an_index_may_be_named(tmp_path: Path) -> None:
    kept = write(tmp_path, weights_of(Tied()), 2)
    for name in ("model.safetensors.index.json",):
        model = Tied()
        load_weights(model, tmp_path / name)
        assert torch.equal(model.norm.weight, kept["norm.weight"])
    part = load_weights(
        Tied(), tmp_path / "model-00001-of-00002.safetensors", partial=True
    )
    assert part.missing == ("norm.weight",)


def test_a_cache_of_links_is_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    kept = write(tmp_path / "blobs", weights_of(Tied()))
    link = tmp_path / "snapshot" / "model.safetensors"
    link.symlink_to("../blobs/model.safetensors")
    model = Tied()
    load_weights(model, tmp_path / "snapshot")
    assert torch.equal(model.embed.weight, kept["embed.weight"])


def test_a_tied_tensor_comes_under_any_of_its_names(tmp_path: Path) -> None:
    kept = weights_of(Tied())
    kept["head.weight"] = kept.pop("embed.weight")
    kept = write(tmp_path, kept)
    model = Tied()
    load_weights(model, tmp_path)
    assert torch.equal(model.embed.weight, kept["head.weight"])
    write(tmp_path, {**kept, "embed.weight": kept["head.weight"]})
    load_weights(model, tmp_path)
    write(tmp_path, {**kept, "embed.weight": kept["head.weight"] + 1})
    with pytest.raises(CheckpointError, match=r"embed.weight, head.weight are tied"):
        load_weights(model, tmp_path)


def test_all_that_does_not_fit_is_listed_and_nothing_changed(tmp_path: Path) -> None:
    kept = weights_of(Tied())
    kept["more"] = torch.ones(1)
    kept["norm.bias"] = torch.ones(5)
    kept["norm.weight"] = torch.ones(4, dtype=torch.float64)
    kept.pop("embed.weight")
    write(tmp_path, kept)
    model = Tied()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(CheckpointError) as refused:
        load_weights(model, tmp_path)
    for line in (
        "missing: embed.weight",
        "unexpected: more",
        "norm.bias: shape (5,) for (4,)",
        "norm.weight: torch.float64 for torch.float32 (cast=True converts)",
        "Nothing was changed.",
    ):
        assert line in str(refused.value)
    for name, value in before.items():
        assert torch.equal(model.get_parameter(name), value)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    write(tmp_path, {f"w{i}": torch.ones(1) for i in range(50)})
    with pytest.raises(CheckpointError, match="unexpected: 30 more"):
        load_weights(Tied(), tmp_path)


def test_another_dtype_is_converted_when_asked(tmp_path: Path) -> None:
    kept = write(tmp_path, weights_of(Tied(torch.bfloat16)))
    model = Tied()
    load_weights(model, tmp_path, cast=True)
    assert torch.equal(model.embed.weight, kept["embed.weight"].float())
    write(tmp_path, {**kept, "norm.bias": torch.ones(4, dtype=torch.int32)})
    with pytest.raises(CheckpointError, match=r"torch.int32 for torch.float32"):
        load_weights(model, tmp_path, cast=True)


def test_names_may_be_changed_or_left_out(tmp_path: Path) -> None:
    kept = write(
        tmp_path,
        {f"model.{name}": value for name, value in weights_of(Tied()).items()}
        | {"model.inv_freq": torch.ones(2)},
    )
    model = Tied()

    def rename(name: str) -> str | None:
        return None if name.endswith("inv_freq") else name.removeprefix("model.")

    load_weights(model, tmp_path, rename=rename)
    assert torch.equal(model.norm.weight, kept["model.norm.weight"])
    with pytest.raises(CheckpointError, match="for two tensors of the files"):
        load_weights(model, tmp_path, rename=lambda name: "norm.weight")


INDEXES: list[tuple[Any, str]] = [
    (b"", "no JSON"),
    (b"[" * 100_000, "no JSON"),
    (b"[1]", "no 'weight_map'"),
    (b'{"weight_map": []}', "no 'weight_map'"),
    (b'{"weight_map": {"a": 1}}', "the file name '1'"),
    (b'{"weight_map": {"a": "../model.safetensors"}}', "the file name"),
    (b'{"weight_map": {"a": "/etc/passwd"}}', "the file name"),
    (b'{"weight_map": {"a": "other.safetensors"}}', "no such file"),
    (b'{"weight_map": {"a": "part.safetensors"}}', "'a' in part.safetensors"),
]


@pytest.mark.parametrize(("content", "text"), INDEXES)
def test_a_bad_index_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    save_file({"b": torch.ones(1)}, tmp_path / "part.safetensors")
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=text):
        load_weights(Tied(), tmp_path)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_weights(Tied(), tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no such file"):
        load_weights(Tied(), tmp_path)
    file = tmp_path / "model.safetensors"
    write(tmp_path, weights_of(Tied()))
    whole = file.read_bytes()
    for content in (b"", whole[:-1], whole + b"x", struct.pack("<Q", 1 << 62)):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_weights(Tied(), tmp_path)


def test_tensors_are_read_one_by_one(tmp_path: Path) -> None:
    tensors = {f"{i}.weight": torch.randn(64, 64) for i in range(16)}
    write(tmp_path, tensors, 4)
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(16)))
    tracemalloc.start()
    load_weights(model, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert torch.equal(model[15].weight, tensors["15.weight"])
    assert peak < 1 << 20


def test_a_model_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=16
    )
    saved = transformers.GPT2LMHeadModel(config)
    saved.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    model = transformers.GPT2LMHeadModel(config)
    loaded = load_weights(model, tmp_path)
    assert not loaded.missing
    for (name, value), (_, other) in zip(
        saved.named_parameters(), model.named_parameters(), strict=True
    ):
        assert torch.equal(value, other), name
