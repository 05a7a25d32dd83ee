"""From a variable to the part of it that lies in this process.

An update is computed on components: plain tensors on one device. A plain variable
is its own component; a DTensor's is its local shard, and what is computed with it
has to be cut the same way. `local_tensor` is the one function that reaches into a
DTensor.
"""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Callable, Iterable
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from thalweg import errors
from thalweg.state import (
    IndexedSlices,
    Variable,
    as_variable,
    handle_of,
    name_of,
    set_name,
)
from thalweg.state.weak_table import WeakTable

_DTENSOR_MODULE = "torch.distributed.tensor"
_spec_of: Callable[[Any], object] = attrgetter("_spec")  # mesh, placements and shape

# Local shard -> weak reference to the variable it is a part of.
_containers: WeakTable[weakref.ref[Tensor]] = WeakTable()


def is_distributed(tensor: object) -> bool:
    """Whether this is a DTensor.

    Importing DTensor takes a second, and while nobody has, nothing can be one.
    """
    module = sys.modules.get(_DTENSOR_MODULE)
    return module is not None and isinstance(tensor, module.DTensor)


def any_distributed(tensors: Iterable[object]) -> bool:
    """Whether one of these is a DTensor; no Python frame for each of them."""
    module = sys.modules.get(_DTENSOR_MODULE)
    if module is None:
        return False
    return any(issubclass(kind, module.DTensor) for kind in set(map(type, tensors)))


def local_tensor(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process.

    Args:
        tensor: a plain tensor or a DTensor.

    Returns:
        Tensor: the local shard, sharing memory; a plain tensor itself.
    """
    if not is_distributed(tensor):
        return tensor
    # `to_local` costs a hundred times as much, and is part of the autograd graph.
    local: Tensor = tensor._local_tensor  # type: ignore[attr-defined]
    wait = getattr(local, "wait", None)
    return local if wait is None else wait()


def component_of(handle: Tensor) -> Variable:
    """The component of a DTensor that an update function is given.

    Args:
        handle: a DTensor.

    Returns:
        Variable: shares memory and version counter with the local shard.
    """
    local = local_tensor(handle)
    if container_of(local) is not handle:
        _containers.set(local, weakref.ref(handle))
        set_name(local, name_of(handle))
    return as_variable(local)


def container_of(component: Tensor) -> Tensor:
    """The variable that a component is a part of; a plain variable itself."""
    handle = handle_of(component)
    reference = _containers.get(handle)
    container = None if reference is None else reference()
    return handle if container is None else container


def place_arguments(value: Any, variable: Tensor) -> Any:
    """Bring what an update needs to where the variable's component lies.

    Tensors and `IndexedSlices`, also in lists, tuples and dicts, are moved to the
    variable's device; for a DTensor, one of the variable's shape is brought to the
    variable's placements and its local shard is taken. Anything else is kept.

    Args:
        value: an argument, or a nest of arguments.
        variable: the variable to be updated (not a view of it).

    Returns:
        The same nest, with each tensor in place.

    Raises:
        ValueError: a DTensor of another mesh; rows for placements that are neither
            sharded nor replicated.
    """
    if isinstance(value, Tensor):
        return _place_tensor(value, variable)
    if isinstance(value, IndexedSlices):
        rows = value if value.device == variable.device else value.to(variable.device)
        return _rows_of_shard(rows, variable) if is_distributed(variable) else rows
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(place_arguments(v, variable) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)([place_arguments(v, variable) for v in value])
    if isinstance(value, dict):
        return {k: place_arguments(v, variable) for k, v in value.items()}
    return value


def _place_tensor(tensor: Tensor, variable: Tensor) -> Tensor:
    """One tensor to the device, or cut like the DTensor, of a variable."""
    if is_distributed(variable):
        return _shard_like(tensor, variable)
    tensor = placed_like(tensor, variable)
    return tensor if tensor.device == variable.device else tensor.to(variable.device)


def _shard_like(tensor: Tensor, variable: Any) -> Tensor:
    """The part of a tensor that belongs to the local shard of a DTensor."""
    if tensor.shape == variable.shape:
        return local_tensor(placed_like(tensor, variable))
    if is_distributed(tensor):
        return local_tensor(tensor)
    return tensor.detach().to(variable.device)


def are_placed_like(tensors: Iterable[Any], variables: Iterable[Any]) -> bool:
    """Whether all are DTensors that share their placement with their variables.

    As FSDP2 leaves gradients; found out with no Python frame for each of them. False
    asks for a closer look.
    """
    try:
        return all(map(is_, map(_spec_of, tensors), map(_spec_of, variables)))
    except AttributeError:
        return False


def placed_like(tensor: Any, variable: Any) -> Any:
    """A tensor of a variable's shape with the mesh and placements of the variable.

    Args:
        tensor: a plain tensor, which every rank has as a whole, or a DTensor.
        variable: a plain tensor or a DTensor.

    Returns:
        A DTensor for a DTensor, else a plain tensor; the argument itself if it is
        placed so already. Only a DTensor placed otherwise is communicated.

    Raises:
        ValueError: both are DTensors, of different meshes.
    """
    if not is_distributed(variable):
        return tensor.full_tensor() if is_distributed(tensor) else tensor
    if not is_distributed(tensor):
        # Every rank has the whole tensor: cutting it needs no communication.
        return sys.modules[_DTENSOR_MODULE].distribute_tensor(
            tensor.detach().to(variable.device),
            variable.device_mesh,
            variable.placements,
            src_data_rank=None,
        )
    if tensor.device_mesh != variable.device_mesh:
        raise ValueError(
            errors.message(
                "update",
                f"arguments on the variable's mesh {variable.device_mesh}",
                f"a DTensor on {tensor.device_mesh}",
                "Redistribute it to the variable's mesh before the update.",
            )
        )
    if tensor.placements == variable.placements:
        return tensor
    return tensor.redistribute(placements=variable.placements)


def _rows_of_shard(slices: IndexedSlices, variable: Any) -> IndexedSlices:
    """The rows, and of each row the columns, that lie in the local shard."""
    module = sys.modules[_DTENSOR_MODULE]
    if any(
        type(p) not in (module.Shard, module.Replicate) for p in variable.placements
    ):
        raise ValueError(
            errors.message(
                "update",
                "a variable that is sharded or replicated, for a sparse gradient",
                f"placements {variable.placements}",
                "Use a dense gradient (`sparse=False`) for this variable.",
            )
        )
    boxes = importlib.import_module("torch.distributed.tensor._utils")
    shape, offset = boxes.compute_local_shape_and_global_offset(
        variable.shape, variable.device_mesh, variable.placements
    )
    first, last = offset[0], offset[0] + shape[0]
    chosen = (slices.indices >= first) & (slices.indices < last)
    values = slices.values[chosen]
    for axis in range(1, len(shape)):
        values = values.narrow(axis, offset[axis] if shape[axis] else 0, shape[axis])
    return IndexedSlices(values, slices.indices[chosen] - first, tuple(shape))


def numbered_device(device: torch.device) -> torch.device:
    """A device with its number: ``cuda`` becomes ``cuda:0``, the current one."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
