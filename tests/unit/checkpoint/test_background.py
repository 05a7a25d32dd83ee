"""Saving behind training's back: what was copied is written, failures are raised."""

import threading

import pytest
import torch

from thalweg.checkpoint.background import BackgroundWriter, Staging
from thalweg.checkpoint.boxes import Box


def test_one_write_at_a_time_and_its_result():
    writer, gate = BackgroundWriter(), threading.Event()
    done = []
    writer.submit(lambda: gate.wait(10.0) and done.append("first"))
    assert writer.is_busy
    assert done == []
    gate.set()
    writer.submit(lambda: done.append("second") or len(done))
    assert writer.wait() == 2
    assert done == ["first", "second"]
    assert not writer.is_busy
    assert writer.wait() is None


def fail():
    raise OSError("the disk is full")


def test_a_failure_is_raised_once_by_wait(caplog):
    writer = BackgroundWriter()
    writer.submit(fail)
    with pytest.raises(OSError, match="full"):
        writer.wait()
    assert "could not be written" in caplog.text
    assert writer.wait() is None


def test_a_failure_is_raised_by_the_next_save_which_does_not_begin():
    writer, begun = BackgroundWriter(), []
    writer.submit(fail)
    with pytest.raises(OSError, match="full"):
        writer.submit(lambda: begun.append(1))
    assert begun == []
    writer.submit(lambda: begun.append(2))
    writer.wait()
    assert begun == [2]


def test_copies_do_not_change_with_the_tensors_and_their_memory_is_used_again():
    staging = Staging()
    tensors = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(True)}
    pieces = staging.copy(tensors)
    assert pieces["a"].box == Box((0, 0), (3, 2))
    assert pieces["b"].shape == ()
    tensors["a"].zero_()
    assert pieces["a"].tensor.tolist() == [[0, 3], [1, 4], [2, 5]]
    addresses = {key: piece.tensor.data_ptr() for key, piece in pieces.items()}
    again = staging.copy(tensors)
    assert {k: p.tensor.data_ptr() for k, p in again.items()} == addresses
    assert not again["a"].tensor.any()
    changed = staging.copy({"a": torch.ones(3, 2).double()})
    assert changed["a"].tensor.dtype == torch.float64
    assert list(staging._kept) == ["a"]
