"""Trackable objects, and the walk that finds the variables reachable from a root.

Nothing is recorded when an attribute is set: the object graph is walked when somebody
asks, so lists and dictionaries stay the user's own objects and may change freely. Each
object is visited once; the first path to it gives the name of what it holds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import torch
from torch import nn

from thalweg.errors import describe, message
from thalweg.state import listeners
from thalweg.state.wrappers import is_wrapper_segment

_MODULE_INTERNALS = frozenset(vars(nn.Module()))
_UNTRACKED = "_untracked_attributes"


class NoDependency:
    """Marks a value that is kept as an attribute but is not part of the object.

    Args:
        value: What `self.x = NoDependency(value)` stores in `self.x`.

    Example:
        >>> owner = Trackable()
        >>> owner.teacher = NoDependency([nn.Parameter(torch.ones(2))])
        >>> len(owner.teacher), len(owner.variables)
        (1, 0)
    """

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"NoDependency({self.value!r})"


class VariableList(list[torch.Tensor]):
    """A list of variables that compares its items by identity.

    `variable in a_list` of plain tensors would compare numbers. The list can also be
    called, and returns itself: `variables` and `variables()` are both in use.
    """

    def __call__(self) -> VariableList:
        """Return the list itself."""
        return self

    def __contains__(self, item: object) -> bool:
        return any(item is own for own in self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list):
            return False
        return list(map(id, self)) == list(map(id, cast("list[object]", other)))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __add__(self, other: list[Any]) -> VariableList:  # pyright: ignore[reportIncompatibleMethodOverride]
        return VariableList([*self, *other])

    def count(self, value: object) -> int:
        """Return how many items are the object `value`."""
        return sum(value is own for own in self)

    def index(
        self, value: object, start: SupportsIndex = 0, stop: SupportsIndex | None = None
    ) -> int:
        """Return the position of the object `value`.

        Raises:
            ValueError: If it is not in that part of the list.
        """
        positions = range(len(self))
        for position in positions[slice(start, stop)]:
            if self[position] is value:
                return position
        raise ValueError(
            message(
                "VariableList.index", "one of its items", describe(value), "Test first."
            )
        )

    def remove(self, value: object) -> None:
        """Remove the first item that is the object `value`.

        Raises:
            ValueError: If it is not in the list.
        """
        del self[self.index(value)]


class Trackable:
    """An object whose variables can be listed, named and saved.

    Variables, parameters, modules and other trackables are found in its attributes
    and in lists, tuples and dictionaries there, nested as deep as they are. Documented
    for subclassing; a subclass may extend `_trackable_children`. A class that is a
    module too names this base before `nn.Module`, which otherwise refuses to opt out
    of what it has registered.

    Example:
        >>> layer = Trackable()
        >>> layer.kernels = {"a": [nn.Parameter(torch.ones(2))]}
        >>> list(named_variables(layer))
        ['kernels.a.0']
    """

    if not TYPE_CHECKING:  # a type checker shall reject wrong names

        def __setattr__(self, name: str, value: Any) -> None:
            if isinstance(value, NoDependency):
                _store_untracked(self, name, value.value)
                return
            untracked = vars(self).get(_UNTRACKED)
            if untracked:
                untracked.discard(name)
            super().__setattr__(name, value)
            for tell in listeners.attributes:
                tell(self, value)

    @property
    def variables(self) -> VariableList:
        """All variables, each once, in the order of the walk."""
        return VariableList(_tensors(self))

    @property
    def trainable_variables(self) -> VariableList:
        """The variables that require a gradient."""
        return VariableList(one for one in _tensors(self) if one.requires_grad)

    @property
    def non_trainable_variables(self) -> VariableList:
        """The variables and buffers that require no gradient."""
        return VariableList(one for one in _tensors(self) if not one.requires_grad)

    def _trackable_children(self) -> Iterable[tuple[str, object]]:
        """Yield (name, child) for all that belongs to this object.

        A hook: a subclass that keeps children elsewhere yields these besides
        `super()._trackable_children()`. Children of no interest are passed over.
        """
        if isinstance(self, nn.Module):
            yield from _own_module_children(self)
        if isinstance(self, (list, tuple, dict)):
            yield from _container_children(self)
        untracked = vars(self).get(_UNTRACKED, ())
        for name, value in vars(self).items():
            if name in untracked or name in _MODULE_INTERNALS:
                continue
            if _is_part(value):
                yield name, value


def walk(root: object) -> Iterator[tuple[str, object]]:
    """Yield (path, object) for every variable, trackable and module, each once.

    The order is depth first, in the order of the attributes; in a module, as torch
    has it, parameters come before buffers and buffers before submodules.

    Args:
        root: A Trackable, a module, or lists, tuples and dictionaries of them. It is
            yielded first, under the empty path, unless it is such a container.

    Returns:
        An iterator of paths (dotted, without wrapper segments) and of tensors,
        Trackables and modules.
    """
    for path, found, first_path in _visits(root):
        if first_path is None and not _is_container(type(found)):
            yield path, found


def named_variables(root: object) -> dict[str, torch.Tensor]:
    """Return every variable reachable from `root` under its canonical name.

    Args:
        root: A Trackable, a module, or lists, tuples and dictionaries of them.

    Returns:
        Dotted names to tensors, in the order of the walk. A tensor that is reachable
        on several paths has the name of the first; see `aliases`. Buffers of modules
        are included, except non-persistent ones.

    Raises:
        ValueError: If two different variables come by the same name, which takes
            dictionary keys such as `0` beside `"0"`.

    Example:
        >>> list(named_variables(nn.Sequential(nn.Linear(2, 3))))
        ['0.weight', '0.bias']
    """
    names: dict[str, torch.Tensor] = {}
    for path, found in walk(root):
        if isinstance(found, torch.Tensor):
            if path in names:
                raise ValueError(_clash(path, names[path], found))
            names[path] = found
    return names


def aliases(root: object) -> dict[str, str]:
    """Return the further names of tied variables.

    Args:
        root: As for `named_variables`.

    Returns:
        Every name that is not the first one, with the name that is. A reference from
        a part back to a whole that contains it adds no names.

    Example:
        >>> tied = nn.Linear(2, 2, bias=False)
        >>> aliases(nn.ModuleDict({"encoder": tied, "decoder": tied}))
        {'decoder.weight': 'encoder.weight'}
    """
    first_names: dict[str, str] = {}
    shared: list[tuple[str, str]] = []
    for path, found, first_path in _visits(root):
        if isinstance(found, torch.Tensor):
            first_names[path] = path if first_path is None else first_path
        elif first_path is not None and not _is_inside(path, first_path):
            shared.append((path, first_path))
    for path, first_path in shared:
        for name, target in list(first_names.items()):
            if _is_inside(name, first_path):
                suffix = name[len(first_path) :].lstrip(".")
                first_names.setdefault(_join(path, suffix), target)
    return {name: target for name, target in first_names.items() if name != target}


def _tensors(root: object) -> Iterator[torch.Tensor]:
    return (found for _, found in walk(root) if isinstance(found, torch.Tensor))


def _visits(root: object) -> Iterator[tuple[str, object, str | None]]:
    """Yield (path, object, first path), the last None on the first visit."""
    # The objects are kept beside their paths, so that no id is reused meanwhile.
    first_paths: dict[int, tuple[str, object]] = {}
    stack: list[tuple[str, object]] = [("", root)]
    while stack:
        path, found = stack.pop()
        known = first_paths.get(id(found))
        if known is not None:
            yield path, found, known[0]
            continue
        first_paths[id(found)] = (path, found)
        yield path, found, None
        if not isinstance(found, torch.Tensor):
            stack.extend(reversed(_paths_of_children(path, found)))


def _paths_of_children(path: str, owner: object) -> list[tuple[str, object]]:
    """Return the paths and objects that `owner` holds directly."""
    start = f"{path}." if path else ""
    return [
        (path if is_wrapper_segment(owner, name) else start + name, child)
        for name, child in _children(owner)
        if not _is_leaf(type(child))
    ]


def _children(owner: object) -> Iterable[tuple[str, object]]:
    if isinstance(owner, Trackable):
        return owner._trackable_children()  # pyright: ignore[reportPrivateUsage]
    if isinstance(owner, nn.Module):
        return _plain_module_children(owner)
    return _container_children(owner)


@functools.lru_cache(maxsize=1024)
def _is_leaf(cls: type) -> bool:
    """Return whether no value of this class can lead to a variable."""
    walked = (torch.Tensor, Trackable, nn.Module, list, tuple, dict)
    return not issubclass(cls, walked)


@functools.lru_cache(maxsize=1024)
def _is_container(cls: type) -> bool:
    """Return whether values of this class only hold others, and are not yielded."""
    return issubclass(cls, (list, tuple, dict)) and not issubclass(
        cls, (Trackable, nn.Module)
    )


def _is_part(value: object) -> bool:
    """Return whether a value found in an attribute or a container is walked.

    A tensor that is neither Parameter nor Buffer is somebody's intermediate result.
    """
    if _is_leaf(type(value)):
        return False
    return not isinstance(value, torch.Tensor) or isinstance(
        value, (nn.Parameter, nn.Buffer)
    )


def _own_module_children(module: nn.Module) -> list[tuple[str, object]]:
    """Return what torch registers: parameters, persistent buffers, modules."""
    registered: dict[str, Any] = vars(module)
    children: list[tuple[str, object]] = list(registered["_parameters"].items())
    if registered["_buffers"]:
        transient = registered["_non_persistent_buffers_set"]
        buffers = registered["_buffers"].items()
        children += [item for item in buffers if item[0] not in transient]
    return children + list(registered["_modules"].items())


def _plain_module_children(module: nn.Module) -> list[tuple[str, object]]:
    """Return what torch registers, and trackables in attributes torch ignores."""
    children = _own_module_children(module)
    attributes = vars(module)
    # Modules have some thirty attributes, and next to none of them a trackable.
    if any(map(_is_trackable_type, set(map(type, attributes.values())))):
        for name, value in attributes.items():
            if isinstance(value, Trackable) and name not in _MODULE_INTERNALS:
                children.append((name, value))
    return children


@functools.lru_cache(maxsize=1024)
def _is_trackable_type(cls: type) -> bool:
    return issubclass(cls, Trackable)


def _container_children(container: object) -> Iterator[tuple[str, object]]:
    """Yield the parts in a list, tuple or dictionary under their place or key."""
    items: Iterable[tuple[object, object]] = ()
    if isinstance(container, dict):
        items = cast("dict[object, object]", container).items()
    elif isinstance(container, (list, tuple)):
        items = enumerate(cast("list[object]", container))
    for position, (key, value) in enumerate(items):
        if _is_part(value):
            yield _segment(key, position), value


def _segment(key: object, position: int) -> str:
    """Return a path segment for a dictionary key, the same in every process."""
    if not isinstance(key, (str, int)):
        return str(position)
    return str(key).replace("%", "%25").replace(".", "%2E")


def _join(path: str, segment: str) -> str:
    return f"{path}.{segment}" if path and segment else path or segment


def _is_inside(path: str, whole: str) -> bool:
    return not whole or path == whole or path.startswith(whole + ".")


def _clash(name: str, one: torch.Tensor, two: torch.Tensor) -> str:
    return message(
        "named_variables",
        "one variable for each name",
        f"{describe(one)} and {describe(two)} under {name!r}",
        "Rename one of the attributes or dictionary keys on the way to them.",
    )


def _store_untracked(owner: Trackable, name: str, value: object) -> None:
    """Store an attribute that neither the walk nor `nn.Module` takes notice of."""
    if isinstance(owner, nn.Module):
        for registry in ("_parameters", "_buffers", "_modules"):
            vars(owner).get(registry, {}).pop(name, None)
    object.__setattr__(owner, name, value)
    vars(owner).setdefault(_UNTRACKED, set()).add(name)
