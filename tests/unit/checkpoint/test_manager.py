"""The manager keeps what it should, removes only its own, finds the newest sound."""

import json
import shutil
import warnings

import pytest
import torch
from torch import nn

from thalweg.checkpoint import Checkpoint, RandomState, disk
from thalweg.checkpoint.manager import CheckpointManager
from thalweg.checkpoint.record import RECORD
from thalweg.errors import CheckpointError
from thalweg.state import Variable


def make(directory, **options):
    value = Variable(torch.zeros(3))
    return value, CheckpointManager(Checkpoint(x=value), directory, **options)


def save(value, manager, steps):
    for step in steps:
        value.assign(torch.full((3,), float(step)))
        manager.save(step)


def steps(directory):
    return sorted(int(p.name[5:]) for p in directory.iterdir() if p.is_dir())


def resume(manager):
    status = manager.restore_or_initialize()
    assert status is not None
    return status.assert_consumed()


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_it_shows_what_it_saves_and_where(tmp_path):
    checkpoint = Checkpoint(model=nn.Linear(1, 1), epoch=3)
    assert repr(checkpoint) == "<Checkpoint of model, epoch>"
    manager = CheckpointManager(checkpoint, tmp_path)
    assert repr(manager) == f"<CheckpointManager of {checkpoint!r} in '{tmp_path}'>"
    assert list(tmp_path.iterdir()) == []
    assert repr(RandomState()) == "RandomState()"


def test_restoring_the_latest_of_none_names_what_starts_anew(tmp_path):
    _, manager = make(tmp_path)
    with pytest.raises(TypeError, match=r"restore_or_initialize\(\)"):
        manager.checkpoint.restore(manager.latest())


def test_arguments_the_wrong_way_round_are_refused(tmp_path):
    checkpoint = Checkpoint(x=Variable(torch.zeros(1)))
    right = r"Write CheckpointManager\("
    for arguments in (
        *((str(tmp_path), checkpoint), (tmp_path, checkpoint)),
        *((nn.Linear(1, 1), tmp_path), (None, tmp_path), (Checkpoint, tmp_path)),
    ):
        with pytest.raises(TypeError, match=f"expected a Checkpoint; got .*{right}"):
            CheckpointManager(*arguments)
    with pytest.raises(TypeError, match="CheckpointManager: expected a path; got None"):
        CheckpointManager(checkpoint, None)


def test_the_newest_are_kept_and_some_for_good(tmp_path):
    value, manager = make(tmp_path / "a" / "b", max_to_keep=2, keep_every=10)
    save(value, manager, range(0, 31, 5))
    assert steps(tmp_path / "a" / "b") == [0, 10, 20, 25, 30]
    assert manager.latest() == str(tmp_path / "a" / "b" / "step-00000030")
    assert [path[-2:] for path in manager.checkpoints] == ["00", "10", "20", "25", "30"]


def test_all_are_kept_without_a_bound(tmp_path):
    value, manager = make(tmp_path, max_to_keep=None)
    save(value, manager, range(8))
    assert steps(tmp_path) == list(range(8))


def test_save_waits_for_the_interval(tmp_path):
    _, manager = make(tmp_path, save_interval=3)
    saved = [step for step in range(8) if manager.save(step) is not None]
    assert saved == steps(tmp_path) == [0, 3, 6]
    value, resumed = make(tmp_path, save_interval=3)
    resume(resumed)
    assert resumed.save(8) is None
    assert resumed.save(9) is not None
    assert value.tolist() == [0.0, 0.0, 0.0]


def test_a_later_run_goes_on_and_removes_what_an_earlier_made(tmp_path):
    value, manager = make(tmp_path, max_to_keep=2)
    save(value, manager, range(3))
    value, manager = make(tmp_path, max_to_keep=2)
    status = resume(manager)
    assert value.tolist() == [2.0, 2.0, 2.0]
    assert status.path == tmp_path / "step-00000002"
    save(value, manager, range(3, 5))
    assert steps(tmp_path) == [3, 4]


def test_nothing_is_there_at_first(tmp_path):
    _, manager = make(tmp_path / "new")
    called = []
    assert manager.latest() is None
    assert manager.restore_or_initialize(lambda: called.append(1)) is None
    assert called == [1]
    assert manager.checkpoints == []


def test_what_others_have_made_is_never_removed(tmp_path):
    value, manager = make(tmp_path, max_to_keep=1)
    other = Checkpoint(x=value)
    other.save(tmp_path / "step-00000001")
    other.save(tmp_path / "best")
    save(value, manager, [2, 3])
    # Somebody puts another checkpoint in the place of ours, and a file beside ours.
    shutil.rmtree(tmp_path / "step-00000003")
    value.assign_add(torch.ones(3))
    other.save(tmp_path / "step-00000003", metadata={"mine": True})
    save(value, manager, [4])
    (tmp_path / "step-00000004" / "notes.txt").write_text("mine")
    save(value, manager, [5, 6])
    names = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    assert names == ["best", *(f"step-{n:08d}" for n in (1, 3, 4, 6))]
    assert [p.name for p in (tmp_path / "step-00000004").iterdir()] == ["notes.txt"]
    with pytest.raises(CheckpointError, match="a path where nothing stands"):
        manager.save(1)


@pytest.mark.parametrize("damage", ["manifest", "tensors", "cut", "gone", "empty"])
def test_a_damaged_one_is_passed_over_by_name(tmp_path, damage):
    value, manager = make(tmp_path)
    save(value, manager, [1, 2])
    newest = tmp_path / "step-00000002"
    if damage == "manifest":
        flip(newest / "manifest.json")
    elif damage == "tensors":
        flip(newest / "tensors.safetensors")
    elif damage == "cut":
        (newest / "tensors.safetensors").write_bytes(b"123")
    elif damage == "gone":
        (newest / "manifest.json").unlink()
    else:
        shutil.rmtree(newest)
        newest.mkdir()
    value, manager = make(tmp_path)
    with pytest.warns(UserWarning, match=r"step-00000002 was passed over") as said:
        resume(manager)
    assert value.tolist() == [1.0, 1.0, 1.0]
    assert said[0].filename == __file__
    if damage != "tensors":  # of sizes and manifest alone nothing is to be seen
        with pytest.warns(UserWarning, match=r"step-00000002 was passed over") as said:
            assert manager.latest() == str(tmp_path / "step-00000001")
        assert said[0].filename == __file__
    save(value, manager, [2])
    assert manager.latest() == str(newest)
    resume(make(tmp_path)[1])


def test_damaged_ones_only_are_an_error_and_not_a_new_start(tmp_path):
    value, manager = make(tmp_path)
    save(value, manager, [1])
    flip(tmp_path / "step-00000001" / "tensors.safetensors")
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(CheckpointError, match="damaged ones only"),
    ):
        manager.restore_or_initialize()


def test_a_partial_restore_that_nobody_looked_at_is_told_at_the_save(tmp_path):
    path = Checkpoint(epoch=1).save(tmp_path / "first")
    checkpoint = Checkpoint(epoch=0, more=0)
    checkpoint.restore(path)
    with pytest.warns(UserWarning, match="restored in part") as said:
        CheckpointManager(checkpoint, tmp_path / "all").save(1)
    assert said[0].filename == __file__


def test_one_that_does_not_fit_is_not_passed_over(tmp_path):
    save(*make(tmp_path), [1, 2])
    manager = CheckpointManager(Checkpoint(x=Variable(torch.zeros(4))), tmp_path)
    with pytest.raises(CheckpointError, match="does not fit"):
        manager.restore_or_initialize()


def test_one_that_an_overwrite_moved_aside_counts(tmp_path):
    save(*make(tmp_path), [1, 2])
    folder = tmp_path / "step-00000002"
    folder.rename(tmp_path / f"{folder.name}.old-{7:032x}")
    value, manager = make(tmp_path)
    assert manager.latest() == str(folder)
    with pytest.warns(UserWarning, match="was interrupted"):
        resume(manager)
    assert value.tolist() == [2.0, 2.0, 2.0]


def test_leavings_of_a_killed_run_are_removed(tmp_path):
    save(*make(tmp_path), [1, 2])
    half = tmp_path / f"step-00000002.tmp-{3:032x}"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    foreign = tmp_path / f"step-00000009.tmp-{3:032x}"
    foreign.mkdir()
    save(*make(tmp_path), [3])
    assert not half.exists()
    assert foreign.exists()


def test_a_damaged_record_only_means_that_nothing_is_removed(tmp_path, caplog):
    save(*make(tmp_path, max_to_keep=1), [1, 2])
    for text in ("{", "[]", '{"made": 3}', '{"format": "x", "made": {}}'):
        (tmp_path / RECORD).write_text(text)
        value, manager = make(tmp_path, max_to_keep=1)
        assert "kept for good" in caplog.text
        caplog.clear()
    save(value, manager, [3, 4])
    assert steps(tmp_path) == [2, 4]
    made = json.loads((tmp_path / RECORD).read_text())["made"]
    assert list(made) == ["step-00000004"]


def test_a_failed_save_leaves_all_older_ones(tmp_path, monkeypatch):
    value, manager = make(tmp_path, max_to_keep=1)
    save(value, manager, [1])

    def fail(kind, path, detail):
        if kind == "write" and path.name == "tensors.safetensors":
            raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "before", fail)
        with pytest.raises(OSError, match="full"):
            manager.save(2)
    assert steps(tmp_path) == [1]
    save(value, manager, [2])
    assert steps(tmp_path) == [2]


@pytest.mark.parametrize(
    "options", [{"max_to_keep": 0}, {"keep_every": 0}, {"save_interval": True}]
)
def test_numbers_are_checked(tmp_path, options):
    with pytest.raises(ValueError, match="an integer from 1 on"):
        make(tmp_path, **options)
    with pytest.raises(ValueError, match="an integer from 0 on"):
        make(tmp_path)[1].save(-1)
    with warnings.catch_warnings():
        assert not list(tmp_path.iterdir())


def test_saves_beside_the_training_are_what_the_objects_held(tmp_path):
    value, manager = make(tmp_path, max_to_keep=2)
    for step in range(5):
        value.assign(torch.full((3,), float(step)))
        assert manager.save_async(step) == str(tmp_path / f"step-{step:08d}")
        value.assign(torch.full((3,), -1.0))
    assert manager.wait() == str(tmp_path / "step-00000004")
    assert manager.wait() is None
    assert steps(tmp_path) == [3, 4]
    resume(manager)
    assert value.tolist() == [4.0, 4.0, 4.0]


def test_a_save_beside_the_training_removes_nothing_before_it_stands(tmp_path):
    value, manager = make(tmp_path, max_to_keep=1)
    save(value, manager, [0])
    manager.save_async(1)
    assert (tmp_path / "step-00000000").is_dir()
    manager.wait()
    assert steps(tmp_path) == [1]


def test_a_save_beside_the_training_waits_for_the_interval(tmp_path):
    _, manager = make(tmp_path, save_interval=3)
    saved = [step for step in range(8) if manager.save_async(step) is not None]
    manager.wait()
    assert saved == steps(tmp_path) == [0, 3, 6]


def test_restoring_waits_for_what_is_being_written(tmp_path):
    value, manager = make(tmp_path)
    value.assign(torch.full((3,), 7.0))
    manager.save_async(0)
    value.assign(torch.zeros(3))
    resume(manager)
    assert value.tolist() == [7.0, 7.0, 7.0]


def test_a_failure_beside_the_training_is_raised_by_the_next_save(
    tmp_path, monkeypatch
):
    value, manager = make(tmp_path, max_to_keep=1, save_interval=10)
    save(value, manager, [0])
    with monkeypatch.context() as patched:
        refused = OSError(28, "No space left on device")

        def refuse(*_, **__):
            raise refused

        patched.setattr(disk, "NewFile", refuse)
        patched.setattr(manager._record, "announce", lambda name: None)
        manager.save_async(10)
        with pytest.raises(OSError, match="No space left"):
            manager.save_async(20)
    assert steps(tmp_path) == [0]
    assert manager.save_async(21) is not None
    manager.wait()
    assert steps(tmp_path) == [21]
