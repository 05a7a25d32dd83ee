"""An optimizer around another one, for losses that are scaled up."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from typing_extensions import override

from thalweg.errors import describe, message
from thalweg.gradients import GradientTape
from thalweg.gradients.loss_scale import (
    NOT_SCALED,
    DynamicLossScale,
    Scaling,
    scaled,
    times,
)
from thalweg.optimizers import registry
from thalweg.optimizers.declarations import plain_number
from thalweg.optimizers.gradient_hooks import GradientHooks
from thalweg.optimizers.optimizer import Optimizer
from thalweg.state import NoDependency, Trackable, Variable, VariableList
from thalweg.step.device_clock import refuse_capture

__all__ = ["LossScaleOptimizer"]

_INITIAL_SCALE = 2.0**15
_GROWTH_STEPS = 2000
# A checkpoint asks these of the inner optimizer, which it finds by itself.
_NOT_DELEGATED = frozenset(
    {
        "slot_variables",
        "restore_slot_variable",
        "hyperparameters",
        "restore_hyperparameters",
    }
)
_OWN = frozenset({"inner_optimizer", "dynamic"})
# What stands before the place where gradients of a scaled loss are unscaled.
_HOOKS = ("_transform_unaggregated_gradients", "_aggregate_gradients")


class LossScaleOptimizer(Trackable):
    """Scales the loss, unscales the gradients, and leaves out what overflowed.

    With gradients in float16, small ones would be rounded to zero. `minimize`, and so
    `Model.fit`, multiplies the loss by `loss_scale` and divides the gradients by it, as
    part of the update's own pass. In an own loop, take the gradients of
    `get_scaled_loss` and hand what `get_unscaled_gradients` makes of them to
    `apply_gradients`.

    With a dynamic scale, a step with an inf or NaN in a gradient, after the sum over
    replicas, changes no variable and no slot, counts as one of `iterations`, and halves
    the scale; ``dynamic_growth_steps`` steps without one double it. With
    ``gradient_accumulation_steps`` such a step is a whole cycle.

    On a GPU the device finds that out, leaves the step out and changes the scale, which
    lies there from the first step on: no step waits, and one can be part of a CUDA
    graph, unless it accumulates gradients. Where a class updates variables by hand, or
    they are on several devices, the host decides, and waits for what it needs to know.

    Attributes that are not named here are those of the inner optimizer.

    Args:
        inner_optimizer: The optimizer.
        dynamic: Whether the scale changes.
        initial_scale: The first scale, 2¹⁵ by default; of a fixed one, the scale.
        dynamic_growth_steps: Finite steps before a dynamic scale is doubled, 2000 by
            default.

    Raises:
        TypeError: If the inner optimizer is none, or has a loss scale itself, or
            ``dynamic`` is no bool.
        ValueError: If a fixed scale is not given, or ``dynamic_growth_steps`` is
            given with one; if a number is out of range.

    Example:
        >>> weight = tw.Variable([1.0])
        >>> inner = tw.optimizers.SGD(0.5)
        >>> optimizer = LossScaleOptimizer(inner, initial_scale=4.0)
        >>> optimizer.minimize(lambda: (weight * weight).sum(), [weight]).item()
        1
        >>> weight.numpy().tolist(), float(optimizer.loss_scale)
        ([0.0], 4.0)

    Source:
        Keras 2.6, ``mixed_precision.LossScaleOptimizer``.
    """

    if TYPE_CHECKING:
        learning_rate: Any
        iterations: Variable
        last_step_applied: bool

    def __init__(
        self,
        inner_optimizer: Optimizer,
        dynamic: bool = True,
        initial_scale: float | None = None,
        dynamic_growth_steps: int | None = None,
    ) -> None:
        dynamic = plain_number(dynamic)
        _check(inner_optimizer, dynamic, initial_scale, dynamic_growth_steps)
        if dynamic:
            start = _INITIAL_SCALE if initial_scale is None else initial_scale
            steps = dynamic_growth_steps
            steps = _GROWTH_STEPS if steps is None else steps
            scale: Any = DynamicLossScale(start, steps)
        else:
            scale = float(initial_scale or 0.0)
        self.inner_optimizer = inner_optimizer
        untracked: Any = NoDependency(scale)
        self._scale: DynamicLossScale | float = untracked

    def __copy__(self) -> Self:
        """A copy around a copy of the inner optimizer; the scale is shared.

        As that copy shares variables, slots and the count of steps, and no more.
        """
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied.__dict__["inner_optimizer"] = copy.copy(self.inner_optimizer)
        return copied

    @override
    def __repr__(self) -> str:
        inner = self.__dict__.get("inner_optimizer")
        scale = "" if inner is None else f", loss_scale={float(self.loss_scale):g}"
        return f"{type(self).__name__}({inner!r}{scale})"

    # -- the scale ------------------------------------------------------------

    @property
    def dynamic(self) -> bool:
        """Whether the scale changes."""
        return isinstance(self._scale, DynamicLossScale)

    @property
    def loss_scale(self) -> torch.Tensor:
        """The scale in force, a float32 tensor of shape ()."""
        if isinstance(self._scale, DynamicLossScale):
            return self._scale.current_loss_scale.detach().clone()
        return torch.tensor(self._scale, dtype=torch.float32)

    @property
    def initial_scale(self) -> float:
        """The first scale."""
        scale = self._scale
        return scale.initial_scale if isinstance(scale, DynamicLossScale) else scale

    @property
    def dynamic_counter(self) -> Variable | None:
        """Finite steps since a dynamic scale last changed; None with a fixed one."""
        scale = self._scale
        return scale.dynamic_counter if isinstance(scale, DynamicLossScale) else None

    @property
    def dynamic_growth_steps(self) -> int | None:
        """Finite steps before a dynamic scale is doubled; None with a fixed one."""
        scale = self._scale
        return scale.growth_steps if isinstance(scale, DynamicLossScale) else None

    def get_scaled_loss(self, loss: Any) -> Any:
        """Multiply a loss by the scale.

        Args:
            loss: A tensor, or a callable that returns one.

        Returns:
            The scaled loss, in the loss's dtype; of a callable, a callable.
        """
        if callable(loss) and not isinstance(loss, torch.Tensor):
            return lambda: self.get_scaled_loss(loss())
        scale = self._scale
        if isinstance(scale, DynamicLossScale) and not scale.is_on_host:
            return times(loss, scale.current_loss_scale.detach())
        return loss * float(self.loss_scale)

    def get_unscaled_gradients(self, grads: Iterable[Any]) -> list[Any]:
        """Divide gradients of a scaled loss by the scale.

        Args:
            grads: Tensors, `IndexedSlices` or None.

        Returns:
            New gradients.
        """
        return scaled(list(grads), self._factor())

    def _factor(self) -> float | torch.Tensor:
        """What gradients of a scaled loss are multiplied by."""
        scale = self._scale
        if isinstance(scale, DynamicLossScale) and not scale.is_on_host:
            return 1.0 / scale.current_loss_scale.detach().double()
        return 1.0 / float(self.loss_scale)

    # -- steps ----------------------------------------------------------------

    def minimize(
        self,
        loss: torch.Tensor | Callable[[], torch.Tensor],
        var_list: Any,
        grad_loss: torch.Tensor | None = None,
        name: str | None = None,
        tape: GradientTape | None = None,
    ) -> Variable:
        """Compute gradients of the scaled loss and apply them, unscaled.

        Args:
            loss: As for `Optimizer.minimize`; it is not scaled yet.
            var_list: Variables, in any structure, or a callable that returns them.
            grad_loss: Gradient of the loss itself, ones by default.
            name: Name of the operation.
            tape: The tape that recorded a tensor loss.

        Returns:
            `iterations` after the step.
        """
        del name
        tape = tape if tape is not None else GradientTape()
        if isinstance(loss, torch.Tensor):
            with tape:
                larger = self.get_scaled_loss(loss)
        else:
            larger = self.get_scaled_loss(loss)
        inner: Any = self.inner_optimizer
        pairs = inner._compute_gradients(larger, var_list, grad_loss, tape)
        factor = self._factor()
        if not self._can_fold():
            gradients = scaled([g for g, _ in pairs], factor)
            pairs = list(zip(gradients, (v for _, v in pairs), strict=True))
            return self.apply_gradients(pairs)
        return self._apply(pairs, Scaling(factor, True, self.dynamic), joins=True)

    def apply_gradients(
        self,
        grads_and_vars: Iterable[Any],
        name: str | None = None,
        experimental_aggregate_gradients: bool = True,
    ) -> Variable:
        """Update variables with gradients that are unscaled already.

        Args:
            grads_and_vars: (gradient, variable) pairs.
            name: Name of the operation.
            experimental_aggregate_gradients: Whether to sum over replicas.

        Returns:
            `iterations` after the step.
        """
        del name
        scaling = Scaling(skips=self.dynamic)
        joins = experimental_aggregate_gradients
        return self._apply(list(grads_and_vars), scaling, joins=joins)

    def _can_fold(self) -> bool:
        """Whether nothing of the user's sees gradients before the update's pass."""
        inner = self.inner_optimizer
        own = (getattr(type(inner), hook) for hook in _HOOKS)
        theirs = (getattr(GradientHooks, hook) for hook in _HOOKS)
        return (
            type(inner).apply_gradients is Optimizer.apply_gradients
            and inner.gradient_aggregator is None
            and all(a is b for a, b in zip(own, theirs, strict=True))
        )

    def _apply(self, pairs: list[Any], scaling: Scaling, *, joins: bool) -> Variable:
        inner: Any = self.inner_optimizer
        if not pairs:
            return inner.iterations
        if isinstance(self._scale, DynamicLossScale) and self._scale.is_on_host:
            refuse_capture(type(self).__name__, "a dynamic loss scale")
        inner._scaling = scaling
        try:
            inner.apply_gradients(pairs, experimental_aggregate_gradients=joins)
        finally:
            inner._scaling = NOT_SCALED
        if isinstance(self._scale, DynamicLossScale) and not inner.is_in_cycle:
            verdict = inner._is_applied
            is_late = isinstance(verdict, torch.Tensor)
            self._scale.update(verdict, inner._was_right if is_late else None)
            if verdict is False:  # a device counts such a step by itself
                inner.iterations.add_(1)
        return inner.iterations

    # -- what is the inner optimizer's ----------------------------------------

    @property
    @override
    def variables(self) -> VariableList:
        """The variables of the inner optimizer."""
        return self.inner_optimizer.variables

    if not TYPE_CHECKING:  # a type checker shall reject wrong names

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or name in _NOT_DELEGATED or name in _OWN:
                raise AttributeError(
                    f"{type(self).__name__} has no attribute {name!r}."
                )
            return getattr(self.inner_optimizer, name)

        def __setattr__(self, name: str, value: Any) -> None:
            inner = self.__dict__.get("inner_optimizer")
            is_own = name in self.__dict__ or hasattr(type(self), name)
            if inner is not None and not is_own and hasattr(inner, name):
                setattr(inner, name, value)
            else:
                super().__setattr__(name, value)

    @override
    def _trackable_children(self) -> Iterable[tuple[str, object]]:
        yield from super()._trackable_children()
        if isinstance(self._scale, DynamicLossScale):
            yield "loss_scale", self._scale

    # -- configuration --------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as a dictionary that JSON can hold.

        Returns:
            What `from_config` takes, the inner optimizer as `serialize` gives it.
        """
        return {
            "inner_optimizer": registry.serialize(self.inner_optimizer),
            "dynamic": self.dynamic,
            "initial_scale": self.initial_scale,
            "dynamic_growth_steps": self.dynamic_growth_steps,
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> LossScaleOptimizer:
        """Make an optimizer from what `get_config` gave.

        Args:
            config: Constructor arguments, or what Keras 3 writes: a ``name``, too,
                which has no use here.
            custom_objects: Own optimizer and schedule classes by name.

        Returns:
            A new optimizer, its scale the initial one.
        """
        inner = registry.deserialize(config["inner_optimizer"], custom_objects)
        arguments = {name: v for name, v in config.items() if name != "name"}
        return cls(**{**arguments, "inner_optimizer": inner})


registry.wrappers["lossscaleoptimizer"] = LossScaleOptimizer


def _check(
    inner: object, dynamic: object, initial_scale: float | None, growth: int | None
) -> None:
    where = "LossScaleOptimizer"
    if not isinstance(inner, Optimizer):
        action = "A loss scale goes around an optimizer, once."
        if isinstance(inner, torch.optim.Optimizer):
            action = "One of torch's interface takes torch.amp.GradScaler instead."
        elif isinstance(inner, (str, type)):
            action = "Pass an optimizer, such as tw.optimizers.Adam()."
        raise TypeError(message(where, "an Optimizer", describe(inner), action))
    if not isinstance(dynamic, bool):
        action = "Pass initial_scale=… for the number."
        raise TypeError(message(where, "dynamic True or False", repr(dynamic), action))
    if dynamic:
        return
    if initial_scale is None or not 0 < initial_scale < float("inf"):
        expected, got = "a finite initial_scale > 0 with dynamic=False", initial_scale
        raise ValueError(message(where, expected, repr(got), "Pass the scale."))
    if growth is not None:
        expected = "dynamic_growth_steps=None with dynamic=False"
        raise ValueError(message(where, expected, repr(growth), "Leave it out."))
