"""Gradients as a step takes them: sorted, local, and clipped where no pass can."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any, NamedTuple

import torch

from thalweg.distribute import is_distributed, local_tensor
from thalweg.distribute.components import (
    any_distributed,
    are_placed_like,
    place_arguments,
    placed_like,
)
from thalweg.distribute.finite import are_nonfinite
from thalweg.gradients import clip_by_global_norm
from thalweg.gradients.clip import widened
from thalweg.optim.options import NO_TRANSFORMS, Options
from thalweg.optim.roster import Kinds
from thalweg.state import IndexedSlices, as_gradient
from thalweg.step import NonFinite, Plan, Transforms, refuse_nonfinite
from thalweg.step.device_kernel import has_device_kernels
from thalweg.step.device_step import StepClock
from thalweg.step.transforms import leave_to_device

__all__ = ["Resolved", "resolve"]


class _Check(NamedTuple):
    """Which gradients are finite, found out on a device, and what follows from it."""

    policy: NonFinite
    parameters: Sequence[torch.Tensor]
    is_finite: torch.Tensor


class Resolved(NamedTuple):
    """The gradients of a step.

    Attributes:
        kinds: See `Kinds`.
        dense: Local dense gradients, in the order of the parameters that have one.
        rows: Sparse gradients in that order.
        transforms: What is left to do in the step's own pass.
        is_recognized: Whether the last plan knows parameters and gradients.
        check: What a device has found out about the gradients; None if no device was
            asked.
    """

    kinds: Kinds
    dense: Sequence[torch.Tensor]
    rows: Sequence[IndexedSlices]
    transforms: Transforms
    is_recognized: bool = False
    check: _Check | None = None

    def tell(self, clock: StepClock) -> None:
        """Let a device do what follows from what it has found out.

        Args:
            clock: Counts the steps there.
        """
        if self.check is not None:
            leave_to_device(clock, *self.check)


def resolve(
    gradients: list[Any],
    kinds: Kinds,
    parameters: Sequence[torch.Tensor],
    options: Options,
    *,
    needs_all_rows: bool,
    is_left: bool = False,
) -> Resolved | None:
    """Sort gradients, and make sparse ones what the rule needs.

    Args:
        gradients: What is in ``.grad``, for each parameter.
        kinds: What they are.
        parameters: The parameters.
        options: Clips, checks, and the policy for sparse gradients.
        needs_all_rows: Whether the rule reads a whole parameter.
        is_left: Whether a device decides which steps are taken.

    Returns:
        The gradients, or None if the step is left out.

    Raises:
        FloatingPointError: If a gradient has an inf or NaN, that is an error, and no
            device decides about it.
    """
    transforms, check = options.transforms, None
    if kinds is not None and 2 in kinds:
        is_exact = needs_all_rows or options.sparse_update == "exact"
        gradients, kinds = _without_coo(gradients, kinds, is_exact=is_exact)
    present = gradients if kinds is None else list(compress(gradients, kinds))
    chosen = parameters if kinds is None else list(compress(parameters, kinds))
    has_shards = any_distributed((*present, *chosen))
    if has_shards and not are_placed_like(present, chosen):
        present = list(map(_placed, present, chosen))
    if transforms is not NO_TRANSFORMS and not Plan.can_fold(present):
        if is_left and not any(map(is_distributed, _values_of(present))):
            check = _left_check(present, chosen, options)
        elif not _are_finite(present, chosen, options):
            return None
        present = _clipped(present, chosen, options)
        transforms = NO_TRANSFORMS
    rows = [g for g in present if isinstance(g, IndexedSlices)]
    if has_shards and rows:
        rows = _cut_rows(present, chosen)
    dense = [local_tensor(g) for g in present if not isinstance(g, IndexedSlices)]
    return Resolved(kinds, dense, rows, transforms, check=check)


def _without_coo(
    gradients: list[Any], kinds: tuple[int, ...], *, is_exact: bool
) -> tuple[list[Any], tuple[int, ...]]:
    """Sparse gradients as checked rows, or as dense tensors with zero rows."""
    new, sorts = list(gradients), list(kinds)
    for i, kind in enumerate(kinds):
        if kind == 2:
            gradient = gradients[i].detach()
            is_rows = gradient.layout == torch.sparse_coo and gradient.sparse_dim() == 1
            if is_exact or not is_rows:
                wide = torch.promote_types(gradient.dtype, torch.float32)
                new[i], sorts[i] = gradient.to(wide).to_dense(), 1
            else:
                new[i] = as_gradient(gradient)
                if not has_device_kernels(gradient.device):  # which look themselves
                    new[i].check_bounds()
    return new, tuple(sorts)


def _placed(gradient: Any, parameter: torch.Tensor) -> Any:
    """A dense gradient placed as its parameter, on which clips read the whole of it."""
    is_sparse = isinstance(gradient, IndexedSlices)
    return gradient if is_sparse else placed_like(gradient, parameter)


def _cut_rows(
    gradients: Sequence[Any], parameters: Sequence[torch.Tensor]
) -> list[IndexedSlices]:
    """Of sparse gradients the rows that lie in the local parts of their parameters."""
    pairs = list(zip(gradients, parameters, strict=True))
    for gradient, parameter in pairs:
        if isinstance(gradient, IndexedSlices) and is_distributed(parameter):
            gradient.check_bounds()  # no part has a row that is nowhere
    return [place_arguments(g, p) for g, p in pairs if isinstance(g, IndexedSlices)]


def _values_of(gradients: Sequence[Any]) -> list[torch.Tensor]:
    return [g.values if isinstance(g, IndexedSlices) else g for g in gradients]


def _left_check(
    gradients: Sequence[Any], parameters: Sequence[torch.Tensor], options: Options
) -> _Check | None:
    """Find out on their device which gradients are finite; nothing waits."""
    if options.nonfinite == "off" or not gradients:
        return None
    found = [torch.isfinite(value).all() for value in _values_of(gradients)]
    return _Check(options.nonfinite, list(parameters), torch.stack(found))


def _are_finite(
    gradients: Sequence[Any], parameters: Sequence[torch.Tensor], options: Options
) -> bool:
    """Whether the step may be taken; every rank of a sharded model says the same."""
    if options.nonfinite == "off" or not gradients:
        return True
    found = list(compress(parameters, are_nonfinite(_values_of(gradients))))
    if found and options.nonfinite == "error":
        refuse_nonfinite(found)
    return not found


def _clipped(
    gradients: Sequence[Any], parameters: Sequence[torch.Tensor], options: Options
) -> list[Any]:
    if options.max_grad_norm is None:
        return list(gradients)
    # The norm is that of the gradient, not of the parts that duplicates come in.
    wide = map(widened, gradients)
    whole = [_summed(g) if isinstance(g, IndexedSlices) else g for g in wide]
    pairs = list(zip(whole, parameters, strict=True))
    return [g for g, _ in clip_by_global_norm(pairs, options.max_grad_norm)]


def _summed(slices: IndexedSlices) -> IndexedSlices:
    """Slices whose values are those of the whole gradient, but for zeros."""
    is_here = slices.indices.is_cpu
    return slices.sum_duplicates() if is_here else slices.sum_at_first()
