"""Ranks that are threads: shards are written and read without starting processes."""

import threading
from concurrent.futures import ThreadPoolExecutor

from thalweg.checkpoint.encoding import dump, parse
from thalweg.checkpoint.ranks import Ranks


class ThreadRanks(Ranks):
    """One of several threads that save together."""

    def __init__(self, number, size, barrier, told):
        super().__init__()
        self._number, self._size = number, size
        self._barrier, self._told = barrier, told

    @property
    def number(self):
        return self._number

    @property
    def size(self):
        return self._size

    def share(self, value):
        self._told[self._number] = dump(value)
        self._barrier.wait()
        values = [parse(self._told[number]) for number in range(self._size)]
        self._barrier.wait()
        return values


def on_ranks(size, function):
    """Call `function(ranks)` on every one of `size` ranks; results or exceptions."""
    barrier, told = threading.Barrier(size, timeout=30.0), {}
    with ThreadPoolExecutor(size) as pool:
        futures = [
            pool.submit(function, ThreadRanks(number, size, barrier, told))
            for number in range(size)
        ]
        return [future.exception() or future.result() for future in futures]
