"""Text for a terminal: aligned columns, and names that cannot steer it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_GAP = "  "


def printable(text: str) -> str:
    """A name out of a file, with what a terminal would obey spelt out.

    Args:
        text: Any text.

    Returns:
        The same without control characters.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    Args:
        number: How many.
        noun: What, in the singular.

    Returns:
        Such as "1 file" or "2,000 files".
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table whose last column is one of numbers.

    Args:
        rows: Cells, as many in each row.

    Yields:
        A line for each row.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for *cells, number in rows:
        texts = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
        yield _GAP.join([*texts, number.rjust(widths[-1])])
