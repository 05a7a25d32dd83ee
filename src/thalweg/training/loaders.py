"""Batches from torch's datasets and loaders, and from any other iterable."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from thalweg.training.labels import class_weights_of
from thalweg.training.sources import AbstractSource, SourceOptions
from thalweg.training.structure import map_structure
from thalweg.training.tensors import inputs, targets, to_device


class IterableSource(AbstractSource):
    """Batches that somebody else has made: a DataLoader, a generator, a list.

    Every item is a batch: x, (x, y) or (x, y, sample_weight); a list counts as a
    tuple, since that is what torch's collation makes of tuples. With several replicas
    each of them gets its own items: a DataLoader needs a DistributedSampler.

    Args:
        batches: The iterable. An iterator goes on where the last epoch ended.
        options: See SourceOptions.
    """

    def __init__(self, batches: Iterable[Any], options: SourceOptions) -> None:
        super().__init__(options)
        self._batches = batches
        is_iterator = iter(batches) is batches if _is_cheap(batches) else False
        self._iterator = iter(batches) if is_iterator else None
        self.num_batches = _length(batches)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """Iterate once, telling the sampler which epoch it is."""
        sampler = getattr(self._batches, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)  # pyright: ignore[reportOptionalMemberAccess]
        batches = self._batches if self._iterator is None else self._iterator
        position = self._options.position
        if position is None:
            rest = itertools.islice(batches, skip, None)
        else:
            rest = position.iterate(batches, skip)
        for batch in rest:
            yield finished(batch, self._options, self.check)


class DatasetSource(AbstractSource):
    """A map-style dataset, shared and shuffled like arrays.

    Args:
        dataset: With `__getitem__` and `__len__`.
        options: See SourceOptions.
    """

    def __init__(self, dataset: Dataset[Any], options: SourceOptions) -> None:
        super().__init__(options)
        self._dataset = dataset
        self.count = len(dataset)  # pyright: ignore[reportArgumentType]
        self.num_batches = -(-self.count // options.batch_size)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """Load the samples of every batch through a DataLoader."""
        del epoch
        options = self._options
        batches = self._rows().split(options.batch_size)[skip:]
        shares = [options.replicas.share(rows).tolist() for rows in batches]
        loaded = iter(
            DataLoader(self._dataset, batch_sampler=[one for one in shares if one])  # pyright: ignore[reportArgumentType]
        )
        for rows, share in zip(batches, shares, strict=True):
            self.global_rows = len(rows)
            batch = next(loaded) if share else self._empty_batch()
            yield finished(batch, options, self.check)

    def _rows(self) -> torch.Tensor:
        position = self._options.position
        if self._options.shuffle and position is not None:
            return position.order(self.count)
        return torch.arange(self.count)

    def _empty_batch(self) -> Any:
        sample = default_collate([self._dataset[0]])
        return map_structure(lambda leaf: leaf[:0], sample)


def finished(
    batch: Any, options: SourceOptions, check: Callable[[Any], None] | None
) -> Any:
    """Turn a loaded batch into tensors, check and weight it, move it to the device."""
    if isinstance(batch, list):
        batch = tuple(batch)
    placement = options.placement
    if isinstance(batch, tuple) and not hasattr(batch, "_fields"):
        head = (inputs(part, placement, "fit: x") for part in batch[:1])
        tail = (targets(part, placement, "fit: y") for part in batch[1:])
        batch = (*head, *tail)
    else:
        batch = inputs(batch, placement, "fit: x")
    if check is not None:
        check(batch)
    if options.class_weight is not None:
        batch = class_weights_of(batch, options.class_weight)
    return to_device(batch, placement.device)


def _is_cheap(batches: Iterable[Any]) -> bool:
    """Return whether `iter` starts nothing, unlike that of a DataLoader."""
    return not isinstance(batches, DataLoader)


def _length(batches: Iterable[Any]) -> int | None:
    if not isinstance(batches, Sized):
        return None
    try:
        return len(batches)
    except TypeError:
        # A loader of an IterableDataset has `__len__` but does not know.
        return None
