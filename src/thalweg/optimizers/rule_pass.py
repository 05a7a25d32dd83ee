"""A pass beside the update: one rule over many tensors, in one launch."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from thalweg.compiler import KernelKey, Rule
from thalweg.distribute import local_tensor
from thalweg.step import Member, Plan

__all__ = ["RulePass"]

_MOST = 4  # which variables a step updates may alternate between a few sets


class RulePass:
    """A rule without slots over some tensors; the tables of a few sets are kept.

    Args:
        where: Name of the optimizer, for messages.
        rule: The rule.
    """

    def __init__(self, where: str, rule: Rule) -> None:
        self._where, self._rule = f"{where}: {rule.name}", rule
        self._held: deque[Plan] = deque(maxlen=_MOST)

    @torch.no_grad()
    def __call__(
        self,
        written: Sequence[torch.Tensor],
        read: Sequence[torch.Tensor],
        settings: Sequence[int],
        values: Mapping[str, np.ndarray],
        *,
        on_device: Mapping[str, torch.Tensor] | None = None,
        applies: torch.Tensor | None = None,
    ) -> None:
        """Apply the rule.

        Args:
            written: Tensors in the place of the variables; of DTensors their parts.
            read: Tensors in the place of the gradients, of the same shapes.
            settings: Which number holds for each of them.
            values: For each scalar one number per setting.
            on_device: Some of them, shape (settings,), which a device knows better.
            applies: Shape (), bool, on that device: whether anything is written.
        """
        if not written:
            return
        parts, others = list(map(local_tensor, written)), list(map(local_tensor, read))
        plan = self._plan_of(parts, others, settings)
        plan.load(others, values)
        if on_device:
            plan.write_device_scalars(on_device)
        if applies is not None:
            plan.write_apply(applies)
        plan.run()

    def keys(
        self, written: Sequence[torch.Tensor], read: Sequence[torch.Tensor]
    ) -> list[KernelKey]:
        """The kernels that it needs on the CPU, one for each pair of dtypes.

        Args:
            written: Tensors in the place of the variables.
            read: Tensors in the place of the gradients.
        """
        pairs = zip(map(local_tensor, written), read, strict=True)
        keys = (self._member(w, 0).key(r.dtype) for w, r in pairs if w.is_cpu)
        return list(dict.fromkeys(keys))

    def _plan_of(
        self,
        written: Sequence[torch.Tensor],
        read: Sequence[torch.Tensor],
        settings: Sequence[int],
    ) -> Plan:
        for fits in (_is_known, Plan.fits):  # the first is the faster one
            for plan in self._held:
                if fits(plan, written, read):
                    return plan
        members = list(map(self._member, written, settings))
        plan = Plan(self._where, members, read)
        self._held.appendleft(plan)
        return plan

    def _member(self, written: torch.Tensor, setting: int) -> Member:
        return Member(self._rule, (written,), (), setting)


def _is_known(
    plan: Plan, written: Sequence[torch.Tensor], read: Sequence[torch.Tensor]
) -> bool:
    return plan.recognition.recognizes(written, read) and plan.is_in_place()
