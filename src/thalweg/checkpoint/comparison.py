"""What is different in two checkpoints, tensor by tensor and value by value.

Tensors are compared by their bits, and read a piece at a time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import torch

from thalweg.checkpoint.folder import Reader
from thalweg.checkpoint.keys import hyper_key
from thalweg.checkpoint.manifest import Manifest

__all__ = ["Difference", "compare"]

PIECE: Final = 1 << 20
LONGEST_VALUE: Final = 60
_FLOAT: Final = "$float"


class Difference(NamedTuple):
    """Something that two checkpoints do not have alike.

    Attributes:
        key: What it is.
        text: How it differs.
    """

    key: str
    text: str


def compare(
    first: str | os.PathLike[str], second: str | os.PathLike[str]
) -> Iterator[Difference]:
    """Compare two checkpoints, whatever the number of files that each was saved in.

    Args:
        first: A checkpoint folder.
        second: Another one.

    Yields:
        What only one of them has, and what differs: tensors, aliases,
        hyperparameters, values, metadata, the step.

    Raises:
        CheckpointError: If one is not sound.

    Example:
        >>> import tempfile
        >>> from thalweg.checkpoint import Checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     one = Checkpoint(weight=torch.ones(3)).save(f"{folder}/one")
        ...     other = Checkpoint(weight=torch.tensor([1, 1, 1.5])).save(f"{folder}/o")
        ...     for key, text in compare(one, other):
        ...         print(f"{key}: {text}")
        weight: 1 of 3 elements, by at most 0.5
    """
    readers = Reader(first), Reader(second)
    one, other = _tables(readers[0].manifest), _tables(readers[1].manifest)
    for name in one:
        yield from _compare_tables(one[name], other[name])
    tensors = readers[0].manifest.tensors, readers[1].manifest.tensors
    yield from _one_sided(*tensors)
    for key in tensors[0]:
        if key in tensors[1]:
            text = _compare_tensors(key, *readers)
            if text:
                yield Difference(key, text)


def _tables(manifest: Manifest) -> dict[str, dict[str, Any]]:
    hyperparameters = {
        hyper_key(owner, name): value
        for owner, table in manifest.hyperparameters.items()
        for name, value in table.items()
    }
    return {
        "step": {"step": manifest.step},
        "hyperparameters": hyperparameters,
        "values": manifest.values,
        "aliases": manifest.aliases,
        "metadata": {f"metadata/{k}": v for k, v in manifest.metadata.items()},
    }


def _compare_tables(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> Iterator[Difference]:
    yield from _one_sided(one, other)
    for key, value in one.items():
        if key in other and not _is_same(value, other[key]):
            texts = _shown(value), _shown(other[key])
            parts = texts if texts[0] != texts[1] else ("one value", "another")
            yield Difference(key, " and ".join(parts))


def _one_sided(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> Iterator[Difference]:
    yield from (Difference(key, "only in the first") for key in one if key not in other)
    for key in other:
        if key not in one:
            yield Difference(key, "only in the second")


def _is_same(one: Any, other: Any) -> bool:
    """Whether encoded values are alike; 1 and True are not."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _is_same(one[k], other[k]) for k in one
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return one == other


def _shown(value: Any) -> str:
    if isinstance(value, dict) and value.keys() == {_FLOAT}:
        try:
            return repr(float.fromhex(value[_FLOAT]))
        except (TypeError, ValueError, OverflowError):
            pass  # shown as it is spelt
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def _compare_tensors(key: str, one: Reader, other: Reader) -> str:
    entries = one.manifest.tensors[key], other.manifest.tensors[key]
    if entries[0][:2] != entries[1][:2]:
        return " and ".join(
            f"{e.dtype} {e.shape}".removeprefix("torch.") for e in entries
        )
    if entries[0].dtype.itemsize == 0 or 0 in entries[0].shape:
        return ""
    count, largest = 0, 0.0
    pair = one.read(key).reshape(-1), other.read(key).reshape(-1)
    for first, second in zip(*(t.split(PIECE) for t in pair), strict=True):
        apart = _different_bits(first, second)
        found = int(apart.sum())
        if found:
            count += found
            largest = max(largest, _distance(first[apart], second[apart]), key=_rank)
    total = math.prod(entries[0].shape)
    return f"{count} of {total} elements, by at most {largest:g}" if count else ""


def _different_bits(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    width = one.dtype.itemsize
    pair = (t.contiguous().view(torch.uint8).view(-1, width) for t in (one, other))
    first, second = pair
    return (first != second).any(dim=1)


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference; integers beyond 2⁵³ are rounded."""
    wide = torch.complex128 if one.is_complex() else torch.float64
    return float((one.to(wide) - other.to(wide)).abs().max())


def _rank(number: float) -> float:
    """NaN counts as the largest of all."""
    return math.inf if math.isnan(number) else number
