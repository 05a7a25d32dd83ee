"""The optimizer base class: `minimize`, `apply_gradients` and their hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar
from typing import TYPE_CHECKING, Any

import torch

from thalweg import distribute
from thalweg.errors import message
from thalweg.gradients import GradientTape
from thalweg.optimizers.accumulation import Sums
from thalweg.optimizers.declarations import Hyper, HyperValue
from thalweg.optimizers.declared import (
    checked_name,
    declared_values,
    default_name,
    unexpected_option,
)
from thalweg.optimizers.hyperparameters import warn_lr_is_deprecated
from thalweg.optimizers.inspection import Inspection
from thalweg.optimizers.pairs import Pairs, check_pairs, filter_none, take_pairs
from thalweg.optimizers.per_variable import Settings
from thalweg.optimizers.scalar_table import ScalarTable
from thalweg.state import Variable, listeners, name_of, set_name
from thalweg.step import Batch, NonFinite, Transforms
from thalweg.step.device_checks import listening
from thalweg.step.slot_dtypes import SlotDtypesGiven

__all__ = ["Optimizer", "OptimizerV2"]

_TABLES = "_hyper", "_flags", "_entries", "_shards", "_values", "_bound", "_labels"
_NOT_COPIED = (
    *("_shards", "_values", "_plan", "_plan_rule", "_bound"),
    *("_recognition", "_raw_batch", "_replay", "_errors"),
    *("_earlier", "_absent", "_passes"),
)
_OPTIONS = (
    *("lr", "decay", "clipvalue", "clipnorm", "global_clipnorm", "weight_decay"),
    *("per_variable", "gradient_aggregator", "gradient_transformers"),
    *("sparse_update", "slot_dtypes", "low_precision_copy", "nonfinite"),
    *("use_ema", "ema_momentum", "ema_overwrite_frequency"),
    *("gradient_accumulation_steps", "stochastic_rounding", "rounding_seed"),
    "loss_scale_factor",
)
_COUNTS = ("ema_overwrite_frequency", "gradient_accumulation_steps", "rounding_seed")
"""Options whose numbers `Settings` checks."""


class Optimizer(Inspection):
    """Base class of all optimizers, with Keras 2.6's interface.

    Write an optimizer by declaring it: `Hyper` for hyperparameters, `Flag` for
    switches, `Slot` for tensors beside each variable, and a static method ``update``
    for the formula. Or bring a class of the Keras 2 kind, which overrides
    ``_create_slots`` and ``_resource_apply_dense`` / ``_resource_apply_sparse``.

    Hooks to override, in the order in which a step calls them: ``_transform_loss``,
    ``_get_gradients``, ``_transform_unaggregated_gradients``,
    ``_aggregate_gradients``, ``_transform_gradients``, ``_prepare_local``,
    ``_resource_apply_dense`` or ``_resource_apply_sparse_duplicate_indices``.

    Args:
        name: Name of the optimizer. By default the class name; that in snake case,
            numbered, of a class that declares nothing.
        lr: Old name of ``learning_rate``.
        decay: The learning rate is divided by 1 + decay · iterations. Unit 1.
        clipvalue: Every element of a gradient is clipped to [−c, c].
        clipnorm: Every gradient is scaled down to this norm.
        global_clipnorm: All gradients together are scaled down to this norm.
        weight_decay: Decoupled decay: var − lr · weight_decay · var, before the rule.
        per_variable: Name pattern to {hyperparameter: value or `scale`}.
        gradient_aggregator: Replaces the sum over replicas; pairs to pairs.
        gradient_transformers: Called after clipping, one after the other.
        sparse_update: ``"rows"`` touches only the indexed rows, ``"exact"`` equals
            the dense update with zero rows, ``"keras"`` does what Keras 2.6 did. On a
            GPU nothing waits, but in a class that updates by hand; an error of a wrong
            index is raised later, and the step with it has changed nothing.
        nonfinite: ``"skip"`` leaves a step with an inf or NaN in a gradient out,
            ``"error"`` raises and changes nothing, ``"off"`` does not look. On a GPU
            the device finds out and nothing waits: a later step, or whatever reads
            `last_step_applied`, weights or slots, raises the error.
        slot_dtypes: None: float32 beside half-precision variables, else the
            variable's dtype; ``"variable"``: always that; a dtype; or slot name to
            dtype, as torch dtypes or by name.
        low_precision_copy: Dtype of a copy of every variable, a slot that the update
            writes in the same pass; None for none.
        gradient_accumulation_steps: N >= 2: the mean of N gradients is applied in
            every N-th call of `apply_gradients`; the others only add theirs to a sum.
        use_ema: Whether a moving average of every variable is kept. In a step all
            follow, as in Keras 3; where a gradient is sparse, the touched rows do.
        ema_momentum: What such an average keeps of itself in a step, 0.99 by default.
        ema_overwrite_frequency: Every so many steps variables become their averages;
            None for never.
        loss_scale_factor: None; Keras 3's word for what `LossScaleOptimizer` does.
        stochastic_rounding: Whether bfloat16 variables and slots are rounded up or
            down by chance, so that no update is too small to be seen on average.
        rounding_seed: Seed of that chance, 0 by default.

    Raises:
        TypeError: For an unknown keyword, or a value of the wrong kind.
        ValueError: For a negative or NaN option, two clip norms, a seed without
            ``stochastic_rounding``, or that for a class that updates by hand.

    Example:
        >>> class Descent(tw.Optimizer):
        ...     learning_rate: tw.Hyper = tw.Hyper(default=0.5, low=0.0)
        ...     @staticmethod
        ...     def update(var, grad, *, learning_rate):
        ...         return var - learning_rate * grad
        >>> weight = tw.Variable([1.0, 2.0])
        >>> Descent().minimize(lambda: (weight * weight).sum(), [weight]).item()
        1
        >>> weight.numpy().tolist()
        [0.0, 0.0]

    Source:
        Keras 2.6, ``OptimizerV2``.
    """

    if TYPE_CHECKING:
        # What type checkers accept in every constructor; an `InitVar` is not read.
        _: KW_ONLY
        name: InitVar[str | None] = None
        lr: Hyper = Hyper(default=0.0)
        decay: Hyper = Hyper(default=0.0)
        clipvalue: float | None = None
        clipnorm: float | None = None
        global_clipnorm: float | None = None
        weight_decay: HyperValue | None = None
        per_variable: InitVar[Mapping[str, Mapping[str, Any]] | None] = None
        gradient_aggregator: Callable[[Pairs], Pairs] | None = None
        gradient_transformers: Sequence[Callable[[Pairs], Pairs]] | None = None  # pyright: ignore[reportIncompatibleVariableOverride] - a field here
        sparse_update: InitVar[str] = "rows"
        slot_dtypes: InitVar[SlotDtypesGiven] = None
        low_precision_copy: InitVar[str | torch.dtype | None] = None
        nonfinite: InitVar[NonFinite] = "off"
        use_ema: InitVar[bool] = False  # pyright: ignore[reportIncompatibleMethodOverride] - a field here
        ema_momentum: InitVar[float | None] = None
        ema_overwrite_frequency: InitVar[int | None] = None
        gradient_accumulation_steps: InitVar[int | None] = None  # pyright: ignore[reportIncompatibleMethodOverride] - a field here
        loss_scale_factor: InitVar[None] = None
        stochastic_rounding: InitVar[bool] = False
        rounding_seed: InitVar[int | None] = None

    def __init__(self, name: str | None = None, **options: Any) -> None:
        where, declared = type(self).__name__, declared_values(type(self), options)
        self._check_options(where, options)
        if options.get("lr") is not None:
            warn_lr_is_deprecated()
        set_plain = super().__setattr__
        for attribute in _TABLES:
            set_plain(attribute, {})
        self._flags.update({n: f.default for n, f in self._flags_declared.items()})
        self._name = checked_name(where, name) or default_name(type(self))
        self._slot_names, self._weights = [], []
        self._iterations, self._warned = None, set()
        self._plan, self._plan_rule, self._recognition = None, None, None
        self._raw_batch = Batch()
        self._table = ScalarTable()
        self._states: dict[str, Variable] = {}
        self._settings = Settings.checked(where, options, self._hypers_declared)
        if self._settings.stochastic_rounding and self._applies_by_hand:
            self._refuse_rounding(where)
        self._construct_gradient_options(options)
        self._construct_averages(options)
        self._construct_accumulation()
        self._initial_decay = options.get("decay") or 0.0
        self._set_hyper("decay", self._initial_decay)
        if options.get("weight_decay") is not None:
            self._set_hyper("weight_decay", options["weight_decay"])
        has_strategy = distribute.has_strategy()
        self._strategy = distribute.get_strategy() if has_strategy else None
        for key, value in declared.items():
            setattr(self, key, value)

    def _construct(
        self,
        cls: type,
        name: str | None,
        options: dict[str, Any],
        values: dict[str, Any],
    ) -> None:
        """What a constructor written from declarations does."""
        declared = {*self._hypers_declared, *self._flags_declared}
        own = {key: values.pop(key) for key in [*values] if key in declared}
        Optimizer.__init__(self, name, **options, **own)
        for key, value in values.items():  # what a subclass has as plain attributes
            setattr(self, key, value)

    def _check_options(self, where: str, options: Mapping[str, Any]) -> None:
        """Refuse unknown ones and negative numbers."""
        for key, value in options.items():
            if key not in _OPTIONS:
                raise TypeError(
                    f"{where}: Unexpected keyword argument passed to optimizer: {key}. "
                    + unexpected_option(type(self), key, _OPTIONS)
                )
            is_number = isinstance(value, (int, float)) and key not in _COUNTS
            if is_number and not value >= 0:
                raise ValueError(f"{where}: Expected {key} >= 0, received: {value}")

    def _refuse_rounding(self, where: str) -> None:
        raise ValueError(
            message(
                f"{where}: stochastic_rounding",
                "a class whose `update` is a rule",
                "one that overrides `_resource_apply_dense`",
                "Write the formula as a static method `update`.",
            )
        )

    # -- gradients ------------------------------------------------------------

    def minimize(
        self,
        loss: torch.Tensor | Callable[[], torch.Tensor],
        var_list: Any,
        grad_loss: torch.Tensor | None = None,
        name: str | None = None,
        tape: GradientTape | None = None,
    ) -> Variable:
        """Compute gradients of a loss and apply them.

        Args:
            loss: A tensor, or a callable without arguments that returns it.
            var_list: Variables, in any structure, or a callable that returns them;
                it is called after ``loss``, so that variables may be made there.
            grad_loss: Gradient of the loss itself, ones by default.
            name: Name of the operation.
            tape: The tape that recorded a tensor loss. Without one, the graph that
                torch recorded is used.

        Returns:
            `iterations` after the step.

        Raises:
            ValueError: If no variable has a gradient, or a variable is not floating.
        """
        pairs = self._compute_gradients(loss, var_list, grad_loss, tape)
        if name is None:
            return self.apply_gradients(pairs)
        return self.apply_gradients(pairs, name=name)

    # -- applying -------------------------------------------------------------

    def apply_gradients(
        self,
        grads_and_vars: Iterable[Any],
        name: str | None = None,
        experimental_aggregate_gradients: bool = True,
    ) -> Variable:
        """Update variables with their gradients.

        Args:
            grads_and_vars: (gradient, variable) pairs. A gradient is a tensor of the
                variable's shape, `IndexedSlices`, a sparse COO tensor, or None.
            name: Name of the operation.
            experimental_aggregate_gradients: Whether to sum over replicas.

        Returns:
            `iterations` after the step.

        Raises:
            TypeError: If an entry is not such a pair.
            ValueError: If no variable has a gradient, one occurs twice, is not
                floating, or its gradient does not fit; nothing is changed then.
            RuntimeError: In a cross-replica context, or if a variable with a
                constraint has a sparse gradient.
            FloatingPointError: If ``nonfinite="error"`` and a gradient has an inf or
                NaN; no variable or slot is changed then, but a cycle of
                ``gradient_accumulation_steps`` ends with an error of its last call. On
                a GPU it may be one of an earlier step; this one is not begun then.
            RowIndexError: If a GPU has told of a wrong index in an earlier step, which
                has changed nothing; this one is not begun.
        """
        del name
        for tell in listeners.steps:
            tell(self)
        self._refuse_cross_replica()
        pairs = list(grads_and_vars)
        joins = experimental_aggregate_gradients
        before = self._open_step()
        try:
            if self._sums is None:
                return self._apply(pairs, joins=joins)
            return self._apply_mean(self._sums, pairs, joins=joins)
        finally:
            listening.errors = before

    def _apply_mean(self, sums: Sums, pairs: list[Any], *, joins: bool) -> Variable:
        """Add gradients to those that wait; take a step if a cycle is complete."""
        means = self._accumulate(pairs, joins=joins)
        if means is None:
            return self.iterations
        try:
            return self._apply(means, joins=joins)
        finally:  # an error, too, ends the cycle: what it waited with is spent
            sums.end()

    def _apply(self, pairs: list[Any], *, joins: bool) -> Variable:
        """Take a step: check, sum over replicas, transform, update."""
        pairs, batch = self._recognized_present(pairs)
        if batch is None:
            given, pairs = pairs, self._checked(take_pairs(pairs), joins=joins)
            self._note_absent(given)
        elif joins and not self._joins_nothing:
            summed = self._aggregated(pairs)
            if summed is not pairs:
                pairs, batch = summed, self._recognized(summed)
        if not pairs:
            return self.iterations
        transforms = self._folded_transforms(pairs)
        if transforms is None:
            pairs = self._unscaled(pairs)
            if not self._check_finite(pairs):
                return self.iterations
            pairs, transforms = self._transform_gradients(pairs), Transforms()
            batch = self._recognized(pairs)
        return self._distributed_apply(pairs, transforms, batch)

    def _aggregated(self, pairs: Pairs) -> Pairs:
        return self._aggregate_gradients(self._transform_unaggregated_gradients(pairs))

    def _checked(self, pairs: Pairs, *, joins: bool) -> Pairs:
        """Check pairs, make slots, and sum over replicas if that is wanted.

        A strategy of several replicas is shown the pairs without a gradient, too:
        another replica may have one.
        """
        shows_all = joins and self.gradient_aggregator is None
        shows_all = shows_all and self._extended().num_replicas > 1
        variables = [variable for _, variable in pairs]
        if not shows_all:
            pairs = filter_none(pairs, self._warned)
        try:
            check_pairs([pair for pair in pairs if pair[0] is not None])
        except (TypeError, ValueError, IndexError):
            if shows_all:  # the other replicas would wait for this one
                self._refuse_with_others(pairs)
            raise
        self._create_all_weights(variables)
        if joins and pairs:
            pairs = self._aggregated(pairs)
        return filter_none(pairs, self._warned) if shows_all else pairs

    def _refuse_cross_replica(self) -> None:
        if distribute.in_cross_replica_context():
            raise RuntimeError(
                "`apply_gradients() cannot be called in cross-replica context. Use "
                "`Strategy.run` to enter replica context."
            )

    # -- copies ---------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_in_scope("copying")
        state = dict(self.__dict__)
        for attribute in _NOT_COPIED:
            state.pop(attribute, None)
        if state.pop("_slots_are_at_hand", False):
            del state["get_slot"]
        entries, labels = state.pop("_entries").values(), state.pop("_labels")
        state["_entries"] = [
            (entry, name_of(entry.variable), labels.get(id(entry.variable)))
            for entry in entries
        ]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        entries = state.pop("_entries")
        self.__dict__.update(state, _entries={}, _shards={}, _values={}, _bound={})
        self.__dict__.update(_plan=None, _plan_rule=None, _labels={})
        self.__dict__.update(_recognition=None, _raw_batch=Batch())
        for entry, name, label in entries:
            self._entries[id(entry.variable)] = entry
            if label is not None:
                self._labels[id(entry.variable)] = label
            if name is not None and name_of(entry.variable) is None:
                set_name(entry.variable, name)

    def step(self, *_: Any, **__: Any) -> None:
        """Refuse: this is torch's word for an optimizer that reads ``.grad``.

        Raises:
            TypeError: Always, with what to call instead.
        """
        raise TypeError(
            message(
                f"{type(self).__name__}.step",
                "apply_gradients(zip(grads, variables)) or minimize(loss, variables)",
                "step(), as of a torch.optim optimizer",
                "This optimizer has Keras's interface: call one of these.",
            )
        )


OptimizerV2 = Optimizer
