"""Large JSON objects read member by member, within an allowance of memory.

A text of a few megabytes can ask for hundreds as lists and dicts. The tables that grow
with a checkpoint, those of tensors and files, are small objects of a known depth; here
each of these is found by a pattern that makes nothing of it, so that a reader keeps a
compact record and never holds two of them as dicts.
"""

import json
import re
from collections.abc import Iterator
from typing import Final

from thalweg.checkpoint.encoding import parsed_bytes

# Granted however small the text: a few thousand tensors, or ten thousand numbers.
ALWAYS_ALLOWED: Final = 1 << 23
# An entry up to this size is within what is always allowed, whatever it holds.
SMALL_ENTRY: Final = 1 << 12
# The member itself in a dict that grows, and its key without its characters.
MEMBER_BYTES: Final = 176
# Bytes of a record for each object in its text, and for each number.
OBJECT_BYTES: Final = 160
NUMBER_BYTES: Final = 40

_SPACE: Final = r"[ \n\r\t]*+"
_STRING: Final = r'"(?:[^"\\\x00-\x1f]++|\\.)*+"'
_NUMBERS: Final = r"\[[\d, \n\r\t-]*+\]"
_FLAT: Final = rf'\{{(?:[^\[\]{{}}"]++|{_STRING}|{_NUMBERS})*+\}}'
_OBJECTS: Final = rf"\[(?:[, \n\r\t]++|{_FLAT})*+\]"
_ENTRY: Final = rf'\{{(?:[^\[\]{{}}"]++|{_STRING}|{_NUMBERS}|{_OBJECTS})*+\}}'
_EMPTY: Final = re.compile(rf"\{{{_SPACE}\}}".encode())
_MEMBER: Final = re.compile(
    rf"{_SPACE}({_STRING}){_SPACE}:{_SPACE}({_ENTRY}){_SPACE}([,}}])".encode()
)


class Allowance:
    """How much memory reading may take: twice the size of what is read.

    Args:
        size: Bytes of the files that are read.
        unlimited: Whether everything is granted, to learn what it takes.
    """

    def __init__(self, size: int, unlimited: bool = False) -> None:
        self.granted = ALWAYS_ALLOWED + 2 * size
        self.spent = 0
        self._unlimited = unlimited

    def spend(self, count: int) -> None:
        """Take note of bytes that stay.

        Raises:
            ValueError: If they are more than is left.
        """
        self.check(count)
        self.spent += count

    def check(self, count: int) -> None:
        """Ask for bytes that are given back at once.

        Raises:
            ValueError: If they are more than is left.
        """
        if self.spent + count > self.granted and not self._unlimited:
            raise ValueError("text that takes more than twice its size in memory")

    def spend_member(self, key: str) -> None:
        """Take note of one more member of a table."""
        self.spend(MEMBER_BYTES + len(key) * (1 if key.isascii() else 4))

    def spend_record(self, entry: bytes) -> None:
        """Take note of the record of an entry."""
        objects, numbers = entry.count(b"{"), entry.count(b",")
        self.spend(OBJECT_BYTES * (1 + objects) + NUMBER_BYTES * numbers)

    @property
    def excess(self) -> int:
        """By how many bytes more was spent than is granted."""
        return max(0, self.spent - self.granted)


class Members:
    """The members of an object whose values are objects of lists of flat objects.

    Iterating gives each key, and the text of its value, which is JSON only if `parse`
    finds it so.

    Args:
        text: JSON, of which nothing is believed.
        begin: Where the object begins in it.
        allowance: For what a long entry takes while it is parsed.

    Attributes:
        end: Where the object has ended, once all members were given.
    """

    def __init__(self, text: bytes, begin: int, allowance: Allowance) -> None:
        self.end = begin
        self._text = text
        self._allowance = allowance

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Give key and value's text.

        Raises:
            ValueError: If something else stands there. That a key stands twice is
                for the caller to see.
        """
        text, at = self._text, self.end
        empty = _EMPTY.match(text, at)
        if empty is not None:
            self.end = empty.end()
            return
        if text[at : at + 1] != b"{":
            raise ValueError(f"no object at byte {at}")
        at += 1
        while text[at - 1 : at] != b"}":
            found = _MEMBER.match(text, at)
            if found is None:
                raise ValueError(f"no table's entry at byte {at}")
            key, entry = found[1], found[2]
            if len(key) + len(entry) > SMALL_ENTRY:
                self._allowance.check(parsed_bytes(key) + parsed_bytes(entry))
            yield (json.loads(key) if b"\\" in key else key[1:-1].decode()), entry
            at = found.end()
        self.end = at
