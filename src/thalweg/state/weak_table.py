"""A table keyed by the identity of live objects, which it does not keep alive.

Tensors compare elementwise, so an ordinary dictionary cannot hold them as keys, and
an `id` alone may be reused once its object has died. Here each entry keeps a weak
reference beside the `id` and leaves the table when the object dies.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from itertools import compress
from typing import Generic, TypeVar

Value = TypeVar("Value")
Key = TypeVar("Key")

_ANCHOR = "_thalweg_anchor"


class WeakTable(Generic[Value]):
    """Maps objects, by identity, to values, for as long as the objects live."""

    __slots__ = ("__weakref__", "_entries")

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[object], Value]] = {}

    def get(self, key: object) -> Value | None:
        """Return the value of `key`, or None."""
        if _wraps_tensors(type(key)):
            key = vars(key).get(_ANCHOR)
        entry = self._entries.get(id(key))
        if entry is None or entry[0]() is not key:
            return None
        return entry[1]

    def keys_among(self, objects: Sequence[Key]) -> list[Key]:
        """Those of some objects that have a value, without a frame for each other."""
        if any(map(_wraps_tensors, set(map(type, objects)))):
            return [key for key in objects if self.get(key) is not None]
        likely = compress(objects, map(self._entries.__contains__, map(id, objects)))
        return [key for key in likely if self.get(key) is not None]

    def set(self, key: object, value: Value) -> None:
        """Keep `value` for `key`, replacing what was there."""
        if _wraps_tensors(type(key)):
            key = vars(key).setdefault(_ANCHOR, _Anchor())
        identity = id(key)
        self._entries[identity] = (weakref.ref(key, self._forget(identity)), value)

    def discard(self, key: object) -> None:
        """Drop the entry of `key`, if there is one."""
        if _wraps_tensors(type(key)):
            key = vars(key).get(_ANCHOR)
        entry = self._entries.get(id(key))
        if entry is not None and entry[0]() is key:
            del self._entries[id(key)]

    def __len__(self) -> int:
        return len(self._entries)

    def _forget(self, identity: int) -> Callable[[weakref.ref[object]], None]:
        table = weakref.ref(self)

        def forget(reference: weakref.ref[object]) -> None:
            owner = table()
            entry = None if owner is None else owner._entries.get(identity)
            # The entry may by now belong to a younger object of the same id.
            if owner is not None and entry is not None and entry[0] is reference:
                del owner._entries[identity]

        return forget


@functools.lru_cache(maxsize=256)
def _wraps_tensors(cls: type) -> bool:
    return hasattr(cls, "__tensor_flatten__")


class _Anchor:
    """Stands in a table for a tensor that wraps others, such as a DTensor.

    Modules convert such tensors with `torch.utils.swap_tensors`, which refuses a
    tensor that has weak references to it.
    """

    __slots__ = ("__weakref__",)

    def __reduce__(self) -> tuple[type[_Anchor], tuple[()]]:
        # A copy or an unpickled tensor has an identity of its own.
        return _Anchor, ()
