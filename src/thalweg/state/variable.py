"""Variable: a `Parameter` with a name, a handle and the assignments of Keras.

A Variable is registered by modules, trained by any optimizer and saved like a
parameter. Everything beyond the numbers (name, constraint, place in the order of
creation) lies in tables beside the tensor, because sharding replaces tensors.
"""

from __future__ import annotations

import copy
import functools
import itertools
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from thalweg.errors import describe, message
from thalweg.state.assignable import Assignable
from thalweg.state.conversion import initial_data, is_differentiable
from thalweg.state.names import given_name, name_of, set_name
from thalweg.state.placement import gather, is_sharded
from thalweg.state.weak_table import WeakTable

Constraint = Callable[[torch.Tensor], Any]

_constraints: WeakTable[Constraint] = WeakTable()
_creation_indices: WeakTable[int] = WeakTable()
_counter = itertools.count()
# The view of a tensor, and what the tensor was like when the view was made.
_views: WeakTable[tuple[Variable, *tuple[Any, ...]]] = WeakTable()
# Gives a variable itself, without a Python frame: overrides ask for every handle.
_itself: Any = property(functools.partial(dict[Any, Any]().get, None))


class _VariableMeta(type(nn.Parameter)):
    """Makes `isinstance(x, Variable)` an ordinary, and fast, check of the class."""

    __instancecheck__ = type.__instancecheck__


class Variable(Assignable, nn.Parameter, metaclass=_VariableMeta):
    """A tensor that a program updates, by assignment or by an optimizer.

    Operations on it give plain tensors. Its data are always its own copy.

    Args:
        initial_value: Tensor, array, number, nested list, or a function returning one.
            Python floats become torch's default dtype, integers int64.
        trainable: Whether gradients are wanted; ignored for integers and booleans.
        name: A name of the user's own; the place in a model gives one otherwise.
        dtype: Dtype to convert to; that of the initial value by default.
        constraint: Function from value to value, applied after an update.
        device: Device; by default that of the initial value, or the placement in
            force inside `colocate_with`.

    Raises:
        TypeError: If the initial value cannot be made a dense tensor.

    Example:
        >>> variable = Variable([1.0, 2.0], name="scale")
        >>> variable.assign_add([0.5, 0.5]).numpy().tolist(), variable.name
        ([1.5, 2.5], 'scale')
    """

    # By identity, as of any tensor, but in C: an override asks for every slot.
    __hash__ = object.__hash__

    handle: torch.Tensor = _itself
    """The tensor that is written: the variable itself; of a view, its original."""

    def __new__(
        cls,
        initial_value: Any,
        trainable: bool = True,
        name: str | None = None,
        dtype: torch.dtype | None = None,
        constraint: Constraint | None = None,
        device: torch.device | str | None = None,
    ) -> Variable:
        """Make the tensor; the arguments are described at the class."""
        # Tensors made in inference mode could never be trained.
        with torch.inference_mode(False), torch.no_grad():
            data = initial_data(initial_value, dtype, device)
        return cls._wrap(data, trainable)

    def __init__(
        self,
        initial_value: Any,
        trainable: bool = True,
        name: str | None = None,
        dtype: torch.dtype | None = None,
        constraint: Constraint | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        del initial_value, trainable, dtype, device  # `__new__` has used them.
        set_name(self, name)
        self.constraint = constraint

    @classmethod
    def _wrap(cls, data: torch.Tensor, trainable: bool) -> Variable:
        """Make `data` itself a variable."""
        requires_grad = trainable and is_differentiable(data.dtype)
        if is_sharded(data):
            variable: Any = data.detach().requires_grad_(requires_grad)
            variable.__class__ = _sharded_class(Variable)
        else:
            variable = torch.Tensor._make_subclass(cls, data, requires_grad)
        creation_index(variable)
        return variable

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The name given to it, else its place in a model, else "Variable"."""
        handle = self.handle
        return given_name(handle) or name_of(handle, "Variable")

    @name.setter
    def name(self, name: str | None) -> None:
        set_name(self.handle, name)

    @property
    def trainable(self) -> bool:
        """Whether gradients are wanted for it."""
        return self.handle.requires_grad

    @trainable.setter
    def trainable(self, trainable: bool) -> None:
        handle = self.handle
        if trainable and not is_differentiable(handle.dtype):
            raise ValueError(
                message(
                    f"trainable of {self.name!r}",
                    "a floating point or complex variable",
                    describe(handle),
                    "Give the variable such a dtype.",
                )
            )
        handle.requires_grad_(trainable)

    @property
    def constraint(self) -> Constraint | None:
        """Function from value to value, applied after an update; or None."""
        return _constraints.get(self.handle)

    @constraint.setter
    def constraint(self, constraint: Constraint | None) -> None:
        if constraint is None:
            _constraints.discard(self.handle)
        else:
            _constraints.set(self.handle, constraint)

    def numpy(self, *, force: bool = False) -> np.ndarray[Any, Any]:
        """Return a copy of the value as an array; bfloat16 comes as float32.

        A sharded variable is gathered: every rank must call this.
        """
        data = gather(self.handle.detach()).cpu()
        if data.dtype == torch.bfloat16:
            data = data.float()
        return np.array(data.numpy(force=force))

    def __deepcopy__(self, memo: dict[int, Any]) -> Variable:
        known = memo.get(id(self))
        if known is not None:
            return known
        handle = self.handle
        if handle is not self:
            result = as_variable(copy.deepcopy(handle, memo))
        else:
            data = self.data.clone(memory_format=torch.preserve_format)
            result = type(self)._wrap(data, self.requires_grad)
            set_name(result, given_name(self))
            result.constraint = copy.deepcopy(self.constraint, memo)
        memo[id(self)] = result
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        handle = self.handle
        if handle is not self:
            return as_variable, (handle,)
        data, constraint = self.data, self.constraint
        name, attributes = given_name(self), dict(vars(self))
        state = (data, self.requires_grad, name, constraint, attributes)
        return _rebuild_variable, state

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"<Variable {self.name!r}: {self.handle.detach()!r}>"


class VariableView(Variable):
    """A tensor that is not a Variable, with the face of one."""

    _original: weakref.ref[torch.Tensor]  # weak: the table of views hangs on it
    _wrap: Any = Variable._wrap  # a copy of one that outlived its original is no view

    @property
    def handle(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The original, for as long as it lives."""
        original = self._original()
        return self if original is None else original


_ITS_OWN_HANDLE = {Variable, nn.Parameter, torch.Tensor}


def as_variable(tensor: torch.Tensor) -> Variable:
    """Give a parameter or tensor the face of a Variable, without copying.

    The view shares storage and version counter with the original: what is assigned to
    one is seen in the other and by autograd. It is kept for as long as the original
    lives, and made anew once the original has other memory, shape or dtype. The view
    of a sharded tensor is made at each call: its shards are replaced unseen.

    Args:
        tensor: A parameter, a plain tensor or a sharded one.

    Returns:
        The tensor itself if it is a Variable, else its view.

    Raises:
        TypeError: If it is not a dense tensor.

    Example:
        >>> parameter = nn.Parameter(torch.zeros(2))
        >>> view = as_variable(parameter).assign([1.0, 2.0])
        >>> view.handle is parameter, parameter.tolist()
        (True, [1.0, 2.0])
    """
    # `isinstance` would go through the Python metaclass of Parameter.
    if issubclass(type(tensor), Variable):
        return cast(Variable, tensor)
    known = _views.get(tensor)
    if known is not None and known[1:] == _signature(tensor):
        return known[0]
    if getattr(tensor, "layout", None) != torch.strided:
        raise TypeError(
            message("as_variable", "a dense tensor", describe(tensor), "Pass one.")
        )
    return _make_view(tensor)


def has_constraints() -> bool:
    """Whether any live variable has a constraint; costs nothing to ask."""
    return len(_constraints) > 0


def constrained(variables: Iterable[torch.Tensor]) -> list[Variable]:
    """Those of some variables that have a constraint.

    Args:
        variables: Variables, parameters or tensors.

    Returns:
        The face of each, in order; no view is made of the others.
    """
    if not has_constraints():
        return []
    handles = list(variables)
    if not set(map(type, handles)) <= _ITS_OWN_HANDLE:
        handles = list(map(handle_of, handles))
    return list(map(as_variable, _constraints.keys_among(handles)))


def handle_of(value: object) -> torch.Tensor:
    """Return the tensor to write for a Variable or a tensor.

    Args:
        value: A Variable (its handle is returned) or any tensor.

    Raises:
        TypeError: If it is neither.
    """
    if issubclass(type(value), Variable):
        return cast(Variable, value).handle
    if isinstance(value, torch.Tensor):
        return value
    raise TypeError(
        message("handle_of", "a Variable or a tensor", describe(value), "Pass one.")
    )


def creation_index(variable: torch.Tensor) -> int:
    """Return the place of a variable in the order of creation.

    A tensor that is not a Variable takes its place when it is first asked about.

    Args:
        variable: A Variable, a view, or any tensor.
    """
    handle = handle_of(variable)
    index = _creation_indices.get(handle)
    if index is None:
        index = next(_counter)
        _creation_indices.set(handle, index)
    return index


def _make_view(tensor: torch.Tensor) -> Variable:
    alias: Any = tensor.detach()
    if is_sharded(tensor):
        alias.__class__ = _sharded_class(VariableView)
    else:
        alias = torch.Tensor._make_subclass(VariableView, alias, False)
        _views.set(tensor, (alias, *_signature(tensor)))
    alias._original = weakref.ref(tensor)
    return alias


def _signature(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what must stay the same for a view to show the same numbers."""
    layout = tensor.shape, tensor.stride(), tensor.dtype
    return (tensor.data_ptr(), *layout, tensor.device)


@functools.cache
def _sharded_class(kind: type[Variable]) -> type[Variable]:
    """Return the class of variables, or views, on a mesh: DTensors with their face.

    It is made when the first is: importing DTensor takes over a second.
    """
    sharding: Any = sys.modules["torch.distributed.tensor"]
    bases: Any = (kind, sharding.DTensor)
    name = f"Sharded{kind.__name__}"
    return cast("type[Variable]", _VariableMeta(name, bases, {}))


def _rebuild_variable(
    data: torch.Tensor,
    requires_grad: bool,
    name: str | None,
    constraint: Constraint | None,
    attributes: dict[str, Any],
) -> Variable:
    variable = Variable._wrap(data, requires_grad)  # pyright: ignore[reportPrivateUsage]
    set_name(variable, name)
    variable.constraint = constraint
    vars(variable).update(attributes)
    return variable


# Both rebuild plain tensors only, so that `torch.load` may call them unasked.
torch.serialization.add_safe_globals(  # pyright: ignore[reportUnknownMemberType]
    [_rebuild_variable, as_variable]
)
