"""A folder of several ranks: each writes its boxes, any number of ranks reads them."""

import resource
from itertools import product

import pytest
import torch

from tests.unit.checkpoint.test_boxes import chunks
from tests.unit.checkpoint.thread_ranks import on_ranks
from thalweg.checkpoint import disk
from thalweg.checkpoint.boxes import Box
from thalweg.checkpoint.folder import (
    Reader,
    check_structure,
    read_manifest,
    verify,
    write_folder,
)
from thalweg.checkpoint.manifest import Manifest
from thalweg.checkpoint.pieces import Piece
from thalweg.errors import CheckpointError

WHOLE = {
    "even": torch.randn(8, 3, generator=torch.Generator().manual_seed(1)),
    "uneven": torch.arange(7).reshape(7, 1).to(torch.bfloat16),
    "short": torch.tensor([1, 2], dtype=torch.int8),
    "none": torch.empty(0, 4),
    "scalar": torch.tensor(2.5),
}
SHARDED = ("even", "uneven", "short")


def pieces_of(number, size):
    pieces = {}
    for key, tensor in WHOLE.items():
        shape = tuple(tensor.shape)
        whole = Box.whole(shape)
        box = chunks(shape, size, 0)[number] if key in SHARDED else whole
        pieces[key] = Piece(tensor[box.inside(whole)], box, shape)
    return pieces


def save(path, size, overwrite=False):
    def write(ranks):
        pieces = pieces_of(ranks.number, size)
        write_folder(path, pieces, Manifest(step=size), overwrite, ranks)

    return on_ranks(size, write)


def test_any_number_of_ranks_reads_what_any_other_wrote(tmp_path):
    for saving in range(1, 5):
        path = tmp_path / str(saving)
        assert save(path, saving) == [None] * saving
        names = sorted(p.name for p in path.glob("*.safetensors"))
        assert len(names) == saving
        reader = Reader(path)
        assert all(torch.equal(reader.read(key), WHOLE[key]) for key in WHOLE)
        for restoring in range(1, 5):
            for number, key in product(range(restoring), WHOLE):
                piece = pieces_of(number, restoring)[key]
                target = torch.zeros(piece.box.shape, dtype=piece.tensor.dtype)
                reader.read_piece(key, piece._replace(tensor=target))
                assert torch.equal(target, piece.tensor)


def test_each_rank_writes_its_part_only(tmp_path):
    save(tmp_path / "x", 4)
    manifest = verify(tmp_path / "x")
    files = {
        key: [s.file[8:13] for s in e.boxes] for key, e in manifest.tensors.items()
    }
    assert files == {
        "even": ["00001", "00002", "00003", "00004"],
        "uneven": ["00001", "00002", "00003", "00004"],
        "short": ["00001", "00002"],
        "none": ["00001"],
        "scalar": ["00001"],
    }


@pytest.mark.parametrize("kind", ["create", "write", "flush", "rename"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_when_a_rank_fails_all_do_and_the_old_one_stands(
    tmp_path, monkeypatch, kind, overwrite
):
    path = tmp_path / "x"
    if overwrite:
        save(path, 2)

    def fail(what, place, detail):
        if what == kind and ("s-00003-of" in place.name or kind == "rename"):
            raise OSError("the disk is broken")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "before", fail)
        problems = save(path, 3, overwrite)
    assert sorted(type(problem).__name__ for problem in problems) == [
        "CheckpointError",
        "CheckpointError",
        "OSError",
    ]
    assert "failed. OSError: the disk is broken" in str(problems[1])
    assert [p.name for p in tmp_path.iterdir()] == ["x"] * overwrite
    if overwrite:
        assert verify(path).step == 2


def test_pieces_that_are_not_the_whole_are_refused_before_anything_is_written(tmp_path):
    def write(ranks):
        piece = Piece(torch.zeros(2), Box((2 * ranks.number,), (2,)), (5,))
        write_folder(tmp_path / "x", {"a": piece}, Manifest(), False, ranks)

    problems = on_ranks(2, write)
    assert all(isinstance(problem, CheckpointError) for problem in problems)
    assert "the whole of 'a'" in str(problems[0])
    assert not list(tmp_path.iterdir())


def test_a_missing_shard_is_found_without_reading_the_others(tmp_path):
    save(tmp_path / "x", 3)
    (tmp_path / "x" / "tensors-00002-of-00003.safetensors").unlink()
    for check in (check_structure, verify):
        with pytest.raises(CheckpointError, match=r"00002-of.*no such file"):
            check(tmp_path / "x")


def anonymous_and_mapped():
    """Bytes of memory that this process has touched, files that it mapped included."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_reading_takes_the_memory_of_the_largest_tensor_at_most(tmp_path):
    sizes = {f"t{number:02}": 1 << 18 for number in range(64)} | {"large": 1 << 22}
    tensors = {key: torch.ones(size) for key, size in sizes.items()}
    write_folder(tmp_path / "x", tensors, Manifest(), False)
    for tensor in tensors.values():
        tensor.zero_()
    before = peak = anonymous_and_mapped()
    reader = Reader(tmp_path / "x")
    for key, tensor in tensors.items():
        reader.read_into(key, tensor)
        peak = max(peak, anonymous_and_mapped())
    assert peak - before <= 4 * max(sizes.values()) + (16 << 20)
    assert all(bool((tensor == 1).all()) for tensor in tensors.values())


def test_a_reader_outlives_the_folder(tmp_path):
    write_folder(tmp_path / "x", {"a": torch.ones(3)}, Manifest(), False)
    reader = Reader(tmp_path / "x")
    write_folder(tmp_path / "x", {"a": torch.zeros(3)}, Manifest(), True)
    assert reader.read("a").tolist() == [1, 1, 1]


@pytest.mark.parametrize("ranks", [1, 3])
def test_too_many_names_are_refused_before_the_old_one_is_touched(
    tmp_path, monkeypatch, ranks
):
    save(tmp_path / "x", 2)
    with monkeypatch.context() as patch:
        patch.setattr("thalweg.checkpoint.allowance.TEXT_BYTES", 1_000)
        problems = save(tmp_path / "x", ranks, overwrite=True)
    assert all(isinstance(problem, CheckpointError) for problem in problems)
    assert "tensors" in str(problems[0])
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert verify(tmp_path / "x").step == 2


def test_a_folder_with_more_text_than_is_read_is_refused_unread(tmp_path, monkeypatch):
    save(tmp_path / "x", 3)
    size = (tmp_path / "x" / "manifest.json").stat().st_size
    monkeypatch.setattr("thalweg.checkpoint.allowance.TEXT_BYTES", size - 100)
    for check in (check_structure, verify, read_manifest):
        with pytest.raises(CheckpointError, match=f"a manifest of {size} bytes beside"):
            check(tmp_path / "x")
    monkeypatch.setattr("thalweg.checkpoint.allowance.TEXT_BYTES", size + 10_000)
    assert read_manifest(tmp_path / "x").step == 3
    with pytest.raises(CheckpointError, match="bytes of text, or what counts"):
        verify(tmp_path / "x")


def test_a_folder_of_too_many_files_is_refused_unread(tmp_path, monkeypatch):
    save(tmp_path / "x", 3)
    monkeypatch.setattr("thalweg.checkpoint.folder.MOST_FILES", 3)
    with pytest.raises(CheckpointError, match="more than 3 files"):
        verify(tmp_path / "x")


def test_a_folder_that_is_no_checkpoint_is_not_called_damaged(tmp_path):
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    for check in (check_structure, verify, read_manifest):
        with pytest.raises(CheckpointError, match="got a folder without manifest"):
            check(run)
    for name, step in (("step-9", 1), ("step-10", 2), ("inner/last", 3)):
        save(run / name, step)
    with pytest.raises(CheckpointError, match="3 checkpoints inside") as raised:
        verify(run)
    assert f"Pass {run / 'step-10'}, the newest one." in str(raised.value)
    assert "damaged" not in str(raised.value)
    with pytest.raises(CheckpointError, match=r"1 checkpoint inside\. Pass .*last\."):
        verify(run / "inner")


def test_a_run_with_tensors_of_its_own_is_not_called_damaged(tmp_path):
    save(tmp_path / "run" / "step-3", 3)
    (tmp_path / "run" / "tensors.safetensors").write_bytes(b"exported")
    text = r"without manifest.json, with 1 checkpoint inside\. Pass .*step-3\."
    with pytest.raises(CheckpointError, match=text):
        verify(tmp_path / "run")


@pytest.mark.parametrize("name", ["manifest.json", "tensors.safetensors"])
def test_a_file_of_a_checkpoint_leads_to_its_folder(tmp_path, name):
    save(tmp_path / "x", 1)
    with pytest.raises(CheckpointError, match=r"got a file\. Pass .*x\.$"):
        verify(tmp_path / "x" / name)


def test_a_checkpoint_that_has_lost_its_manifest_is_damaged(tmp_path):
    save(tmp_path / "x", 2)
    (tmp_path / "x" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no such file.*damaged"):
        verify(tmp_path / "x")
