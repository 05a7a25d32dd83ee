"""The hooks of Keras 2 by which a class updates variables by hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from thalweg.optimizers.application import RuleApplication
from thalweg.raw_ops import ResourceScatterAdd, ResourceScatterUpdate
from thalweg.state import IndexedSlices

__all__ = ["Keras2Protocol"]


@cache
def _takes_state(hook: Callable[..., Any]) -> bool:
    """Whether an override takes ``apply_state``; to ask is slower than to update."""
    return "apply_state" in inspect.signature(hook).parameters


class Keras2Protocol(RuleApplication):
    """The part of `Optimizer` that serves overrides of the Keras 2 kind."""

    @property
    def _applies_by_hand(self) -> bool:
        return (
            type(self)._resource_apply_dense
            is not RuleApplication._resource_apply_dense
        )

    def _prepare(self, var_list: Sequence[torch.Tensor]) -> dict[Any, dict[str, Any]]:
        """Per-step numbers for each device and dtype, as Keras hands them to hooks."""
        if not self._applies_by_hand:
            return {}
        keys = dict.fromkeys((v.device, v.dtype) for v in var_list)
        apply_state: dict[Any, dict[str, Any]] = {}
        for device, dtype in keys:
            apply_state[(device, dtype)] = {}
            self._prepare_local(device, dtype, apply_state)
        return apply_state

    def _prepare_local(
        self,
        var_device: torch.device,
        var_dtype: torch.dtype,
        apply_state: dict[Any, Any],
    ) -> None:
        """Hook: compute the numbers of a step once for each device and dtype."""
        if "learning_rate" in self._hyper:
            apply_state[(var_device, var_dtype)]["lr_t"] = self._decayed_lr(var_dtype)

    def _fallback_apply_state(self, var_device: Any, var_dtype: Any) -> dict[str, Any]:
        """The numbers of a step, for a hook that was called without them."""
        apply_state: dict[Any, dict[str, Any]] = {(var_device, var_dtype): {}}
        self._prepare_local(var_device, var_dtype, apply_state)
        return apply_state[(var_device, var_dtype)]

    def _state_for(self, kind: str, apply_state: Any) -> dict[str, Any]:
        """``apply_state`` as a keyword, if the override of the class takes it."""
        if not self._applies_by_hand:
            return {}
        cls = type(self)
        hook = (
            cls._resource_apply_dense if kind == "dense" else cls._resource_apply_sparse
        )
        return {"apply_state": apply_state} if _takes_state(hook) else {}

    def _resource_apply_sparse_duplicate_indices(
        self, grad: torch.Tensor, var: Any, indices: torch.Tensor, **kwargs: Any
    ) -> Any:
        """Hook: update rows, where an index may occur more than once.

        By default duplicates are summed, in order of appearance, and handed to
        ``_resource_apply_sparse``; a rule takes them as ``sparse_update`` says. On a
        GPU a class that updates by hand waits for that, and for a check of the indices
        at the start of the step: nobody could undo what it writes.
        """
        slices = IndexedSlices(grad, indices)
        overridden = (
            type(self)._resource_apply_sparse
            is not Keras2Protocol._resource_apply_sparse
        )
        if not overridden and not self._applies_by_hand:
            return self._apply_slices(slices, var)
        unique = slices.sum_duplicates()
        return self._resource_apply_sparse(unique.values, var, unique.indices, **kwargs)

    def _resource_apply_sparse(
        self,
        grad: torch.Tensor,
        var: Any,
        indices: torch.Tensor,
        apply_state: Any = None,
    ) -> Any:
        """Hook: update rows of a variable; every index occurs once."""
        raise NotImplementedError(
            f"{type(self).__name__} overrides `_resource_apply_dense` only. Override "
            "`_resource_apply_sparse` too, to take sparse gradients."
        )

    def _resource_scatter_add(self, x: Any, i: torch.Tensor, v: torch.Tensor) -> Any:
        """Add rows to a variable; duplicates add up."""
        ResourceScatterAdd(resource=x, indices=i, updates=v)
        return x

    def _resource_scatter_update(self, x: Any, i: torch.Tensor, v: torch.Tensor) -> Any:
        """Replace rows of a variable."""
        ResourceScatterUpdate(resource=x, indices=i, updates=v)
        return x
