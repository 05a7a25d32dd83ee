"""Torn, flipped, spliced and hostile folders: a typed error, and nothing restored."""

import json
import os
import shutil
import time

import pytest
import torch

from thalweg.checkpoint import Checkpoint, read_manifest, read_metadata
from thalweg.checkpoint.manifest import seal
from thalweg.errors import CheckpointError
from thalweg.state import Variable

TENSORS, MANIFEST = "tensors.safetensors", "manifest.json"


@pytest.fixture
def saved(tmp_path):
    values = {"x": Variable(torch.arange(5.0)), "y": Variable([1, 2]), "epoch": 3}
    path = Checkpoint(**values).save(tmp_path / "save", metadata={"lr": 0.5})
    return tmp_path / "save" if path else None


def assert_refused(path, match):
    x, y = Variable(torch.zeros(5)), Variable([0, 0])
    checkpoint = Checkpoint(x=x, y=y, epoch=0)
    with pytest.raises(CheckpointError, match=match):
        checkpoint.restore(path)
    assert not x.any()
    assert not y.any()
    assert checkpoint.epoch == 0


def test_every_flipped_byte_of_the_tensors_is_found(saved):
    file = saved / TENSORS
    content = file.read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << (position % 8)
        file.write_bytes(changed)
        assert_refused(saved, r"tensors\.safetensors.*damaged")


def test_a_flipped_byte_of_the_manifest_is_found(saved):
    file = saved / MANIFEST
    content = file.read_bytes()
    for position in range(0, len(content), 7):
        changed = bytearray(content)
        changed[position] ^= 1 << (position % 8)
        file.write_bytes(changed)
        assert_refused(saved, r"manifest\.json.*damaged")


@pytest.mark.parametrize("name", [TENSORS, MANIFEST])
def test_every_torn_file_is_found(saved, name):
    file = saved / name
    content = file.read_bytes()
    for length in range(0, len(content), 11):
        file.write_bytes(content[:length])
        assert_refused(saved, "damaged")
    file.unlink()
    assert_refused(saved, "no such file")


def test_a_file_spliced_from_another_checkpoint_is_found(saved, tmp_path):
    other = {"x": Variable(torch.ones(5)), "y": Variable([1, 2]), "epoch": 3}
    path = Checkpoint(**other).save(tmp_path / "other")
    shutil.copy(os.path.join(path, TENSORS), saved / TENSORS)
    assert_refused(saved, "another checksum")


def test_bytes_added_behind_are_found(saved):
    with open(saved / TENSORS, "ab") as file:
        file.write(bytes(8))
    assert_refused(saved, "bytes where")


@pytest.mark.parametrize("name", [TENSORS, MANIFEST])
def test_links_are_not_followed(saved, tmp_path, name):
    os.rename(saved / name, tmp_path / "elsewhere")
    (saved / name).symlink_to(tmp_path / "elsewhere")
    assert_refused(saved, "a link")


def test_the_manifest_may_not_claim_other_shapes_than_the_file(saved):
    content = json.loads((saved / MANIFEST).read_bytes())
    content["tensors"]["x"]["shape"] = [1, 5]
    content["tensors"]["x"]["boxes"][0].update(offset=[0, 0], shape=[1, 5])
    (saved / MANIFEST).write_bytes(seal(content))
    assert_refused(saved, "unlike the manifest's")


def test_hostile_manifests_are_refused_at_once(saved):
    file = saved / MANIFEST
    start = time.process_time()
    for text in (
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b'{"format": NaN}',
        json.dumps({"tensors": {str(i): 1 for i in range(100_000)}}).encode(),
    ):
        file.write_bytes(text)
        assert_refused(saved, "malformed manifest")
    assert time.process_time() - start < 4.0
    with open(file, "wb") as sparse:
        sparse.truncate(1 << 40)
    assert_refused(saved, "a manifest of 1099511627776 bytes")


def test_metadata_of_a_damaged_checkpoint_is_refused(saved):
    (saved / MANIFEST).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_metadata(saved)


def test_the_file_may_not_hold_more_than_the_manifest_lists(saved):
    content = json.loads((saved / MANIFEST).read_bytes())
    del content["tensors"]["y"]
    (saved / MANIFEST).write_bytes(seal(content))
    assert_refused(saved, "a 'y' that is not listed")


def test_an_unfinished_save_is_never_taken_for_a_checkpoint(tmp_path):
    unfinished = tmp_path / f"save.tmp-{1:032x}"
    unfinished.mkdir()
    (unfinished / TENSORS).write_bytes(b"half")
    with pytest.raises(CheckpointError, match="got nothing"):
        read_manifest(tmp_path / "save")
