"""Folders appear whole or not at all; nothing of others is ever removed."""

import errno
import zlib
from itertools import count

import pytest

from thalweg.checkpoint import disk
from thalweg.checkpoint.durable import (
    MANIFEST,
    asides,
    checksum,
    clear_leavings,
    is_checkpoint,
    new_folder,
    remove_checkpoint,
    replace_file,
    write_file,
)
from thalweg.errors import CheckpointError


def fill(folder, text=b"{}"):
    write_file(folder / "tensors.safetensors", [b"abc", b"", b"def"])
    write_file(folder / MANIFEST, [text])


def make(path, text=b"{}", overwrite=False):
    with new_folder(path, overwrite) as folder:
        fill(folder, text)


def test_write_file_gives_size_and_checksum(tmp_path):
    file = tmp_path / "file"
    size, crc = write_file(file, [b"abc", memoryview(b"def")])
    assert (size, crc) == (6, f"{zlib.crc32(b'abcdef'):08x}")
    assert file.read_bytes() == b"abcdef"
    assert checksum(file) == crc
    with pytest.raises(FileExistsError):
        write_file(file, [b"again"])


def test_new_folder_makes_parents_and_leaves_nothing_beside(tmp_path):
    make(tmp_path / "a" / "b" / "c")
    assert is_checkpoint(tmp_path / "a" / "b" / "c")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["c"]


def test_everything_is_flushed_before_and_after_the_rename(tmp_path, monkeypatch):
    events = []

    def log(kind, path, detail):
        if kind in ("flush", "flush folder", "rename"):
            place = detail if kind == "rename" else path
            events.append((kind, place.name.split(".tmp-")[0]))

    monkeypatch.setattr(disk, "before", log)
    make(tmp_path / "save")
    assert events == [
        ("flush", "tensors.safetensors"),
        ("flush", MANIFEST),
        ("flush folder", "save"),
        ("rename", "save"),
        ("flush folder", tmp_path.name),
    ]


def test_existing_path_is_refused_before_anything_is_written(tmp_path):
    make(tmp_path / "save", b"first")
    with pytest.raises(CheckpointError, match="overwrite=True"):
        make(tmp_path / "save", b"second")
    assert (tmp_path / "save" / MANIFEST).read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 1


def test_overwrite_replaces_a_checkpoint_and_removes_the_old(tmp_path):
    make(tmp_path / "save", b"first")
    make(tmp_path / "save", b"second", overwrite=True)
    assert (tmp_path / "save" / MANIFEST).read_bytes() == b"second"
    assert [p.name for p in tmp_path.iterdir()] == ["save"]


@pytest.mark.parametrize("kind", ["file", "foreign", "link", "extra"])
def test_overwrite_never_removes_what_is_not_a_checkpoint(tmp_path, kind):
    path = tmp_path / "save"
    if kind == "file":
        path.write_text("mine")
    elif kind == "foreign":
        path.mkdir()
        (path / "thesis.txt").write_text("mine")
    else:
        make(tmp_path / "real")
        if kind == "link":
            path.symlink_to(tmp_path / "real")
        else:
            (tmp_path / "real").rename(path)
            (path / "notes.txt").write_text("mine")
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="a checkpoint to overwrite"):
        make(path, overwrite=True)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_remove_checkpoint_leaves_files_of_others(tmp_path):
    (tmp_path / "x").mkdir()
    fill(tmp_path / "x")
    (tmp_path / "x" / "notes.txt").write_text("mine")
    remove_checkpoint(tmp_path / "x")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["notes.txt"]


def test_error_in_the_block_leaves_the_old_one_and_no_leavings(tmp_path):
    make(tmp_path / "save", b"first")

    def fail():
        with new_folder(tmp_path / "save", overwrite=True) as folder:
            fill(folder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["save"]
    assert (tmp_path / "save" / MANIFEST).read_bytes() == b"first"


class Failing:
    """Refuses the `fail_at`-th change from now on, and no other."""

    def __init__(self, fail_at):
        self.remaining = fail_at

    def __call__(self, kind, path, detail):
        self.remaining -= 1
        if self.remaining == 0:
            raise OSError(errno.EIO, f"{kind} failed")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_at_every_change_leaves_the_old_one(tmp_path, monkeypatch, overwrite):
    path = tmp_path / "save"
    raised = 0
    for fail_at in count(1):
        if overwrite:
            make(path, b"first", overwrite=True)
        failing = Failing(fail_at)
        with monkeypatch.context() as patch:
            patch.setattr(disk, "before", failing)
            try:
                make(path, b"second", overwrite)
            except OSError as caught:
                problem = caught
                raised += 1
            else:
                assert (path / MANIFEST).read_bytes() == b"second"
                if failing.remaining > 0:
                    break
                continue
        assert "failed" in str(problem)
        assert [p.name for p in tmp_path.iterdir()] == ["save"] * overwrite
        assert not overwrite or (path / MANIFEST).read_bytes() == b"first"
    # A folder, two files of three changes and a write more, a flush, one or two
    # renames, a flush; removing the old one may fail without an error.
    assert raised == (12 if overwrite else 11)
    make(path, b"third", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["save"]


def test_replace_file_leaves_the_old_content_when_it_fails(tmp_path, monkeypatch):
    file = tmp_path / "record.json"
    replace_file(file, b"first")
    for fail_at in range(1, 5):
        with monkeypatch.context() as patch:
            patch.setattr(disk, "before", Failing(fail_at))
            with pytest.raises(OSError, match="failed"):
                replace_file(file, b"second")
        assert [p.name for p in tmp_path.iterdir()] == ["record.json"]
        assert file.read_bytes() == b"first"
    replace_file(file, b"second")
    assert file.read_bytes() == b"second"


def test_leavings_of_dead_processes_are_cleared(tmp_path):
    make(tmp_path / "save")
    half = tmp_path / f"save.tmp-{1:032x}"
    half.mkdir()
    write_file(half / "tensors.safetensors", [b"abc"])
    make(tmp_path / f"save.old-{1:032x}")
    make(tmp_path / f"other.old-{1:032x}")
    (tmp_path / f"save.tmp-{2:032x}").write_text("a file of somebody's")
    clear_leavings(tmp_path / "save")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"other.old-{1:032x}",
        "save",
        f"save.tmp-{2:032x}",
    ]
    (tmp_path / "save").rename(tmp_path / f"save.old-{5:032x}")
    clear_leavings(tmp_path / "save")
    assert asides(tmp_path / "save") == [tmp_path / f"save.old-{5:032x}"]


def test_asides_are_found_newest_first(tmp_path):
    for number in (1, 2):
        make(tmp_path / f"save.old-{number:032x}")
    make(tmp_path / "save.old-not-ours")
    make(tmp_path / f"other.old-{3:032x}")
    found = [p.name[-1] for p in asides(tmp_path / "save")]
    assert found == ["2", "1"]
    assert asides(tmp_path / "nowhere" / "save") == []
    make(tmp_path / "save", overwrite=True)
    assert asides(tmp_path / "save") == []


def test_flush_folder_reports_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        disk.flush_folder(tmp_path / "missing")
