"""What a parameter needs for its first step: slots, counters, its rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from thalweg.distribute import local_tensor
from thalweg.distribute.row_shards import sharded_rows
from thalweg.distribute.shards import whole_of
from thalweg.errors import describe, message
from thalweg.optim.counters import Counters
from thalweg.optim.described import Described
from thalweg.optim.formula import Formula, Slot
from thalweg.optim.rounding import rounding_in
from thalweg.state import name_of
from thalweg.state.huge_pages import prefer_huge_pages
from thalweg.step import Member

__all__ = ["Draft"]


@dataclass
class Draft:
    """The state a parameter will have; nothing of it is in force until `commit`.

    Attributes:
        position: Number of the parameter among all.
        parameter: The parameter.
        group: Its group.
        formula: What the group asks for.
        state: Its state with what was missing added.
        is_new: Whether slots were missing.
    """

    position: int
    parameter: torch.Tensor
    group: Mapping[str, Any]
    formula: Formula
    state: dict[str, Any]
    is_new: bool = False

    @torch.inference_mode(False)  # a tensor of that mode could not be written later
    @torch.no_grad()
    def complete(self, optimizer: Described, counters: Counters) -> None:
        """Add missing slots and counters.

        What follows from an option, such as the learning rate, is set anew as long as
        no step was taken: a checkpoint made before may have been made at rate 0.
        """
        started = "step" in self.state and float(self.state["step"]) > 0
        for slot in self.formula.all_slots:
            follows = isinstance(slot.initial, str) and optimizer.counts_in_state
            if slot.key not in self.state:
                self.is_new = True
            elif started or not follows:
                continue
            self.state[slot.key] = self._new_slot(optimizer, slot)
        if not optimizer.counts_in_state:
            counters["step"][self.position] = 0.0 if self.is_new else 1.0
            return
        initial = optimizer.counters
        for name, value in initial.items():
            if isinstance(value, str) and not started:
                self.state.pop(name, None)
        first = {n: self._number(value) for n, value in initial.items()}
        counters.adopt(self.position, self.state, first)

    def _number(self, initial: float | str) -> float:
        return float(self.group[initial] if isinstance(initial, str) else initial)

    def _new_slot(self, optimizer: Described, slot: Slot) -> torch.Tensor:
        parameter = self.parameter.detach()
        dtype = optimizer._options.dtype_of(slot.key, parameter.dtype)
        if slot.initial == "var":
            return _room_like(parameter, dtype).copy_(parameter)
        value = self._number(slot.initial)
        if slot.layout == "row" and parameter.ndim > 1:
            shape = (parameter.shape[0],) + (1,) * (parameter.ndim - 1)
            rows = sharded_rows(parameter, shape, dtype)
            if rows is None:
                rows = torch.empty(shape, dtype=dtype, device=parameter.device)
            return rows.fill_(value)
        return _room_like(parameter, dtype).fill_(value)

    def commit(self, optimizer: Described) -> None:
        """Put the state in force."""
        if self.state:
            optimizer.state[self.parameter].update(self.state)

    def is_probe(self, gradient: torch.Tensor) -> bool:
        """Whether this may be somebody who only wants the state to exist.

        `torch.distributed.checkpoint` takes a step with zero gradients at rate 0. Such
        a step makes slots, and neither counts nor changes anything.
        """
        rate, slots = self.group.get("lr"), self.formula.all_slots
        if rate != 0 or (slots and not self.is_new):
            return False
        has_any, whole = gradient.any(), whole_of(self.parameter)
        if whole is not None:  # ranks must agree, and one may have no element
            largest = torch.ones(1, dtype=torch.bool, device=gradient.device)
            has_any = whole.join(has_any.double().reshape(1, 1), largest)
        return not bool(has_any)

    def member(
        self, optimizer: Described, setting: int, label: str | None = None
    ) -> Member:
        """The parameter and its slots, as a plan takes them.

        Args:
            optimizer: Whose rule it is.
            setting: Row of its numbers.
            label: What it is told apart by, if bfloat16 is rounded by chance.

        Raises:
            ValueError: If a slot has another shape than it must, or cannot be rounded.
        """
        where, parameter = type(optimizer).__name__, self.parameter
        slots = self.formula.all_slots
        for slot in slots:
            self._check_slot(where, slot)
        layouts = tuple(s.layout if parameter.ndim > 1 else "like" for s in slots)
        tensors = (parameter, *(self.state[slot.key] for slot in slots))
        rounding = None
        if label is not None:
            keys = [slot.key for slot in slots]
            rounding = rounding_in(optimizer, label, parameter, keys, tensors[1:])
        return Member(
            self.formula.bind(optimizer.shape_flags(parameter.shape)),
            tuple(local_tensor(t) for t in tensors),
            layouts if "row" in layouts else (),
            setting,
            whole=whole_of(parameter),
            rounding=rounding,
        )

    def _check_slot(self, where: str, slot: Slot) -> None:
        value, shape = self.state[slot.key], tuple(self.parameter.shape)
        if slot.layout == "row" and len(shape) > 1:
            shape = shape[:1] + (1,) * (len(shape) - 1)
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
            name = name_of(self.parameter, "a parameter")
            raise ValueError(
                message(
                    f"{where}: state {slot.key!r} of {name}",
                    f"a tensor of shape {shape}",
                    describe(value),
                    "Delete the parameter's state, or load one that fits.",
                )
            )


def _room_like(parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    room = torch.empty_like(parameter, dtype=dtype)
    prefer_huge_pages(room)  # before its pages are there
    return room
