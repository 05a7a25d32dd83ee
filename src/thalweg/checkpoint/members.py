"""Large tables of JSON read a piece at a time, within bounds of memory and of text.

A text of a few megabytes can ask for hundreds as lists and dicts, and for many seconds.
The tables that grow with a checkpoint, those of tensors, boxes and files, are objects
of a known form: one pattern proves the form of a row and gives its parts, so that no
row is ever a dict, and a piece of text goes through as columns.

What is read is counted, so that reading has bounds also for a text with the right
checksum; see `allowance`.
"""

import gc
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Final

from thalweg.checkpoint.allowance import (
    MEMBER_BYTES,
    NUMBER_BYTES,
    OBJECT_BYTES,
    TEXT_OF_A_ROW,
    Allowance,
)

# Rows are found in so much text at a time; their parts take some times as much.
PIECE_BYTES: Final = 1 << 16
PARTS: Final = 12
# Shapes and offsets that are spelt alike are read once, up to so many.
MOST_KNOWN: Final = 1 << 12
LARGEST_RANK: Final = 64

SPACE: Final = rb"[ \n\r\t]*+"
NUMBER: Final = rb"(0|[1-9][0-9]{0,18}+)"
NUMBERS: Final = rb"(\[[0-9, \n\r\t]*+\])"
_KEY: Final = rb'"([^"\\\x00-\x1f]*+(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*+)*+)"'
# Where nothing fits, one group takes all that is left: no search, no second try.
_REMAINDER: Final = rb"|([\s\S]++)"
_EMPTY: Final = re.compile(rb"%b\{%b\}" % (SPACE, SPACE))
_BEGIN: Final = re.compile(rb"%b\{" % SPACE)
_END: Final = re.compile(rb"%b\}" % SPACE)


class _Collections:
    """Whether the interpreter looks for garbage, however many threads read at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._were_on = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The first that comes remembers how it was, the last that goes restores it."""
        with self._lock:
            if self._depth == 0:
                self._were_on = gc.isenabled()
                gc.disable()
            self._depth += 1
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0 and self._were_on:
                    gc.enable()


_collections: Final = _Collections()


def without_collections() -> AbstractContextManager[None]:
    """Have the interpreter not look for garbage: a table that is read holds none.

    Looking through all that it has made so far, again and again, takes a third of the
    time of reading.
    """
    return _collections.paused()


class Table:
    """The rows of an object whose values are objects of one form.

    Iterating gives some rows at a time: what the row's pattern captures, the key first.

    Args:
        text: JSON, of which nothing is believed.
        begin: Where the object begins in it.
        row: What `row_pattern` gave.
        allowance: For the parts of a long row.
        skipped: A row of another form that is left out where it stands.

    Attributes:
        end: Where the object has ended, once all rows were given.
    """

    def __init__(
        self,
        text: bytes,
        begin: int,
        row: re.Pattern[bytes],
        allowance: Allowance,
        skipped: re.Pattern[bytes] | None = None,
    ) -> None:
        self.end = begin
        self._text = text
        self._row = row
        self.allowance = allowance
        self._skipped = skipped

    def __iter__(self) -> Iterator[list[tuple[bytes, ...]]]:
        """Give rows.

        Raises:
            ValueError: If something else stands there. That a key stands twice is
                for the caller to see.
        """
        empty = _EMPTY.match(self._text, self.end)
        if empty is not None:
            self.end = empty.end()
            return
        begun = _BEGIN.match(self._text, self.end)
        if begun is None:
            raise ValueError(f"no object at byte {self.end}")
        self.end, size = begun.end(), PIECE_BYTES
        self.allowance.memory.spend(PARTS * min(size, len(self._text)))
        while True:
            end = min(self.end + size, len(self._text))
            rows = self._row.findall(self._text, self.end, end)
            if rows and rows[-1][-1]:  # no row, or only the beginning of one
                end -= len(rows.pop()[-1])
            self.end, reached = end, self.end + size
            if rows:
                self.allowance.text.spend(TEXT_OF_A_ROW * len(rows))
                yield rows
                size = PIECE_BYTES
            elif self._ends():
                return
            elif self._passes_over():
                continue
            elif reached < len(self._text):
                size *= 4
                self.allowance.memory.check(size * PARTS)
            else:
                raise ValueError(f"no table's row at byte {self.end}")

    def _ends(self) -> bool:
        end = _END.match(self._text, self.end)
        if end is not None:
            self.end = end.end()
        return end is not None

    def _passes_over(self) -> bool:
        """Leave out what stands here, if that may be; this is done once."""
        if self._skipped is None:
            return False
        other = self._skipped.match(self._text, self.end)
        if other is not None:
            self._skipped, self.end = None, other.end()
        return other is not None


def object_pattern(**values: bytes) -> bytes:
    """What matches an object with these members, in any order, each one once.

    Args:
        values: Name to what matches the value, with one group that is never empty.
    """
    either = b"|".join(
        b'"%b"%b:%b%b' % (name.encode(), SPACE, SPACE, value)
        for name, value in values.items()
    )
    # A group that a doubled member has kept from matching is empty.
    member = rb"(?:%b(?:%b)%b(?:,(?!\})|(?=\}))){%d}" % (
        *(SPACE, either, SPACE),
        len(values),
    )
    return rb"\{%b\}" % member


def row_pattern(value: bytes) -> re.Pattern[bytes]:
    """The pattern of a row: its key, what the value captures, and else a remainder."""
    names = (SPACE, _KEY, SPACE, SPACE, value, SPACE, SPACE)
    return re.compile(rb'%b%b%b:%b%b%b(?:,(?=%b")|(?=\}))' % names + _REMAINDER)


def items_pattern(item: bytes) -> re.Pattern[bytes]:
    """The pattern of the items of a list: what they capture, and else a remainder."""
    names = (SPACE, item, SPACE, SPACE)
    return re.compile(rb"%b%b%b(?:,(?=%b\{)|\Z)" % names + _REMAINDER)


def keys_of(rows: Sequence[tuple[bytes, ...]]) -> list[str]:
    """The keys of rows, as JSON means them.

    Raises:
        ValueError: If one is not UTF-8, or has an escape that there is not.
    """
    keys = [row[0] for row in rows]
    if any(b"\\" in key for key in keys):
        # As text: from bytes json would take surrogates, which are no UTF-8.
        return json.loads((b'["%b"]' % b'","'.join(keys)).decode())
    return b"\n".join(keys).decode().split("\n")  # none of them holds a line's end


class Counts:
    """Reads lists of sizes, those that are spelt alike once.

    Args:
        allowance: For the lists and what is kept of their texts.
    """

    def __init__(self, allowance: Allowance) -> None:
        self._memory = allowance.memory
        self._known: dict[bytes, tuple[int, ...]] = {}
        self._kept = 0

    def read(self, texts: Sequence[bytes]) -> list[tuple[int, ...]]:
        """The lists that these texts are, which hold digits, commas and space only.

        Raises:
            ValueError: If one is none of whole numbers from 0 to 2⁶³ − 1, 64 at most.
        """
        known = self._known
        if len(known) > MOST_KNOWN:
            known.clear()
            self._memory.spend(-self._kept)
            self._kept = 0
        fresh = list(set(texts).difference(known))
        if fresh:
            known.update(zip(fresh, self._parsed(fresh), strict=True))
        return list(map(known.__getitem__, texts))

    def _parsed(self, texts: list[bytes]) -> list[tuple[int, ...]]:
        text = b",".join(texts)
        numbers = text.count(b",") + 1
        kept = MEMBER_BYTES * len(texts) + len(text)
        self._memory.spend(OBJECT_BYTES * len(texts) + NUMBER_BYTES * numbers + kept)
        self._kept += kept
        found = list(map(tuple, json.loads(b"[%b]" % text)))
        if max(map(len, found)) > LARGEST_RANK:
            raise ValueError(f"more than {LARGEST_RANK} dimensions")
        check_count(max(chain.from_iterable(found), default=0))
        return found


def check_count(value: object) -> int:
    """Let only a whole number from 0 to 2⁶³ − 1 pass.

    Raises:
        ValueError: For anything else, True and False included.
    """
    if type(value) is int and 0 <= value < 2**63:
        return value
    raise ValueError(f"{value!r} is not a size")
