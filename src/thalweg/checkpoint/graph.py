"""From objects to keys: what a checkpoint of these objects consists of, right now.

The objects are walked each time something is saved or restored, so nothing has to be
registered. A variable is named by the first path that leads to it; its further paths
are aliases. A slot is named after its variable, whichever object leads to the slot.
"""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from typing_extensions import TypeIs

from thalweg.checkpoint.encoding import is_plain
from thalweg.checkpoint.faces import FaceNumbers
from thalweg.checkpoint.keys import face_key, object_key, rank_key, slot_key
from thalweg.checkpoint.torch_optimizers import TorchSlots, other_state, slots_of_torch
from thalweg.checkpoint.values import (
    PartsOfRanks,
    Stateful,
    Value,
    extra_state,
    value_of,
)
from thalweg.distribute.collectives import rank
from thalweg.errors import CheckpointError, message
from thalweg.state import (
    OwnerFace,
    SlotOwner,
    Trackable,
    aliases,
    handle_of,
    named_variables,
    walk,
)

EXTRA_STATE = "_extra_state"
OTHER_STATE = "state"
ITERATIONS = "iterations"


class SlotRef(NamedTuple):
    """A slot that exists: its optimizer's key, its variable, its name, its tensor."""

    owner: str
    variable: torch.Tensor
    name: str
    tensor: torch.Tensor


@dataclass
class Graph:
    """The parts of a set of objects, by key.

    Attributes:
        tensors: Variables and buffers by the key of their first path.
        aliases: Key of each further path to the key of the first.
        owners: Optimizers by key; what only a face of one holds, after all of these.
        faces: Objects that show one of these optimizers in another shape.
        holders: All modules and Trackables that were met.
        slots: Slots by key; that of one which the other ranks have, too, each for
            itself, ends in this rank's number.
        parts: What such slots make together, by key of their optimizer.
        unnamed: Variables that only an optimizer knows, by `unnamed_<i>`.
        values: Plain values and states.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    owners: dict[str, SlotOwner] = field(default_factory=dict)
    faces: list[OwnerFace] = field(default_factory=list)
    holders: list[object] = field(default_factory=list)
    slots: dict[str, SlotRef] = field(default_factory=dict)
    parts: dict[str, PartsOfRanks] = field(default_factory=dict)
    unnamed: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)

    @property
    def step(self) -> int | None:
        """Applied steps of the first optimizer; None if there is none."""
        for owner in self.owners.values():
            iterations = getattr(owner, "iterations", None)
            return None if iterations is None else int(iterations)
        return None

    def variable(self, key: str) -> torch.Tensor | None:
        """The variable known as `key`, by its first path or a further one."""
        first = self.aliases.get(key, key)
        found = self.tensors.get(first)
        return self.unnamed.get(key) if found is None else found

    def count_unnamed(self) -> int:
        """How many variables with slots no saved object holds."""
        unnamed = set(map(id, self.unnamed.values()))
        return len({id(s.variable) for s in self.slots.values()} & unnamed)


def build_graph(objects: dict[str, Any]) -> Graph:
    """Walk named objects.

    Args:
        objects: Name to object; a plain number or string is replaced in this dict
            when it is restored.

    Raises:
        CheckpointError: If an object cannot be saved, or two variables come by the
            same name.
    """
    return _Builder(objects).build()


class _Builder:
    """Collects one graph; identity of tensors is that of the objects, kept alive."""

    def __init__(self, objects: dict[str, Any]) -> None:
        self._objects = objects
        self._graph = Graph()
        self._owner_ids: dict[int, str] = {}
        self._slot_ids: set[int] = set()
        self._keys: dict[int, str] = {}

    def build(self) -> Graph:
        faces: dict[str, SlotOwner] = {}
        roots = [self._behind(root, faces) for root in _expand(self._objects)]
        for root in roots:
            self._find_owners(root)
        for root in roots:
            self._find_values(root)
        for root in roots:
            self._find_tensors(root)
        self._name_slots()
        self._graph.owners.update(faces)
        return self._graph

    def _behind(self, root: "_Root", faces: dict[str, SlotOwner]) -> "_Root":
        """The optimizer in place of its face, whose own numbers go beside it."""
        face = root.value
        if isinstance(face, torch.Tensor) or not isinstance(face, OwnerFace):
            return root
        self._graph.faces.append(face)
        faces[face_key(root.key())] = FaceNumbers(face)
        return root._replace(value=face.checkpoint_owner())

    def _find_owners(self, root: "_Root") -> None:
        if _owns_slots(root.value):
            self._add_owner(root.key(), root.value)
        elif (owner := slots_of_torch(root.value)) is not None:
            self._owner_ids[id(root.value)] = root.key()
            self._graph.owners[root.key()] = owner
            self._add_slot_ids(owner)
            others = other_state(owner, self._variable_key)
            self._graph.values[root.key(OTHER_STATE)] = others

    def _add_owner(self, key: str, owner: SlotOwner) -> None:
        if id(owner) in self._owner_ids:
            return
        self._owner_ids[id(owner)] = key
        self._graph.owners[key] = owner
        getattr(owner, ITERATIONS, None)  # may be made when first asked for
        self._add_slot_ids(owner)

    def _add_slot_ids(self, owner: SlotOwner) -> None:
        self._slot_ids.update(id(slot) for _, _, slot in owner.slot_variables())

    def _find_values(self, root: "_Root") -> None:
        value = root.value
        if not _is_walked(value):
            if id(value) not in self._owner_ids:
                self._add_value(root.key(), value_of(root.key(), value, root.replace))
            return
        for path, found in walk(value):
            if isinstance(found, torch.Tensor):
                continue
            if isinstance(found, SlotOwner):
                self._add_owner(root.key(path), found)
            self._graph.holders.append(found)
            if isinstance(found, nn.Module):
                _show_shards(found)
                extra = extra_state(found)
                if extra is not None:
                    place = f"{path}.{EXTRA_STATE}" if path else EXTRA_STATE
                    self._graph.values[root.key(place)] = extra

    def _add_value(self, key: str, value: Value) -> None:
        _refuse_clash(key, self._graph.values.get(key), None)
        self._graph.values[key] = value

    def _find_tensors(self, root: "_Root") -> None:
        if not _is_walked(root.value):
            return
        names, further = _names(root)
        elsewhere, hidden = self._owner_paths(root)
        for path, tensor in names.items():
            if id(tensor) not in self._slot_ids and not path.startswith(elsewhere):
                self._add_tensor(root.key(path), tensor)
        for path, tensor in further.items():
            key = self._keys.get(id(tensor))
            if path.startswith(hidden) or key in (None, root.key(path)):
                continue
            self._graph.aliases.setdefault(root.key(path), key)

    def _owner_paths(self, root: "_Root") -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Paths of optimizers saved under another key; private ones of the others.

        An optimizer keeps lists of its own of what has a public name, too.
        """
        elsewhere, hidden = [], []
        if isinstance(root.value, torch.Tensor):
            return (), ()
        for path, found in walk(root.value):
            key = self._owner_ids.get(id(found))
            start = f"{path}." if path else ""
            if key is not None and key != root.key(path):
                elsewhere.append(start)
            elif key is not None:
                hidden.append(f"{start}_")
        return tuple(elsewhere), tuple(hidden)

    def _add_tensor(self, key: str, tensor: torch.Tensor) -> None:
        first = self._keys.setdefault(id(tensor), key)
        _refuse_clash(key, self._graph.tensors.get(key, tensor), tensor)
        if first == key:
            self._graph.tensors[key] = tensor
        else:
            self._graph.aliases[key] = first

    def _name_slots(self) -> None:
        for owner_key, owner in self._graph.owners.items():
            if isinstance(owner, TorchSlots):
                for parameter in owner.parameters():
                    self._variable_key(parameter)
            own = self._add_parts(owner_key, owner)
            for handle, name, slot in owner.slot_variables():
                variable = handle_of(handle)
                key = slot_key(self._variable_key(variable), owner_key, name)
                if id(variable) in own and name in pending_slots(owner):
                    key = rank_key(key, rank())
                self._graph.slots[key] = SlotRef(owner_key, variable, name, slot)

    def _add_parts(self, key: str, owner: SlotOwner) -> Collection[int]:
        """The variables whose pending slots only this rank has, by `id`."""
        ask = getattr(owner, "pending_slots_of_rank", None)
        own, together = ask() if ask is not None else ((), {})
        if own:
            self._graph.parts[key] = PartsOfRanks(**together)
        return own

    def _variable_key(self, variable: torch.Tensor) -> str:
        key = self._keys.get(id(variable))
        if key is None:
            key = self._keys[id(variable)] = f"unnamed_{len(self._graph.unnamed)}"
            self._graph.unnamed[key] = variable
        return key


def pending_slots(owner: object) -> Collection[str]:
    """Slots that are there at times only: saved ones take the place of them all."""
    return getattr(owner, "pending_slots", ())


def _show_shards(module: nn.Module) -> None:
    """Put back the sharded parameters that a forward pass has left gathered.

    A root module under FSDP2 shows gathered ones from its forward pass on, until its
    backward pass: after a validation, too. The optimizer knows the sharded ones.
    """
    # Nobody has sharded a module by a package that has not been imported.
    package = sys.modules.get("torch.distributed.fsdp")
    if package is not None and isinstance(module, package.FSDPModule):
        package.FSDPModule.reshard(module)


def _refuse_clash(key: str, old: object, new: object) -> None:
    if old is not new:
        raise CheckpointError(
            message(
                "Checkpoint",
                "different names for different values",
                f"two by the name '{key}'",
                "Rename one of them.",
            )
        )


class _Root(NamedTuple):
    """An object to walk, its place, and how to put another in that place."""

    name: str
    path: str
    value: Any
    replace: Callable[[Any], object]

    def key(self, path: str = "") -> str:
        return object_key(self.name, ".".join(filter(None, (self.path, path))))


def _expand(objects: dict[str, Any]) -> Iterator[_Root]:
    for name, value in objects.items():
        yield from _expand_value(name, "", value, _setter(objects, name))


def _expand_value(
    name: str, path: str, value: Any, replace: Callable[[Any], object]
) -> Iterator[_Root]:
    """Take containers apart, so that each element is saved in its own way."""
    if not isinstance(value, dict | list | tuple) or is_plain(value):
        yield _Root(name, path, value, replace)
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for place, item in items:
        inner = f"{path}.{place}" if path else str(place)
        yield from _expand_value(name, inner, item, _setter(value, place))


def _setter(container: Any, place: Any) -> Callable[[Any], object]:
    def replace(value: Any) -> None:
        container[place] = value

    return replace


def _owns_slots(value: object) -> TypeIs[SlotOwner]:
    # Asking for a protocol takes long, and most of what is asked about is tensors.
    return not isinstance(value, torch.Tensor) and isinstance(value, SlotOwner)


def _is_walked(value: object) -> bool:
    if isinstance(value, nn.Module | torch.Tensor) or _owns_slots(value):
        return True
    return isinstance(value, Trackable) and not isinstance(value, Stateful)


def _names(
    root: _Root,
) -> tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]:
    """Variables by their first path, and by each further one."""
    if isinstance(root.value, torch.Tensor):
        return {"": handle_of(root.value)}, {}
    try:
        found = named_variables(root.value)
        further = aliases(root.value)
    except ValueError as problem:
        raise CheckpointError(f"Checkpoint '{root.key()}': {problem}") from problem
    named = {path: handle_of(tensor) for path, tensor in found.items()}
    others = {path: named[first] for path, first in further.items()}
    return _with_step_counts(root.value, named), others


def _with_step_counts(
    value: object, named: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Call the step count of an optimizer `iterations`, wherever it keeps it."""
    starts: dict[int, str] = {}
    for path, owner in walk(value):
        if _owns_slots(owner):
            count = getattr(owner, ITERATIONS, None)
            if isinstance(count, torch.Tensor):
                starts[id(handle_of(count))] = f"{path}." if path else ""

    def public(path: str, tensor: torch.Tensor) -> str:
        start = starts.get(id(tensor))
        is_private = start is not None and path.startswith(f"{start}_")
        return f"{start}{ITERATIONS}" if is_private else path

    return {public(path, tensor): tensor for path, tensor in named.items()}
