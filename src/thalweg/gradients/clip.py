"""Clipping of gradients, by value, by norm, and by the norm of all together.

Every function takes (gradient, variable) pairs and returns new ones; nothing is
written into a gradient, since two variables may share one. None passes through. Of
`IndexedSlices` the values are clipped as they are, before duplicates are summed. Norms
are formed in float64, in one order for any number of threads and any strides, and over
all shards of a sharded gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch

from thalweg.errors import message
from thalweg.gradients.wrapped import is_sharded
from thalweg.state import IndexedSlices

Pair: TypeAlias = tuple[Any, Any]

_RUN, _MOST = 1 << 14, 1 << 21
"""Elements that one thread adds up, and that are widened at a time."""


def clip_by_value(pairs: Iterable[Pair], clip_value: float) -> list[Pair]:
    """Force every element of every gradient into [−clip_value, clip_value].

        grad' = min(max(grad, −clip_value), clip_value)

    Args:
        pairs: (gradient, variable) pairs, read once.
        clip_value: Bound >= 0, in the unit of the gradient. NaN stays NaN.

    Returns:
        New pairs in the same order.

    Raises:
        ValueError: If the bound is negative or NaN.

    Example:
        >>> clip_by_value([(torch.tensor([-3.0, 0.5]), None)], 1.0)
        [(tensor([-1.0000,  0.5000]), None)]
    """
    bound = _checked("clip_by_value", clip_value)
    return [
        (_changed(grad, lambda values: values.clamp(-bound, bound)), variable)
        for grad, variable in pairs
    ]


def clip_by_norm(pairs: Iterable[Pair], clip_norm: float) -> list[Pair]:
    """Shorten each gradient that is longer than a bound to that length.

        grad' = grad · clip_norm / max(‖grad‖, clip_norm)

    Args:
        pairs: (gradient, variable) pairs, read once.
        clip_norm: Bound >= 0, in the unit of the gradient.

    Returns:
        New pairs in the same order.

    Raises:
        ValueError: If the bound is negative or NaN.

    Example:
        >>> clip_by_norm([(torch.tensor([3.0, 4.0]), None)], 1.0)
        [(tensor([0.6000, 0.8000]), None)]
    """
    bound = _checked("clip_by_norm", clip_norm)
    given = list(pairs)
    norms = iter(_norms([grad for grad, _ in given if grad is not None]))
    return [
        (None if grad is None else _shortened(grad, next(norms), bound), variable)
        for grad, variable in given
    ]


def clip_by_global_norm(
    pairs: Iterable[Pair], clip_norm: float, use_norm: torch.Tensor | None = None
) -> list[Pair]:
    """Scale all gradients by one number, so that together they are not too long.

        grad' = grad · clip_norm · min(1 / norm, 1 / clip_norm)

    Args:
        pairs: (gradient, variable) pairs, read once.
        clip_norm: Bound >= 0 on the norm of all gradients together.
        use_norm: That norm, where it is known already.

    Returns:
        New pairs in the same order; all NaN if the norm is not finite.

    Raises:
        ValueError: If the bound is negative or NaN.

    Example:
        >>> clip_by_global_norm([(torch.tensor(3.0), 0), (torch.tensor(4.0), 1)], 1.0)
        [(tensor(0.6000), 0), (tensor(0.8000), 1)]
    """
    bound = _checked("clip_by_global_norm", clip_norm)
    given = list(pairs)
    grads = [grad for grad, _ in given if grad is not None]
    if not grads:
        return given
    norm = _length(_norms(grads)) if use_norm is None else torch.as_tensor(use_norm)
    factor = torch.where(torch.isfinite(norm), _factor(norm, bound), torch.nan)
    return [(_changed(grad, lambda v: _scaled(v, factor)), var) for grad, var in given]


def global_norm(gradients: Iterable[Any]) -> torch.Tensor:
    """Return the length of all gradients taken as one vector.

    Args:
        gradients: Tensors, `IndexedSlices` or None, read once.

    Returns:
        A scalar on the device of the first gradient, of the widest dtype of all, and
        of float32 at least; 0 without any.

    Example:
        >>> global_norm([torch.tensor([3.0]), None, torch.tensor([4.0])])
        tensor(5.)
    """
    grads = [grad for grad in gradients if grad is not None]
    if not grads:
        return torch.zeros(())
    widest = torch.float32
    for grad in grads:
        widest = torch.promote_types(widest, _values(grad).dtype)
    return _length(_norms(grads)).to(widest)


def widened(grad: Any) -> Any:
    """A gradient with the room of float32, for what is done before an update.

    The functions above round what they give to the gradient's dtype. An update rounds
    by itself, so that a half-precision gradient is not to be rounded twice.

    Args:
        grad: A tensor, `IndexedSlices` or None.

    Returns:
        The same, or a new one of float32.
    """

    def change(values: torch.Tensor) -> torch.Tensor:
        return values.to(torch.promote_types(values.dtype, torch.float32))

    return _changed(grad, change)


def _checked(where: str, bound: float) -> float:
    number = float(bound)
    if number >= 0:
        return number
    raise ValueError(
        message(
            where,
            "a bound >= 0",
            repr(bound),
            "Pass None to the optimizer for no clipping.",
        )
    )


def _values(grad: Any) -> torch.Tensor:
    return grad.values if isinstance(grad, IndexedSlices) else grad


def _changed(grad: Any, change: Any) -> Any:
    if grad is None:
        return None
    if isinstance(grad, IndexedSlices):
        return grad.with_values(change(grad.values))
    return change(grad)


def _factor(norm: torch.Tensor, bound: float) -> torch.Tensor:
    """What brings a length down to a bound; one that is within it stays."""
    return torch.where(norm <= bound, 1.0, bound / norm)


def _shortened(grad: Any, norm: torch.Tensor, bound: float) -> Any:
    return _changed(grad, partial(_scaled, factor=_factor(norm, bound)))


def _length(norms: Sequence[torch.Tensor]) -> torch.Tensor:
    device = norms[0].device
    return torch.linalg.vector_norm(torch.stack([n.to(device) for n in norms]))


def _scaled(values: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return (wide * factor.to(device=wide.device, dtype=wide.dtype)).to(values.dtype)


def _norms(gradients: Sequence[Any]) -> list[torch.Tensor]:
    """Return the norm of each gradient, of a sharded one over all its shards."""
    values = [_values(grad) for grad in gradients]
    norms = [None if is_sharded(v) else _norm(v) for v in values]
    shards = [index for index, norm in enumerate(norms) if norm is None]
    for index, norm in zip(shards, _sharded([values[i] for i in shards]), strict=True):
        norms[index] = norm
    return [norm for norm in norms if norm is not None]


def _norm(values: torch.Tensor) -> torch.Tensor:
    flat = values.reshape(-1)
    runs = len(flat) // _RUN * _RUN
    parts = [*flat[:runs].view(-1, _RUN).split(_MOST // _RUN), flat[None, runs:]]
    norms = [torch.linalg.vector_norm(p, dim=1, dtype=torch.float64) for p in parts]
    return torch.linalg.vector_norm(torch.cat(norms))


def _sharded(values: Sequence[Any]) -> list[torch.Tensor]:
    """Return the norms of sharded tensors with one reduction for each way of sharding.

    The squares are summed shard by shard; what is left to add over the mesh is done
    for all tensors of a kind together.
    """
    squares = [_sum_of_squares(value) for value in values]
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, square in enumerate(squares):
        groups[square.device_mesh, square.placements].append(index)
    norms: dict[int, torch.Tensor] = {}
    for (mesh, placements), members in groups.items():
        local = torch.stack([squares[index].to_local() for index in members])
        kind = type(squares[members[0]])
        total = kind.from_local(local, mesh, placements, run_check=False).full_tensor()
        norms.update(zip(members, total.sqrt().unbind(), strict=True))
    return [norms[index] for index in range(len(values))]


def _sum_of_squares(value: Any) -> Any:
    wide = value.to(torch.float64)
    return (wide * wide).sum()
