"""First values of slots and weights, and the tensors that hold them."""

from __future__ import annotations

from typing import Any

import torch

from thalweg.distribute import local_tensor
from thalweg.distribute.components import place_arguments
from thalweg.distribute.row_shards import sharded_rows
from thalweg.errors import describe, message
from thalweg.optimizers.declarations import plain_number
from thalweg.state import Variable, colocate_with

__all__ = ["Initializer", "initial_value", "new_slot", "write_value"]

Initializer = Any
"""``"zeros"``, ``"ones"``, a number, a tensor, or a function of shape and dtype."""

_BY_NAME = {"zeros": 0.0, "ones": 1.0}


def initial_value(
    initializer: Initializer,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Make the first value of a slot or weight.

    Args:
        initializer: ``"zeros"``, ``"ones"``, a number, a tensor of that shape, or a
            function ``(shape, dtype) -> tensor``.
        shape: Shape of the result.
        dtype: Dtype of the result.
        device: Device of the result, the default one if None.

    Returns:
        A new tensor.

    Raises:
        ValueError: If the initializer is unknown or gives another shape.
    """
    value = _by_name(initializer)
    if callable(value) and not isinstance(value, torch.Tensor):
        value = value(shape, dtype=dtype)
    if isinstance(value, (int, float)):
        return torch.full(shape, value, dtype=dtype, device=device)
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
        raise ValueError(
            message(
                "initializer",
                f"'zeros', 'ones', a number, or a tensor or function of shape {shape}",
                repr(value) if isinstance(value, str) else describe(value),
                "Pass one of these.",
            )
        )
    return value.detach().to(dtype=dtype, device=device, copy=True)


def _by_name(initializer: Initializer) -> Any:
    """An initializer with the number in place of its name, or of a NumPy one."""
    if isinstance(initializer, str):
        return _BY_NAME.get(initializer, initializer)
    return plain_number(initializer)


def new_slot(
    variable: torch.Tensor,
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    initializer: Initializer,
) -> torch.Tensor:
    """Make a slot where its variable lies: device, placement, order of strides.

    Args:
        variable: The variable.
        name: Name of the slot.
        shape: Shape of the slot.
        dtype: Dtype of the slot.
        initializer: As for `initial_value`. Each rank takes its part of a tensor, and
            of what a function gives; that is equal on all ranks.

    Returns:
        A `Variable`; for a sharded variable a DTensor with the same placements, also
        where it has one number for each row and the variable is cut between rows.

    Raises:
        ValueError: If the initializer is unknown or gives another shape.
    """
    like = shape == tuple(variable.shape)
    rows = None if like else sharded_rows(variable, shape, dtype)
    if rows is not None or (like and hasattr(variable, "placements")):
        slot: Any = rows
        if slot is None:
            slot = torch.zeros_like(variable, dtype=dtype, requires_grad=False)
        start = _by_name(initializer)
        if isinstance(start, (int, float)):
            return slot.fill_(start)
        value = initial_value(start, shape, dtype, variable.device)
        return write_value(slot, value)
    value = initial_value(initializer, shape, dtype, variable.device)
    with colocate_with(variable):
        slot = Variable(value, trainable=False, name=name)
    if like and slot.stride() != variable.stride():
        slot.data = torch.empty_like(variable, dtype=dtype).copy_(value).detach()
    return slot


@torch.no_grad()
def write_value(target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Write the whole value of a tensor, of which this process may hold a part.

    Args:
        target: A tensor, or a DTensor.
        value: Of its shape, any dtype; plain ones are equal on all ranks.

    Returns:
        The target.
    """
    local_tensor(target).copy_(place_arguments(value, target))
    return target
