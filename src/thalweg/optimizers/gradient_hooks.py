"""Gradients on their way to the update: computed, summed, clipped, transformed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from thalweg.distribute import has_strategy
from thalweg.distribute.components import any_distributed
from thalweg.distribute.finite import are_nonfinite
from thalweg.errors import message
from thalweg.gradients import (
    GradientTape,
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
)
from thalweg.gradients.clip import widened
from thalweg.gradients.loss_scale import NOT_SCALED, Scaling, scaled
from thalweg.gradients.nest import flatten
from thalweg.optimizers.application import RuleApplication
from thalweg.optimizers.declarations import plain_number
from thalweg.optimizers.pairs import Pairs
from thalweg.state import IndexedSlices
from thalweg.step import NonFinite, Plan, Transforms, refuse_nonfinite

__all__ = ["GradientFunction", "GradientHooks"]

GradientFunction = Callable[[Pairs], Pairs]


class Clip:
    """One of the clip options; refused beside user transformers, as in Keras."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance._clips.get(self.name)

    def __set__(self, instance: Any, value: float | None) -> None:
        where = type(instance).__name__
        if value is not None and instance.gradient_transformers:
            raise ValueError(
                f"{where}: `{self.name}` cannot be set when `gradient_transformers` is "
                "set. Clip in one of the transformers instead."
            )
        instance._clips[self.name] = (
            None if value is None else self._checked(where, value)
        )

    def _checked(self, where: str, value: Any) -> Any:
        value = plain_number(value)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        is_number = is_number or (isinstance(value, torch.Tensor) and value.ndim == 0)
        if is_number and value >= 0:
            return value
        got = repr(value) if is_number else f"{value!r} ({type(value).__name__})"
        text = message(where, f"{self.name} >= 0", got, "Pass None for no clip.")
        raise (ValueError if is_number else TypeError)(text)


class GradientHooks(RuleApplication):
    """The part of `Optimizer` between loss and update, with its hooks."""

    clipvalue: float | None = Clip()  # type: ignore[assignment]
    clipnorm: float | None = Clip()  # type: ignore[assignment]
    global_clipnorm: float | None = Clip()  # type: ignore[assignment]
    gradient_aggregator: GradientFunction | None
    gradient_transformers: list[GradientFunction]
    _clips: dict[str, float | None]
    _scaling: Scaling = NOT_SCALED
    _is_applied: bool | torch.Tensor = True
    _has_shards: bool = False  # of the last step that was looked at closely

    def _construct_gradient_options(self, options: Mapping[str, Any]) -> None:
        self.gradient_aggregator = options.get("gradient_aggregator")
        transformers = options.get("gradient_transformers") or ()
        self._clips = {}
        if None not in (options.get("clipnorm"), options.get("global_clipnorm")):
            raise ValueError(
                f"{type(self).__name__}: Cannot accept both `clipnorm` and "
                f"`global_clipnorm`, received {options['clipnorm']} and "
                f"{options['global_clipnorm']}. Pass one of them."
            )
        self.gradient_transformers = list(transformers)
        for clip in ("clipvalue", "clipnorm", "global_clipnorm"):
            if options.get(clip) is not None:
                setattr(self, clip, options[clip])

    def _compute_gradients(
        self,
        loss: Any,
        var_list: Any,
        grad_loss: Any = None,
        tape: GradientTape | None = None,
    ) -> Pairs:
        """The gradients of a loss as (gradient or None, variable) pairs."""
        tape = tape if tape is not None else GradientTape()
        # A VariableList can be called, too: Keras has both spellings.
        is_made_later = callable(var_list) and not isinstance(var_list, list)
        make: Any = var_list
        variables = None if is_made_later else flatten(var_list)
        if callable(loss) and not isinstance(loss, torch.Tensor):
            with tape:
                tape.watch(variables or [])
                loss = loss()
                variables = flatten(make()) if variables is None else variables
        elif variables is None:
            variables = flatten(make())
        if type(self)._transform_loss is not GradientHooks._transform_loss:
            with tape:
                loss = self._transform_loss(loss)
        return self._get_gradients(tape, loss, variables, grad_loss)

    def _transform_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Hook: change the loss before gradients are computed."""
        return loss

    def _get_gradients(
        self,
        tape: GradientTape,
        loss: torch.Tensor,
        var_list: Sequence[Any],
        grad_loss: Any,
    ) -> Pairs:
        """Hook: compute the gradients."""
        grads = tape.gradient(loss, list(var_list), grad_loss)
        return list(zip(grads, var_list, strict=True))

    def _transform_unaggregated_gradients(self, grads_and_vars: Pairs) -> Pairs:
        """Hook: change gradients before they are summed over replicas."""
        return grads_and_vars

    @property
    def _joins_nothing(self) -> bool:
        """Whether it is plain at once that neither hooks nor replicas join anything."""
        hooks, own = GradientHooks, type(self)
        return (
            self._strategy is None
            and self.gradient_aggregator is None
            and own._aggregate_gradients is hooks._aggregate_gradients
            and own._transform_unaggregated_gradients
            is hooks._transform_unaggregated_gradients
            and not has_strategy()
        )

    def _aggregate_gradients(self, grads_and_vars: Pairs) -> Pairs:
        """Hook: sum gradients over replicas."""
        if self.gradient_aggregator is not None:
            return list(self.gradient_aggregator(grads_and_vars))
        return self._extended().aggregate_gradients(grads_and_vars)

    def _refuse_with_others(self, pairs: Pairs) -> None:
        """Let the other replicas, which would wait, know that these are refused."""
        hook = type(self)._aggregate_gradients
        if hook is GradientHooks._aggregate_gradients and not self.gradient_aggregator:
            self._extended().refuse_gradients([variable for _, variable in pairs])

    def _folded_transforms(self, pairs: Pairs) -> Transforms | None:
        """The clips and checks, if the update's own pass can apply them.

        None where a hook or a function of the user's stands between, a variable is
        sharded, or a gradient is sparse or on a device without kernels.
        """
        hook = type(self)._transform_gradients
        if hook is not GradientHooks._transform_gradients or self.gradient_transformers:
            return None
        transforms = Transforms(
            *(self.clipvalue, self.clipnorm, self.global_clipnorm),
            nonfinite="skip" if self._scaling.skips else self._settings.nonfinite,
            unscales=self._scaling.unscales,
        )
        if transforms == Transforms():
            return transforms
        if self._has_shards:  # a pass over shards would not see the whole gradients
            return None
        gradients = [gradient for gradient, _ in pairs]
        return transforms if Plan.can_fold(gradients) else None

    @override
    def _create_all_weights(self, var_list: Sequence[torch.Tensor]) -> None:
        # A step that is recognized, and does not come here, has no sharded variable.
        self.__dict__["_has_shards"] = any_distributed(var_list)
        super()._create_all_weights(var_list)

    def _unscaled(self, pairs: Pairs) -> Pairs:
        """Undo a loss scale on gradients that no plan takes."""
        if not self._scaling.unscales:
            return pairs
        wide = self._widened(pairs)
        gradients = scaled([g for g, _ in wide], self._scaling.factor)
        return [(g, v) for g, (_, v) in zip(gradients, pairs, strict=True)]

    def _widened(self, pairs: Pairs) -> Pairs:
        """Halves as float32, as a plan computes with them; the update rounds, once.

        A class without a rule updates by hand: it is given what it was written for.
        """
        own: Any = self
        if own._applies_by_hand:
            return pairs
        return [(widened(gradient), variable) for gradient, variable in pairs]

    def _check_finite(self, pairs: Pairs) -> bool:
        """Whether a step may be taken on gradients that no plan checks."""
        self._is_applied = True
        policy = "skip" if self._scaling.skips else self._settings.nonfinite
        if policy == "off" or self._is_left_to_device(pairs, policy):
            return True
        bad = self._nonfinite_variables(pairs)
        if bad and policy == "error":
            refuse_nonfinite(bad)
        self._is_applied = not bad
        return not bad

    def _is_left_to_device(self, pairs: Pairs, policy: NonFinite) -> bool:
        """Whether a device finds out if gradients that no plan checks are finite."""
        del pairs, policy
        return False

    def _nonfinite_variables(self, pairs: Pairs) -> list[torch.Tensor]:
        """The variables whose gradients have an inf or NaN; who shares one agrees."""
        values = [g.values if isinstance(g, IndexedSlices) else g for g, _ in pairs]
        return [v for (_, v), b in zip(pairs, are_nonfinite(values), strict=True) if b]

    def _transform_gradients(self, grads_and_vars: Pairs) -> Pairs:
        """Hook: clip by value, by norm, by global norm, then the user's functions."""
        pairs = self._widened(grads_and_vars) if self._clips else grads_and_vars
        if self.clipvalue is not None:
            pairs = clip_by_value(pairs, self.clipvalue)
        if self.clipnorm is not None:
            pairs = clip_by_norm(pairs, self.clipnorm)
        if self.global_clipnorm is not None:
            pairs = clip_by_global_norm(pairs, self.global_clipnorm)
        for transformer in self.gradient_transformers:
            pairs = list(transformer(pairs))
        return pairs
