"""Tables of JSON: what their keys mean, and what reading leaves behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from thalweg.checkpoint.members import keys_of, without_collections


@pytest.fixture(autouse=True)
def collections_as_before() -> Iterator[None]:
    were_on = gc.isenabled()
    yield
    (gc.enable if were_on else gc.disable)()


@pytest.mark.parametrize("were_on", [True, False])
def test_readers_that_overlap_leave_collections_as_they_were(were_on: bool) -> None:
    (gc.enable if were_on else gc.disable)()
    first, second, third = (without_collections() for _ in range(3))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not gc.isenabled()  # the second still reads
    third.__enter__()
    second.__exit__(None, None, None)
    assert not gc.isenabled()
    third.__exit__(None, None, None)
    assert gc.isenabled() == were_on


def test_a_reader_that_fails_leaves_collections_as_they_were() -> None:
    gc.enable()
    with pytest.raises(ValueError, match="damaged"), without_collections():
        raise ValueError("damaged")
    assert gc.isenabled()


def test_keys_are_utf_8_whether_or_not_one_has_an_escape() -> None:
    assert keys_of([("é".encode(),), (b"b",)]) == ["é", "b"]
    assert keys_of([("é".encode(),), (rb"\u0062\n",)]) == ["é", "b\n"]
    surrogate = (b"\xed\xa0\x80",)
    for others in ([], [(b"b",)], [(rb"\u0062",)]):
        with pytest.raises(UnicodeDecodeError):
            keys_of([surrogate, *others])
