"""The declared transforms of gradients, folded into the step that uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from thalweg.step.compose import CLIPVALUE, GRADIENT_SCALE, STEP
from thalweg.step.device_checks import nonfinite_error, note_nonfinite
from thalweg.step.device_step import StepClock
from thalweg.step.plan import Plan

__all__ = ["NonFinite", "Transforms", "leave_to_device", "refuse_nonfinite"]

NonFinite = Literal["off", "skip", "error"]


@dataclass(frozen=True)
class Transforms:
    """What happens to dense gradients between the sum over replicas and the rule.

    In this order: unscaled, checked, clipped by value, by norm, by global norm. The
    norms take one pass that reads the gradients; everything else is part of the
    update's own pass, and no gradient is written.

    Attributes:
        clipvalue: Bound of every element, or None.
        clipnorm: Largest norm of each gradient, or None.
        global_clipnorm: Largest norm of all gradients together, or None.
        nonfinite: What a gradient with an inf or NaN does to the step: ``"off"``
            nothing, ``"skip"`` leaves it out, ``"error"`` raises.
        unscales: Whether gradients are multiplied by a number, for loss scaling.
    """

    clipvalue: float | None = None
    clipnorm: float | None = None
    global_clipnorm: float | None = None
    nonfinite: NonFinite = "off"
    unscales: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The scalars that `bind_rule` must be given for these transforms."""
        by_value = (CLIPVALUE,) if self.clipvalue is not None else ()
        by_factor = (GRADIENT_SCALE,) if self._has_norm or self.unscales else ()
        return by_value + by_factor

    @property
    def owns_rows(self) -> bool:
        """Whether each gradient has a factor of its own; a `Plan` must know."""
        return self.clipnorm is not None

    @property
    def _has_norm(self) -> bool:
        return self.clipnorm is not None or self.global_clipnorm is not None

    def run(
        self,
        plan: Plan,
        gradients: Sequence[torch.Tensor],
        values: Mapping[str, np.ndarray],
        unscale: float | torch.Tensor = 1.0,
        before_run: Callable[[], None] | None = None,
    ) -> bool:
        """Run a plan on transformed gradients.

        Args:
            plan: The plan, of a rule that takes `columns`.
            gradients: Gradients that fit it.
            values: For each hyperparameter one number per setting.
            unscale: What the gradients are multiplied by, if `unscales`; a float64
                tensor of shape () where the device knows it.
            before_run: Called when all checks are passed, before the first write.

        Returns:
            False if the step was left out; nothing is written then. Where the plan's
            clock decides, True: the device may have left it out.

        Raises:
            FloatingPointError: If ``nonfinite`` is ``"error"`` and a gradient has an
                inf or NaN; nothing is written then. Where the plan's clock decides, it
                is raised later.
        """
        if isinstance(unscale, torch.Tensor) and not plan.is_on_device:
            unscale = float(unscale)
        plan.load(gradients, self._with_clipvalue(values, unscale))
        try:
            if isinstance(unscale, torch.Tensor) and self.clipvalue is not None:
                bound = (self.clipvalue / unscale).expand(len(values[STEP]))
                plan.write_device_scalars({CLIPVALUE: bound})
            if not self._prepare(plan, gradients, unscale):
                return False
            if before_run is not None:
                decider = plan.decider
                with nullcontext() if decider is None else decider.in_force():
                    before_run()
            plan.run()
        finally:
            plan.unload()
        return True

    def _prepare(
        self,
        plan: Plan,
        gradients: Sequence[torch.Tensor],
        unscale: float | torch.Tensor,
    ) -> bool:
        """Check what was loaded and write its factors; False to leave the step out."""
        if not (self._has_norm or self.nonfinite != "off" or self.unscales):
            return True
        if plan.is_on_device:
            return self._fold_on_device(plan, gradients, unscale)
        factor = float(unscale)
        squared = self._checked_norms(plan, gradients, factor)
        if squared is None:
            return False
        self._write_scales(plan, squared, factor)
        return True

    def _fold_on_device(
        self,
        plan: Plan,
        gradients: Sequence[torch.Tensor],
        unscale: float | torch.Tensor,
    ) -> bool:
        """Check and clip there; False to leave the step out.

        A check waits for the device, unless the device decides what follows from it.
        """
        fold = plan.device_fold(self.clipvalue, self.clipnorm, self.global_clipnorm)
        addresses, is_checked = plan.gradient_addresses(), self.nonfinite != "off"
        if is_checked:
            finite, clock = fold.check(addresses, gradients), plan.clock
            if clock is not None and clock.decides:
                leave_to_device(clock, self.nonfinite, plan.variables, finite)
            elif not bool(finite.all()):
                if self.nonfinite == "skip":
                    return False
                wrong = np.flatnonzero(~finite.numpy(force=True)).tolist()
                refuse_nonfinite([plan.variables[place] for place in wrong])
        if GRADIENT_SCALE in self.columns:
            plan.write_scales(
                fold.scales(addresses, self.clipvalue, unscale, is_checked=is_checked)
            )
        return True

    def _with_clipvalue(
        self, values: Mapping[str, np.ndarray], unscale: float | torch.Tensor
    ) -> Mapping[str, np.ndarray]:
        """The bound in the gradient's own unit: the kernel clips, then unscales.

        Where the device knows the factor, it writes the bound after this.
        """
        if self.clipvalue is None:
            return values
        bound = self.clipvalue / (1.0 if isinstance(unscale, torch.Tensor) else unscale)
        return {**values, CLIPVALUE: np.full(len(values[STEP]), bound)}

    def _checked_norms(
        self, plan: Plan, gradients: Sequence[torch.Tensor], unscale: float
    ) -> np.ndarray | None:
        """The squared norms, clipped by value alone; None if the step is left out."""
        squared = np.ones(len(gradients))
        if self.nonfinite != "off":
            squared = plan.squared_norms(None)
            suspects = np.flatnonzero(~np.isfinite(squared)).tolist()
            # A sum of squares can overflow where no element does.
            bad = [i for i in suspects if not bool(torch.isfinite(gradients[i]).all())]
            if bad and self.nonfinite == "skip":
                return None
            if bad:
                refuse_nonfinite([plan.variables[i] for i in bad])
        clips_first = self.clipvalue is not None or self.nonfinite == "off"
        if self._has_norm and clips_first:
            bound = None if self.clipvalue is None else self.clipvalue / unscale
            squared = plan.squared_norms(bound)
        return squared

    def _write_scales(self, plan: Plan, squared: np.ndarray, unscale: float) -> None:
        if GRADIENT_SCALE in self.columns:
            clips = self.clipnorm, self.global_clipnorm
            plan.write_scales(plan.clip_scales(squared, unscale, *clips))


def refuse_nonfinite(variables: Sequence[torch.Tensor]) -> None:
    """Raise an error that names the variables whose gradients are not finite.

    Raises:
        FloatingPointError: Always.
    """
    raise nonfinite_error(variables)


def leave_to_device(
    clock: StepClock,
    policy: NonFinite,
    variables: Sequence[torch.Tensor],
    is_finite: torch.Tensor,
) -> None:
    """Let the device do what follows from a check of gradients; nothing waits.

    Args:
        clock: Of the step under way; it decides which steps are taken.
        policy: ``"skip"``, or ``"error"``: then the step is refused, and the error is
            raised later, by the optimizer whose step it is.
        variables: The variables.
        is_finite: Shape (variables,), bool, on the device: whether the gradient is.
    """
    if policy == "skip":
        clock.applies = is_finite.all()
    else:
        clock.require(is_finite.all())
        note_nonfinite(variables, is_finite)
