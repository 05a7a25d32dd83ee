"""The sums are zlib's, however the data are cut up."""

import random
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.checkpoint import crc
from thalweg.checkpoint.crc import RunningCrc, file_crc, join


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_join_is_the_sum_of_the_joined_texts(first, second):
    joined = join(zlib.crc32(first), zlib.crc32(second), len(second))
    assert joined == zlib.crc32(first + second)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 129, 1000])
def test_files_are_summed_in_parts(tmp_path, monkeypatch, size):
    monkeypatch.setattr(crc, "PIECE_BYTES", 64)
    monkeypatch.setattr(crc.os, "cpu_count", lambda: 4)
    content = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(content)
    assert file_crc(tmp_path / "file") == zlib.crc32(content)


@pytest.mark.parametrize("sizes", [[], [0], [10, 200, 1], [64, 64], [63, 65, 1000]])
def test_data_are_summed_while_they_are_written(monkeypatch, sizes):
    monkeypatch.setattr(crc, "PIECE_BYTES", 64)
    parts = [random.Random(size).randbytes(size) for size in sizes]
    written = bytearray()
    with RunningCrc() as running:
        for part in parts:
            for piece in running.pieces(memoryview(part)):
                written += piece
        assert running.value() == zlib.crc32(written)
    assert bytes(written) == b"".join(parts)


def test_the_fastest_sum_is_zlibs():
    fast = crc.fastest()
    for size in [0, 1, 63, 64, 65, 127, 128, 1000, 4096, 100_003]:
        data = memoryview(random.Random(size).randbytes(size))
        for before in (0, 1, 0xFFFFFFFF, 0x12345678):
            assert fast(data, before) == zlib.crc32(data, before)


def test_large_data_go_through_it(tmp_path, monkeypatch):
    monkeypatch.setattr(crc, "LARGE_BYTES", 3000)
    monkeypatch.setattr(crc, "PIECE_BYTES", 1024)
    content = random.Random(1).randbytes(10_000)
    with RunningCrc() as running:
        assert b"".join(running.pieces(memoryview(content))) == content
        assert running.value() == zlib.crc32(content)
    (tmp_path / "file").write_bytes(content)
    assert file_crc(tmp_path / "file") == zlib.crc32(content)


@pytest.mark.parametrize("reason", ["no compiler", "no text"])
def test_without_a_compiler_zlib_sums(monkeypatch, reason):
    if reason == "no compiler":
        monkeypatch.setattr(crc, "build", lambda text: None)
    else:
        monkeypatch.setattr(crc.resources, "files", lambda name: Path("nowhere"))
    crc.fastest.cache_clear()
    assert crc.fastest() is zlib.crc32
    crc.fastest.cache_clear()
