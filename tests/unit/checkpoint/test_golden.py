"""Folders of every released format version are read for ever, bit for bit."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.unit.checkpoint.slot_keeper import same_bits
from thalweg.checkpoint.boxes import Box
from thalweg.checkpoint.encoding import decode
from thalweg.checkpoint.folder import Reader, read_metadata, verify
from thalweg.checkpoint.manifest import Manifest, encode_metadata
from thalweg.checkpoint.pieces import Piece

GOLDEN = Path(__file__).parent / "golden"
WEIGHT = torch.arange(15.0).reshape(5, 3) / 7
STATE = {
    "model/0.weight": WEIGHT,
    "model/0.weight/.slot/optimizer/m": WEIGHT.to(torch.bfloat16),
    "model/steps": torch.tensor(7),
    "model/mask": torch.tensor([True, False]),
    "optimizer/iterations": torch.tensor(2**40, dtype=torch.int64),
    "rng/state": torch.arange(9, dtype=torch.uint8),
    "empty": torch.empty(0, 2),
}
MANIFEST = Manifest(
    step=2**40,
    aliases={"model/head.weight": "model/0.weight"},
    hyperparameters={"optimizer": {"learning_rate": {"$float": (0.1).hex()}}},
    values={"epoch": 3, "rng": {"state": {"$tensor": "rng/state"}}},
    metadata=encode_metadata({"run": "golden", "loss": float("nan"), "sizes": (1, 2)}),
)


def pieces_of(number: int) -> dict[str, Piece]:
    """The first rank holds three rows of each matrix, the second two."""
    pieces = {}
    for key, tensor in STATE.items():
        shape = tuple(tensor.shape)
        box = Box.whole(shape)
        if shape == (5, 3):
            box = Box((3 * number, 0), (3 - number, 3))
        pieces[key] = Piece(tensor[box.inside(Box.whole(shape))], box, shape)
    return pieces


PIECES = [pieces_of(0), pieces_of(1)]


@pytest.mark.parametrize("name", ["v1-whole", "v1-sharded"])
def test_a_golden_folder_is_read(name: str) -> None:
    reader = Reader(GOLDEN / name)
    assert {k: tuple(e.shape) for k, e in reader.manifest.tensors.items()} == {
        key: tuple(tensor.shape) for key, tensor in STATE.items()
    }
    assert all(same_bits(reader.read(key), tensor) for key, tensor in STATE.items())
    manifest = verify(GOLDEN / name)
    for field in ("step", "aliases", "hyperparameters", "values", "metadata"):
        assert getattr(manifest, field) == getattr(MANIFEST, field)
    rate = manifest.hyperparameters["optimizer"]["learning_rate"]
    assert decode(rate, "learning_rate") == 0.1
    metadata = read_metadata(GOLDEN / name)
    assert metadata["sizes"] == (1, 2)
    assert metadata["loss"] != metadata["loss"]


def test_the_safetensors_library_reads_the_boxes() -> None:
    loaded = [
        safetensors.torch.load_file(file)
        for file in sorted((GOLDEN / "v1-sharded").glob("*.safetensors"))
    ]
    joined = torch.cat([part["model/0.weight"] for part in loaded])
    assert torch.equal(joined, WEIGHT)
