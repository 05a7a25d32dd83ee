"""Tables that a kernel is bound to: checked once, read without a question after."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thalweg.compiler.frame_c import ITEM_COLUMNS
from thalweg.compiler.key import KernelKey
from thalweg.errors import describe, message

__all__ = ["check_tables", "checked_row_tables"]


def check_tables(
    key: KernelKey, num_columns: int, *, kinds: tuple[type, ...], **tables: Any
) -> None:
    """Refuse tables that a kernel cannot read.

    Args:
        key: The kernel's.
        num_columns: Columns of its scalar table.
        kinds: Types that the kernel reads: `torch.Tensor`, `numpy.ndarray`.
        **tables: Any of ``items``, ``pointers``, ``scalars``, ``starts``, ``sources``.

    Raises:
        TypeError: If a table is of another type or dtype, or not contiguous.
        ValueError: If a table has the wrong number of axes or columns.
    """
    expected = {
        "items": ("int64", ITEM_COLUMNS),
        "pointers": ("int64", len(key.dtypes)),
        "scalars": ("float64", num_columns),
        "starts": ("int64", None),
        "sources": ("int64", None),
    }
    where = f"kernel of {key.rule.name}"
    for name, table in tables.items():
        dtype, columns = expected[name]
        _check_storage(where, name, table, dtype, kinds)
        _check_shape(where, name, tuple(table.shape), columns)


def checked_row_tables(
    key: KernelKey, num_columns: int, kinds: tuple[type, ...], starts: Any, sources: Any
) -> tuple[Any, ...]:
    """The further tables of a kernel: none, or in row modes both.

    Args:
        key: The kernel's.
        num_columns: Columns of its scalar table.
        kinds: As for `check_tables`.
        starts: Where the sources of each item begin, or None.
        sources: Row numbers in the gradient, or None.

    Returns:
        ``(starts, sources)`` in row modes, else ``()``.

    Raises:
        TypeError: As `check_tables`.
        ValueError: As `check_tables`; also in row modes if one is None.
    """
    if key.mode == "dense":
        return ()
    if starts is None or sources is None:
        where = f"kernel of {key.rule.name}"
        raise ValueError(
            message(where, "starts and sources for rows", "none", "Pass both tables.")
        )
    check_tables(key, num_columns, kinds=kinds, starts=starts, sources=sources)
    return (starts, sources)


def _check_storage(
    where: str, name: str, table: Any, dtype: str, kinds: tuple[type, ...]
) -> None:
    is_readable = isinstance(table, kinds)
    if not is_readable or str(table.dtype).removeprefix("torch.") != dtype:
        raise TypeError(
            message(where, f"a {dtype} table {name!r}", describe(table), "Convert it.")
        )
    if not (
        table.is_contiguous() if isinstance(table, Tensor) else table.flags.c_contiguous
    ):
        raise TypeError(
            message(where, f"a contiguous table {name!r}", "a strided one", "Copy it.")
        )


def _check_shape(
    where: str, name: str, shape: tuple[int, ...], columns: int | None
) -> None:
    if len(shape) != (1 if columns is None else 2) or (columns and shape[1] != columns):
        expected = "one axis" if columns is None else f"shape (n, {columns})"
        raise ValueError(
            message(where, f"{expected} for {name!r}", f"shape {shape}", "See `bind`.")
        )
