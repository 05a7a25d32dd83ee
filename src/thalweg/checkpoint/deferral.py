"""Saved values that wait for objects which do not exist yet.

A restore keeps what found no place. When a module registers a parameter, a buffer or
a module, when a saved module is called, when an optimizer steps, and when somebody
asks the status or saves, the objects are walked again, and what has appeared since
takes its value: a new variable as soon as it is registered. Nothing is installed and
nothing is kept while nothing waits.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_hooks
from torch.optim.optimizer import register_optimizer_step_pre_hook

from thalweg.checkpoint.folder import Reader
from thalweg.checkpoint.graph import Graph, build_graph
from thalweg.checkpoint.hyperparameters import HyperPolicy
from thalweg.checkpoint.keys import hyper_key, parse_rank_key, parse_slot_key
from thalweg.checkpoint.matching import Match, match
from thalweg.checkpoint.restoring import carry_out
from thalweg.checkpoint.status import Outcome, RestoreStatus
from thalweg.state import SlotOwner, Trackable, listeners

__all__ = ["Deferral"]


class Deferral:
    """One restore for as long as it may still give values.

    Args:
        objects: The saved objects by name; they are not kept alive.
        reader: The opened checkpoint.
        hyper: What is done with hyperparameters.
        found: What was matched and written at once.
        graph: The objects as they were then.
    """

    def __init__(
        self,
        objects: Mapping[str, Any],
        reader: Reader,
        hyper: HyperPolicy,
        found: Match,
        graph: Graph,
    ) -> None:
        self._references = self._refer(objects)
        self._reader: Reader | None = reader
        self._hyper: HyperPolicy = hyper
        self._is_busy = False
        self._taken: set[str] = set()
        self._variables: dict[str, tuple[str, weakref.ref[torch.Tensor]]] = {}
        self._holders: frozenset[int] = frozenset()
        self.has_stepped = False
        self._outcome = Outcome()
        self.status = RestoreStatus(
            path=reader.folder,
            step=reader.manifest.step,
            hyper_differences=tuple(found.hyper_differences),
            _outcome=self._outcome,
            _update=self.complete,
        )
        self._note(found, graph)
        if not self._outcome.is_complete:
            _wait(self)

    def adopt(self, objects: Mapping[str, Any]) -> None:
        """Go on with these objects, some of which are new."""
        self._references = self._refer(objects)
        self.complete()

    def complete(self) -> None:
        """Give their values to objects that have appeared since."""
        if self._is_busy or self._reader is None:
            return
        objects = self._objects()
        if objects is None:
            self._end()
            return
        self._is_busy = True  # making a slot may be heard of, too
        try:
            graph = build_graph(objects)
            taken = self._still_taken(graph)
            found = match(graph, self._reader.manifest, self._hyper, taken)
            carry_out(graph, found, self._reader, self._hyper)
            self._note(found, graph)
        finally:
            self._is_busy = False

    def concerns(self, holder: object) -> bool:
        """Whether an object was among the saved ones when they were last walked."""
        return id(holder) in self._holders

    def _refer(self, objects: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
        """How to find the objects; when one of them goes, the restore is over."""
        me = weakref.ref(self)

        def gone(_: object) -> None:
            deferral = me()
            if deferral is not None:
                deferral._end()

        return {name: _reference(one, gone) for name, one in objects.items()}

    def _objects(self) -> dict[str, Any] | None:
        """The objects, or None if one of them is gone."""
        objects = {name: find() for name, find in self._references.items()}
        is_gone = any(one is _GONE for one in objects.values())
        return None if is_gone else objects

    def _still_taken(self, graph: Graph) -> set[str]:
        """What needs no second value.

        A layer may register a weight under a passing name first. If what took a value
        turns out to be another variable, the right one takes it when it comes.
        """
        known = set(map(id, graph.tensors.values()))
        taken = set(self._taken)
        for saved, (place, reference) in self._variables.items():
            holder, current = reference(), graph.variable(place)
            if current is not None and current is not holder and id(holder) in known:
                taken.discard(saved)
        return taken

    def _note(self, found: Match, graph: Graph) -> None:
        for copy in found.copies:
            slot = graph.slots.get(copy.key)
            self._note_variable(copy.saved, slot.variable if slot else copy.target)
        for made in found.creations:
            for saved in made.keys.values():
                self._note_variable(saved, made.variable)
        self._taken.update(found.values)
        self._taken.update(hyper_key(owner) for owner in found.owners)
        outcome = self._outcome
        outcome.restored = tuple(dict.fromkeys((*outcome.restored, *found.restored())))
        outcome.missing = tuple(found.missing)
        outcome.unexpected = tuple(found.unexpected)
        outcome.mismatched = tuple(found.mismatched)
        outcome.reasons = tuple(found.reasons)
        self._holders = frozenset(map(id, graph.holders))
        if outcome.is_complete:
            self._end()

    def _note_variable(self, saved: str, variable: torch.Tensor) -> None:
        parts = parse_slot_key(parse_rank_key(saved))
        place = saved if parts is None else parts.variable
        self._taken.add(saved)
        self._variables[saved] = place, weakref.ref(variable)

    def _end(self) -> None:
        self._reader = None
        _forget(self)


_GONE = object()


def _reference(one: object, gone: Callable[[object], None]) -> Callable[[], Any]:
    """How to find an object again that is not kept alive; `gone` is told of its end."""
    if isinstance(one, nn.Module | Trackable | SlotOwner | torch.Tensor):
        reference = weakref.ref(one, gone)

        def find() -> Any:
            found = reference()
            return _GONE if found is None else found

        return find
    return lambda: one


# ------------------------------------------------------------ who hears of what

_waiting: list[Deferral] = []
_handles: list[Any] = []
_lock = threading.RLock()
_PARTS = (nn.Parameter, nn.Buffer, nn.Module, Trackable)
_CONTAINERS = (list, tuple, dict)


def _wait(deferral: Deferral) -> None:
    with _lock:
        _waiting.append(deferral)
        if len(_waiting) == 1:
            _install()


def _forget(deferral: Deferral) -> None:
    with _lock:
        if deferral in _waiting:
            _waiting.remove(deferral)
            if not _waiting:
                _remove()


def _install() -> None:
    tables = {
        torch_hooks.register_module_parameter_registration_hook: "_parameters",
        torch_hooks.register_module_buffer_registration_hook: "_buffers",
        torch_hooks.register_module_module_registration_hook: "_modules",
    }
    for register, table in tables.items():
        _handles.append(register(_hears_of(table)))
    _handles.append(torch_hooks.register_module_forward_pre_hook(_before_call))
    _handles.append(register_optimizer_step_pre_hook(_before_step))
    listeners.steps.append(_before_step)
    listeners.attributes.append(_after_attribute)


def _remove() -> None:
    while _handles:
        _handles.pop().remove()
    listeners.steps.remove(_before_step)
    listeners.attributes.remove(_after_attribute)


def _hears_of(table: str) -> Callable[[nn.Module, str, Any], None]:
    def registered(module: nn.Module, name: str, value: Any) -> None:
        concerned = [one for one in _waiting if one.concerns(module)]
        if concerned and value is not None:
            getattr(module, table)[name] = value  # as torch does after this hook
        for deferral in concerned:
            deferral.complete()

    return registered


def _after_attribute(owner: object, value: object) -> None:
    for deferral in list(_waiting):
        # Containers are filled in every step; before the first, they may hold parts.
        kinds = _PARTS if deferral.has_stepped else (*_PARTS, *_CONTAINERS)
        if isinstance(value, kinds) and deferral.concerns(owner):
            deferral.complete()


def _before_call(module: nn.Module, inputs: object) -> None:
    del inputs
    for deferral in list(_waiting):
        if not deferral.has_stepped and deferral.concerns(module):
            deferral.complete()


def _before_step(optimizer: object, *_: object) -> None:
    """Look once more, and warn; later steps cost nothing."""
    del optimizer
    for deferral in list(_waiting):
        if not deferral.has_stepped:
            deferral.has_stepped = True
            deferral.complete()
            deferral.status.warn_if_ignored(stacklevel=4)
