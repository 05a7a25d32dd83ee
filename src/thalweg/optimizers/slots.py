"""Slots and weights of an optimizer: creation, lookup, lists of arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from thalweg import distribute
from thalweg.distribute.components import component_of
from thalweg.errors import describe, message
from thalweg.optimizers.declarations import Slot
from thalweg.optimizers.hyperparameters import HyperparameterAccess
from thalweg.optimizers.initial import (
    Initializer,
    initial_value,
    new_slot,
    write_value,
)
from thalweg.optimizers.per_variable import match_patterns
from thalweg.optimizers.variables import trainable_of, variable_of
from thalweg.state import (
    Trackable,
    Variable,
    VariableList,
    as_variable,
    handle_of,
    name_of,
    register_names,
)
from thalweg.step import RowMode

__all__ = ["Entry", "SlotTable"]


@dataclass
class Entry:
    """What an optimizer keeps about one variable.

    The entry holds the variable itself, so that its ``id``, the key of the table,
    cannot be given to another object.

    Attributes:
        variable: The variable.
        slots: Its slots by name.
        setting: Number of the row of hyperparameters that holds for it.
        built_for: The slots that were asked for when it was built.
        rows: The mode of the last update of its rows, and the gradient's dtype.
    """

    variable: torch.Tensor
    slots: dict[str, torch.Tensor] = field(default_factory=dict)
    setting: int = 0
    built_for: tuple[str, ...] | None = None
    rows: tuple[RowMode, torch.dtype] | None = None


class SlotTable(HyperparameterAccess, Trackable):
    """The part of `Optimizer` that keeps slots and other weights."""

    _entries: dict[int, Entry]
    _shards: dict[int, Entry]
    _slot_names: list[str]
    _weights: list[torch.Tensor]
    _iterations: Variable | None
    _strategy: Any = None
    _counts_from_old_weights: ClassVar[bool] = False
    """Whether lists without ``iterations``, as old Keras wrote, are taken."""

    # -- iterations -----------------------------------------------------------

    @property
    def iterations(self) -> Variable:
        """Number of applied steps, an int64 `Variable` of shape ()."""
        if self._iterations is None:
            with torch.device("cpu"):  # where it is read, whatever the default is
                count = self.add_weight("iter", dtype=torch.int64, trainable=False)
            self._iterations = count
            self._weights.insert(0, count)
        return self._iterations

    @iterations.setter
    def iterations(self, variable: Variable) -> None:
        if self._iterations is not None:
            raise RuntimeError(
                "Cannot set `iterations` to a new Variable after the Optimizer "
                f"weights have been created. Here it is attempting to set it to "
                f"{describe(variable)}. Assign to the existing one instead."
            )
        self._iterations = variable
        self._weights.insert(0, variable)

    def _extended(self) -> Any:
        strategy = self._strategy or distribute.get_strategy()
        return strategy.extended

    # -- making weights -------------------------------------------------------

    def build(self, variables: Any) -> None:
        """Make `iterations` and the slots of some variables now.

        Args:
            variables: A module or `Trackable`, whose trainable variables are taken
                and whose names become known; or an iterable of variables, or of
                (name, variable) pairs.

        Raises:
            TypeError: If an entry is not a floating tensor.
            ValueError: If a ``per_variable`` pattern matches none of them.

        Example:
            >>> optimizer, model = tw.optimizers.Adam(), torch.nn.Linear(2, 1)
            >>> optimizer.build(model)
            >>> optimizer.get_slot(model.weight, "m").shape
            torch.Size([1, 2])
        """
        if isinstance(variables, (torch.nn.Module, Trackable)):
            register_names(variables)
            variables = trainable_of(variables)
        self._create_all_weights([variable_of(v) for v in variables])

    def _create_all_weights(self, var_list: Sequence[torch.Tensor]) -> None:
        """Make what a step on these variables needs and is not there yet."""
        _ = self.iterations
        slots = tuple(self.active_slots())
        new = [v for v in var_list if self._entry(v).built_for != slots]
        if not new:
            return
        self._refuse_unset()
        if self._settings.per_variable:
            self._match_patterns(var_list)
        self._create_slots([as_variable(v) for v in new])
        for variable in new:
            self._entry(variable).built_for = slots
        self._extended().broadcast_initial(new)

    def _match_patterns(self, var_list: Sequence[torch.Tensor]) -> None:
        table = self._settings.per_variable
        self._refuse_scaled_decay()
        overrides = match_patterns(type(self).__name__, table, var_list)
        for variable, found in zip(var_list, overrides, strict=True):
            self._entry(variable).setting = self._table.row_of(found)

    def active_slots(self) -> dict[str, Slot]:
        """The slots that exist with the flags and options as they are."""
        return {
            name: slot
            for name, slot in self._slots_declared.items()
            if slot.when is None or getattr(self, slot.when)
        }

    def _create_slots(self, var_list: Sequence[torch.Tensor]) -> None:
        """Make the declared slots; override it to add slots by hand."""
        for name, slot in self.active_slots().items():
            for variable in var_list:
                self._add_declared_slot(variable, name, slot)

    def slot_shape(
        self, slot_name: str, variable: torch.Tensor
    ) -> tuple[int, ...] | None:
        """The shape that the rule needs a slot to have; None if it knows no such slot.

        Args:
            slot_name: Name of the slot.
            variable: The variable that it belongs to.
        """
        declared = self._slots_declared.get(slot_name)
        return None if declared is None else declared.shape_beside(variable)

    def _add_declared_slot(self, variable: torch.Tensor, name: str, slot: Slot) -> None:
        initial: Any = slot.initial
        if initial == "var":
            initial = handle_of(variable).detach()
        elif isinstance(initial, str):
            initial = self.hyper_in_force(initial)
        self.add_slot(variable, name, initial, slot.shape_beside(variable))

    def add_slot(
        self,
        var: torch.Tensor,
        slot_name: str,
        initializer: Initializer = "zeros",
        shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:
        """Make a slot for a variable, or return the one that is there.

        Args:
            var: The variable.
            slot_name: Name of the slot.
            initializer: ``"zeros"``, ``"ones"``, a number, a tensor, or a function
                ``(shape, dtype) -> tensor``.
            shape: Shape of the slot, by default that of the variable.
            dtype: Its dtype, by default what ``slot_dtypes`` and the class say.

        Returns:
            The slot, a `Variable` on the variable's device and placement.

        Raises:
            ValueError: If the initial value has another shape, or the class's rule
                needs another one.
        """
        handle = handle_of(var)
        needed = self.slot_shape(slot_name, handle)
        if shape is not None and needed not in (None, tuple(shape)):
            raise ValueError(
                message(
                    f"{self._name}: {slot_name!r} of {name_of(handle, 'a variable')}",
                    f"shape {needed}, which the rule needs",
                    f"shape {tuple(shape)}",
                    "Leave the shape out.",
                )
            )
        entry = self._entry(handle)
        if slot_name not in self._slot_names:
            self._slot_names.append(slot_name)
        if slot_name not in entry.slots:
            declared = self._slots_declared.get(slot_name, Slot())
            policy = self._settings
            dtype = dtype or policy.slot_dtype(slot_name, declared.dtype, handle.dtype)
            default = tuple(handle.shape) if needed is None else needed
            size = default if shape is None else tuple(shape)
            name = f"{name_of(handle, 'Variable')}/{slot_name}"
            slot = new_slot(handle, name, size, dtype, initializer)
            entry.slots[slot_name] = slot
            self._weights.append(slot)
        return entry.slots[slot_name]

    def add_weight(
        self,
        name: str,
        shape: Sequence[int] = (),
        dtype: torch.dtype | None = None,
        initializer: Initializer = "zeros",
        trainable: bool | None = None,
    ) -> Variable:
        """Make a variable that belongs to the optimizer, not to a variable.

        Args:
            name: Its name.
            shape: Its shape.
            dtype: Its dtype, float32 by default.
            initializer: As for `add_slot`.
            trainable: Whether a tape watches it; True by default, as in Keras.

        Returns:
            The variable. It is tracked once it is an attribute of the optimizer.
        """
        value = initial_value(initializer, tuple(shape), dtype or torch.float32)
        return Variable(
            value, trainable=trainable is not False, name=f"{self._name}/{name}"
        )

    # -- looking up -----------------------------------------------------------

    def _entry(self, variable: torch.Tensor) -> Entry:
        handle = handle_of(variable)
        entry = self._entries.get(id(handle))
        if entry is None:
            entry = self._entries[id(handle)] = Entry(handle)
        return entry

    def _find(self, variable: torch.Tensor) -> Entry | None:
        """The entry of a variable, or of the variable that a shard belongs to."""
        key = id(handle_of(variable))
        return self._entries.get(key) or self._shards.get(key)

    def _built_entry(self, variable: torch.Tensor) -> Entry:
        entry = self._find(variable)
        if entry is None:
            raise KeyError(
                message(
                    type(self).__name__,
                    "a variable that was built",
                    f"{name_of(variable, 'a variable')}, a {describe(variable)}",
                    "Update it through apply_gradients, or build it first.",
                )
            )
        return entry

    def get_slot(self, var: torch.Tensor, slot_name: str) -> Any:
        """The slot of a variable.

        Args:
            var: The variable.
            slot_name: Name of the slot.

        Returns:
            The slot, a `Variable`; for a part of a variable, as an override is shown
            one of a sharded variable, that part of it.

        Raises:
            KeyError: If there is no such slot.
        """
        # An override asks this for every variable: most often with the variable itself.
        entry = self._entries.get(id(var)) or self._find(var)
        slot = None if entry is None else entry.slots.get(slot_name)
        if entry is None or slot is None:
            raise KeyError(
                message(
                    f"{type(self).__name__}.get_slot",
                    f"one of the slots {list(entry.slots) if entry else []}",
                    f"{slot_name!r} of {name_of(var, 'a variable')}",
                    "Call build(variables) or take a step first.",
                )
            )
        if self._shards and handle_of(var) is not entry.variable:
            return component_of(slot)
        return slot

    def get_slot_names(self) -> list[str]:
        """Names of the slots made so far."""
        return list(self._slot_names)

    def slot_variables(self) -> Iterator[tuple[torch.Tensor, str, Any]]:
        """All slots as (variable, slot name, slot), for a checkpoint."""
        for entry in self._entries.values():
            for name, slot in entry.slots.items():
                yield entry.variable, name, slot

    def restore_slot_variable(
        self, slot_name: str, variable: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Give a slot a saved value; a missing slot is made with the saved shape.

        Args:
            slot_name: Name of the slot.
            variable: The variable that it belongs to.
            value: The saved value.

        Raises:
            ValueError: If the slot exists with another shape.
        """
        slot = self.add_slot(variable, slot_name, "zeros", value.shape, value.dtype)
        if tuple(slot.shape) != tuple(value.shape):
            raise ValueError(
                message(
                    f"{self._name}: {slot_name!r} of {name_of(variable, 'a variable')}",
                    f"shape {tuple(slot.shape)}",
                    f"shape {tuple(value.shape)}",
                    "Restore into an optimizer of the same variables.",
                )
            )
        write_value(slot, value)

    # -- lists of weights -----------------------------------------------------

    @property
    def weights(self) -> VariableList:
        """`iterations`, then the slots in the order of their creation."""
        return VariableList(self._weights)

    @property
    def variables(self) -> VariableList:
        """`weights`, then variables that were set as attributes."""
        known = {id(w) for w in self._weights}
        attributes = super().variables
        return VariableList(
            [*self._weights, *(v for v in attributes if id(v) not in known)]
        )

    def get_weights(self) -> list[np.ndarray]:
        """`weights` as arrays; bfloat16 comes as float32.

        Returns:
            Copies, ``iterations`` first.
        """
        return [as_variable(w).numpy().copy() for w in self._weights]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set `weights` from arrays.

        Args:
            weights: As many arrays as `get_weights` gives, of the same shapes; of
                `Adadelta`, `Adagrad` and `RMSprop` also all but the first:
                ``iterations`` is 0 then.

        Raises:
            ValueError: If their number or a shape differs; nothing is changed then.
        """
        if self._counts_from_old_weights and len(weights) == len(self._weights) - 1:
            weights = [np.array(0), *weights]
        if len(weights) != len(self._weights):
            raise ValueError(
                f"You called `set_weights(weights)` on optimizer {self._name} with a "
                f"weight list of length {len(weights)}, but the optimizer expects "
                f"{len(self._weights)} weights. Call build(variables) first."
            )
        arrays = [torch.as_tensor(np.asarray(w), device="cpu") for w in weights]
        for own, given in zip(self._weights, arrays, strict=True):
            if tuple(own.shape) != tuple(given.shape):
                raise ValueError(
                    f"Optimizer weight shape {tuple(own.shape)} not compatible with "
                    f"provided weight shape {tuple(given.shape)}."
                )
        for own, given in zip(self._weights, arrays, strict=True):
            write_value(own, given)
