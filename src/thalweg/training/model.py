"""Model: a layer that trains itself, by `compile` and `fit` or an own `train_step`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from thalweg import optimizers
from thalweg.distribute import Strategy, get_strategy, has_strategy
from thalweg.errors import describe, message, nearest
from thalweg.gradients import GradientTape
from thalweg.training import data_adapter
from thalweg.training.compiled import LossesContainer, MetricsContainer
from thalweg.training.data_position import DataPosition
from thalweg.training.fitting import Fitting
from thalweg.training.layer import Layer
from thalweg.training.mean_metrics import Metric
from thalweg.training.replicas import Replicas, replicas_of
from thalweg.training.structure import map_structure
from thalweg.training.wrapping import unwrapped

_AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_STRUCTURES = frozenset({dict, tuple})


class Model(Fitting):
    """A layer with `compile`, `fit`, `evaluate` and `predict`.

    Documented for subclassing: override `forward` (or `call`), and `train_step`,
    `test_step`, `predict_step` for another kind of step. `Model(module)` trains any
    torch module, also one wrapped in DDP, FSDP or `torch.compile`; its variables keep
    the names they have in the module.

    Args:
        module: The module to train, or None in a subclass.
        name: The model's name.

    Raises:
        TypeError: If `module` is no torch module.

    Example:
        >>> model = Model(nn.Linear(2, 1))
        >>> model.compile("sgd", loss="mse")
        >>> history = model.fit(torch.ones(4, 2), torch.ones(4, 1), epochs=2, verbose=0)
        >>> list(history.history), len(history.history["loss"])
        (['loss'], 2)
    """

    _untracked_names = Fitting._untracked_names | {
        "_optimizer",
        "_own_metrics",
        "_spreads",
    }

    # Whether a subclass runs a wrapped module in a way of its own.
    _overrides_call: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._overrides_call = (
            cls.call is not Model.call or cls.forward is not Model.forward
        )

    def __init__(
        self, module: nn.Module | None = None, name: str | None = None
    ) -> None:
        if module is not None and not isinstance(module, nn.Module):
            action = "Pass an instance, or derive a class from Model."
            raise TypeError(
                message("Model", "a torch.nn.Module", describe(module), action)
            )
        super().__init__(name)
        self._optimizer: Any = None
        self._own_metrics: dict[str, Metric] = {}
        self._is_compiled = False
        self._autocast: torch.dtype | None = None
        self._spreads: dict[Any, bool] = {}
        self._strategy = get_strategy()
        self.compiled_loss = LossesContainer()
        self.compiled_metrics = MetricsContainer()
        self.data_position = DataPosition()
        self.history: Any = None
        self.stop_training = False
        # Last: what is set above is the model's, whatever names the module has.
        self._wrap(module)

    # ------------------------------------------------------------------ calls

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module that was passed, if there is one. A hook."""
        if self._wrapped is None:
            return super().call(*args, **kwargs)
        return self._wrapped(*args, **kwargs)

    def __call__(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Run the model; `training` sets the mode, which stays as it is if None.

        A dictionary is passed on as keyword arguments, and a tuple as several
        arguments, where the model's `forward` takes them so.
        """
        if training is not None and training is not self.training:
            self.train(bool(training))
        if len(args) == 1 and type(args[0]) in _STRUCTURES and not kwargs:
            args, kwargs = self._spread(args[0])
        if self._autocast is None:
            return self._run(self._function(), args, kwargs)
        device = next(iter(self.parameters())).device.type
        with torch.autocast(device, dtype=self._autocast):
            outputs = self._run(self._function(), args, kwargs)
        return map_structure(_to_single, outputs)

    def _function(self) -> Callable[..., Any]:
        """What a call runs: a wrapped module at once, unless the model has hooks."""
        has_hooks = (
            self._compiled_call_impl or self._forward_hooks or self._forward_pre_hooks
        )
        if self._wrapped is None or has_hooks or self._overrides_call:
            return super(Layer, self).__call__
        return self._wrapped

    def _spread(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        form = tuple(batch) if isinstance(batch, dict) else len(batch)
        if form not in self._spreads:
            self._spreads[form] = _takes(self._entry(), form)
        if not self._spreads[form]:
            return (batch,), {}
        return ((), batch) if isinstance(batch, dict) else (batch, {})

    def _entry(self) -> Callable[..., Any]:
        """The function whose parameters say what the model takes."""
        if self._wrapped is not None and not self._overrides_call:
            return unwrapped(self._wrapped).forward
        return self.call if type(self).forward is Layer.forward else self.forward

    # ---------------------------------------------------------------- compile

    def compile(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        optimizer: Any = None,
        loss: Any = None,
        metrics: Any = None,
        jit_compile: bool = False,
        autocast: str | torch.dtype | None = None,
    ) -> None:
        """Say how the model trains. Without arguments, for an own `train_step`.

        Args:
            optimizer: An optimizer, its name or its configuration.
            loss: A name (classification losses take logits), a function of
                (y_true, y_pred), or a `torch.nn` loss.
            metrics: Names, functions or torchmetrics objects, one or several.
            jit_compile: Whether the forward pass runs through `torch.compile`.
            autocast: "bfloat16" or torch's dtype runs the forward pass in it where
                torch holds it safe; outputs come back in float32. So does "float16",
                which needs a `LossScaleOptimizer`.

        Raises:
            ValueError: If a name is unknown; the nearest known one is said. If
                ``autocast`` is none of these, or "float16" without a loss scale.
            TypeError: If the optimizer cannot `minimize`, or loss or metrics are of
                no known kind.
        """
        made = _optimizer_of(optimizer)
        losses = LossesContainer(loss)
        measured = MetricsContainer(metrics, losses.loss)
        dtype = _autocast_of(autocast, made)
        self.optimizer = made
        self.compiled_loss, self.compiled_metrics = losses, measured
        self._autocast = dtype
        compiled = torch.compile(self._call_impl) if jit_compile else None
        self._compiled_call_impl = compiled
        if has_strategy():
            self._strategy = get_strategy()
        self.compiled_loss.prepare(self.replicas)
        self._is_compiled = True

    @property
    def optimizer(self) -> Any:
        """The compiled optimizer, or None."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, value: Any) -> None:
        # An optimizer is no part of the model: neither a child nor a dependency.
        self._optimizer = value

    @property
    def is_compiled(self) -> bool:
        """Whether `compile` has been called."""
        return self._is_compiled

    @property
    def distribute_strategy(self) -> Strategy:
        """The strategy the model trains under: the one in force, else its own."""
        return get_strategy() if has_strategy() else self._strategy

    @property
    def replicas(self) -> Replicas:
        """Who takes part in a step."""
        module = self if self._wrapped is None else self._wrapped
        return replicas_of(self.distribute_strategy, module)

    @property
    def metrics(self) -> list[Metric]:
        """The loss's running mean, the compiled metrics, and those in attributes."""
        return [
            *self.compiled_loss.metrics,
            *self.compiled_metrics.metrics,
            *self._own_metrics.values(),
        ]

    def reset_metrics(self) -> None:
        """Forget the batches that metrics have seen."""
        self.compiled_loss.reset_state()
        for metric in self.metrics:
            metric.reset_state()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "optimizer":
            name = "_optimizer"
        super().__setattr__(name, value)
        own_metrics = vars(self).get("_own_metrics")
        if own_metrics is not None:
            own_metrics.pop(name, None)
            if isinstance(value, Metric):
                own_metrics[name] = value

    # ------------------------------------------------------------------ steps

    def train_step(self, data: Any) -> dict[str, Any]:
        """Train on one batch. A hook.

        Args:
            data: x, (x, y) or (x, y, sample_weight), on the model's device.

        Returns:
            Figures by name: results of metrics, or numbers, of which `fit` reports
            the mean over samples.
        """
        x, y, sample_weight = data_adapter.unpack_x_y_sample_weight(data)
        with GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compiled_loss(
                y, y_pred, sample_weight, regularization_losses=self.losses
            )
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        self.compiled_metrics.update_state(y, y_pred, sample_weight)
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, data: Any) -> dict[str, Any]:
        """Measure one batch. A hook; see `train_step`."""
        x, y, sample_weight = data_adapter.unpack_x_y_sample_weight(data)
        y_pred = self(x, training=False)
        if self.compiled_loss.loss is not None or self.losses:
            self.compiled_loss(
                y, y_pred, sample_weight, regularization_losses=self.losses
            )
        self.compiled_metrics.update_state(y, y_pred, sample_weight)
        return {metric.name: metric.result() for metric in self.metrics}

    def predict_step(self, data: Any) -> Any:
        """Compute the outputs of one batch. A hook; see `train_step`."""
        x, _, _ = data_adapter.unpack_x_y_sample_weight(data)
        return self(x, training=False)

    def _uses_default(self, step: str) -> bool:
        return getattr(type(self), step) is getattr(Model, step)


def _takes(function: Callable[..., Any], form: tuple[Any, ...] | int) -> bool:
    """Return whether a function takes these names, or so many arguments."""
    parameters = inspect.signature(function).parameters.values()
    kinds = [one.kind for one in parameters]
    if isinstance(form, int):
        positional = (inspect.Parameter.POSITIONAL_ONLY,)
        positional += (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
        required = [
            one
            for one in parameters
            if one.kind in positional and one.default is inspect.Parameter.empty
        ]
        return len(required) == form and form > 1
    names = {one.name for one in parameters}
    return inspect.Parameter.VAR_KEYWORD in kinds or names.issuperset(form)


def _optimizer_of(optimizer: Any) -> Any:
    if optimizer is None or isinstance(optimizer, optimizers.Optimizer):
        return optimizer
    is_alike = hasattr(optimizer, "minimize") and hasattr(optimizer, "apply_gradients")
    if is_alike and not isinstance(optimizer, type):
        return optimizer
    cls = optimizer if isinstance(optimizer, type) else type(optimizer)
    if issubclass(cls, torch.optim.Optimizer):
        raise TypeError(
            message(
                "compile",
                "an optimizer that can minimize",
                f"{cls.__name__}, which has torch's interface",
                "Pass one of thalweg.optimizers, or use it in an own train_step.",
            )
        )
    return optimizers.get(optimizer)


def _autocast_of(given: str | torch.dtype | None, optimizer: Any) -> Any:
    if given is None:
        return None
    name = str(given).removeprefix("torch.")
    if name not in _AUTOCAST_DTYPES:
        expected = "autocast 'bfloat16', 'float16' or None"
        action = nearest(name, _AUTOCAST_DTYPES)
        raise ValueError(message("compile", expected, repr(given), action))
    if name == "float16" and not isinstance(optimizer, optimizers.LossScaleOptimizer):
        expected = "a tw.LossScaleOptimizer with autocast='float16'"
        action = "Wrap the optimizer in it; 'bfloat16' needs none."
        raise ValueError(message("compile", expected, describe(optimizer), action))
    return _AUTOCAST_DTYPES[name]


def _to_single(value: Any) -> Any:
    is_half = isinstance(value, torch.Tensor) and value.dtype in (
        torch.bfloat16,
        torch.float16,
    )
    return value.float() if is_half else value
