"""How much reading a checkpoint may take, whoever wrote it: memory, and text.

Both are budgets, made for what is read and handed to all that reads it. Memory is 8 MiB
and twice the bytes that are read. Text is what reading takes time for, and in
proportion to the tensors: `most_text`. What takes more time than its text tells counts
for so much text beside. Who writes asks an unlimited allowance what reading will take.
"""

from collections.abc import Sequence
from typing import Final

# Granted however small the text: a few thousand tensors, or ten thousand numbers.
ALWAYS_ALLOWED: Final = 1 << 23
# Names and numbers that go with tensors, however small these are: what is read in half
# a second. Beyond, a byte for so many of the folder, which takes as long to check.
TEXT_BYTES: Final = 1 << 23
STORED_BYTES_OF_TEXT: Final = 64
# What a file that is opened counts for as text, a row of a table, a box of several, and
# one that is part of no grid.
TEXT_OF_A_FILE: Final = 1 << 12
TEXT_OF_A_ROW: Final = 32
TEXT_OF_A_BOX: Final = 160
TEXT_OF_A_CUT: Final = 1000
# Of what values are estimated to take in memory, a byte of text is so many bytes.
PARSED_BYTES_OF_TEXT: Final = 6

# The member itself in a dict that grows, and its key without its characters.
MEMBER_BYTES: Final = 176
# A tuple or another small object, and a number or a place in it.
OBJECT_BYTES: Final = 80
NUMBER_BYTES: Final = 40


def most_text(stored: int) -> int:
    """How much text a checkpoint may have that takes so many bytes without it."""
    return TEXT_BYTES + stored // STORED_BYTES_OF_TEXT


class Budget:
    """So many bytes may be used up; what asks for more is refused.

    Args:
        of: What the bytes are, for the refusal.
        granted: How many there are.
        unlimited: Whether everything is granted, to learn what is asked for.

    Attributes:
        granted: How many there are.
        spent: How many are used up.
    """

    def __init__(self, of: str, granted: int, unlimited: bool) -> None:
        self.granted = granted
        self.spent = self._most = 0
        self._of = of
        self._unlimited = unlimited

    def spend(self, count: int) -> None:
        """Take note of bytes that stay; less than none are given back.

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
        self._most = max(self._most, self.spent + count)
        if self._most > self.granted and not self._unlimited:
            asked, granted = f"{self._most:,} bytes of {self._of}", f"{self.granted:,}"
            raise ValueError(f"{asked}, where {granted} are allowed")

    @property
    def left(self) -> int:
        """How many are not used up."""
        return self.granted - self.spent

    @property
    def excess(self) -> int:
        """By how many more was asked for than is granted."""
        return max(0, self._most - self.granted)


class Allowance:
    """What reading some files may take.

    Args:
        size: Bytes of the files that are read.
        text: Bytes of text that may be read, of what `most_text` gives for all.
        unlimited: Whether everything is granted, to learn what it takes.

    Attributes:
        memory: Bytes of what stays, and of what is needed for a while.
        text: Bytes of text, and of what counts as such.
    """

    def __init__(self, size: int, text: int, unlimited: bool = False) -> None:
        self.memory = Budget("memory", ALWAYS_ALLOWED + 2 * size, unlimited)
        self.text = Budget("text, or what counts as such", text, unlimited)

    def spend_members(self, keys: Sequence[str]) -> None:
        """Take note of more members of a table, each with a small record.

        Raises:
            ValueError: If they take more memory than is left.
        """
        characters = sum(map(len, keys))
        if not all(map(str.isascii, keys)):
            characters *= 4
        self.memory.spend((MEMBER_BYTES + OBJECT_BYTES) * len(keys) + characters)
