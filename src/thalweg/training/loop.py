"""The loops over batches behind `fit`, `evaluate` and `predict`.

A step never waits for the device: figures stay 0-d tensors until an epoch ends or the
progress bar is redrawn.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch

from thalweg.distribute import all_reduce
from thalweg.errors import describe, level_of_caller, message
from thalweg.training.callback import CallbackList
from thalweg.training.mean_metrics import Mean, Metric
from thalweg.training.metric_state import put_state, state_of
from thalweg.training.replicas import Replicas
from thalweg.training.sources import AbstractSource
from thalweg.training.structure import concatenate_structures, flatten, map_structure
from thalweg.training.trained import Trained

Figures = dict[str, Any]


class EpochLoop:
    """Runs one step after another and collects what the steps return.

    Args:
        model: The model.
        step: Called with a batch; returns figures by name.
        source: The batches.
        callbacks: Who is told.
        phase: "train" or "test": which hooks are called.
        replicas: Over which replicas figures are averaged.
        limit: The greatest number of steps in an epoch, or None.
        holding: Entered after the first step, for the rest of the epoch.
    """

    def __init__(
        self,
        model: Trained,
        step: Callable[[Any], Figures],
        source: AbstractSource,
        callbacks: CallbackList,
        phase: str,
        replicas: Replicas,
        limit: int | None = None,
        holding: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        self._model = model
        self._holding = holding
        self._step = step
        self._source = source
        self._begin_hooks = callbacks.hooks(f"on_{phase}_batch_begin")
        self._end_hooks = callbacks.hooks(f"on_{phase}_batch_end")
        self._replicas = replicas
        self._limit = limit
        self._position = model.data_position if phase == "train" else None
        self._is_shared = replicas.count > 1

    def run(self, epoch: int, skip: int = 0) -> tuple[Figures, int]:
        """Run the steps of one epoch.

        Args:
            epoch: Its number.
            skip: How many batches were trained on before.

        Returns:
            The figures of the whole epoch over all replicas, as floats, and the
            number of steps.
        """
        self._model.reset_metrics()
        others = _OtherFigures(self._model)
        number, figures = skip, self._go_on(others, skip)
        with ExitStack() as held:
            if self._position is not None:
                held.callback(self._position.figures.end)
            for number, batch in enumerate(self._batches(epoch, skip), skip + 1):
                figures = self._one(number, batch, others)
                if number == skip + 1 and self._holding is not None:
                    held.enter_context(self._holding())
                if self._end_hooks and self._model.stop_training:
                    break
        return self._over_epoch(figures, others), number - skip

    def _one(self, number: int, batch: Any, others: _OtherFigures) -> Figures:
        """Run one step and tell of it."""
        for hook in self._begin_hooks:
            hook(number - 1, None)
        if self._is_shared:
            self._model.compiled_loss.expect_rows(self._source.global_rows)
        figures = self._step(batch)
        if others.are_wanted:
            others.add(figures, batch)
        if self._position is not None:
            self._position.batch, others.latest = number, figures
        if self._end_hooks:
            flat = flat_figures(figures)
            for hook in self._end_hooks:
                hook(number - 1, flat)
        return figures

    def _go_on(self, others: _OtherFigures, skip: int) -> Figures:
        """Give metrics back what was restored; return the names of the figures."""
        if self._position is None:
            return {}
        saved = self._position.figures.begin(others.state)
        if not skip or not saved:
            return {}
        others.restore(saved, self._source.device)
        return others.latest

    def _batches(self, epoch: int, skip: int) -> Iterator[Any]:
        batches = self._source.epoch(epoch, skip)
        if self._limit is None:
            return batches
        return itertools.islice(batches, max(self._limit - skip, 0))

    def _over_epoch(self, figures: Figures, others: _OtherFigures) -> Figures:
        reduce = _reducer(self._source) if self._is_shared else None
        by_name = others.metrics
        found: Figures = {}
        for name in figures:
            metric = others.means[name] if name in others.means else by_name[name]
            found[name] = metric.result_over_ranks(reduce)
        return {name: float(value) for name, value in flat_figures(found).items()}


class _OtherFigures:
    """Figures a step returns that are no results of metrics: averaged over samples.

    It also gives and takes what these and the metrics hold in the middle of an epoch.
    """

    def __init__(self, model: Trained) -> None:
        self._model = model
        self.means: dict[str, Mean] = {}
        # Until the first step has shown what it returns, everything is looked at.
        self.are_wanted = True
        self.latest: Figures = {}
        self._is_first = True

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by name; the loss's may not have been called yet."""
        metrics = self._model.compiled_loss.metric, *self._model.metrics
        return {metric.name: metric for metric in metrics}

    def state(self) -> Figures:
        """What goes on with the epoch: all that was measured so far."""
        return {
            "names": list(self.latest),
            "metrics": {name: state_of(one) for name, one in self.metrics.items()},
            "means": {name: state_of(one) for name, one in self.means.items()},
        }

    def restore(self, saved: Figures, device: torch.device) -> None:
        """Take what `state` gave."""
        self.latest = dict.fromkeys(saved["names"])
        self.means = {name: Mean(name) for name in saved["means"]}
        self._is_first, self.are_wanted = False, bool(self.means)
        metrics = self.metrics
        for name, state in saved["metrics"].items():
            if name in metrics:
                put_state(metrics[name], state, device)
        for name, state in saved["means"].items():
            put_state(self.means[name], state, device)

    def add(self, figures: Figures, batch: Any) -> None:
        if self._is_first:
            self._is_first = False
            self._begin(figures)
        leaves = flatten(batch)
        rows = leaves[0].shape[0] if leaves and leaves[0].ndim else 1
        for name, mean in self.means.items():
            value = torch.as_tensor(figures[name])
            mean.add_mean(value.detach().mean(dtype=torch.float64), rows)

    def _begin(self, figures: Figures) -> None:
        if not isinstance(figures, dict):
            got = describe(figures)
            action = "Return {metric.name: metric.result() for metric in self.metrics}."
            raise TypeError(message("train_step", "a dict of figures", got, action))
        measured = {one.name for one in self._model.metrics if not one.is_empty}
        self.means = {name: Mean(name) for name in figures if name not in measured}
        self.are_wanted = bool(self.means)


def flat_figures(figures: Figures) -> Figures:
    """Put the entries of dict-valued figures beside the others."""
    flat: Figures = {}
    for name, value in figures.items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat


class TrainingLoop:
    """Epoch after epoch of training, with validation and callbacks.

    Args:
        model: The model.
        epochs: The loop of one epoch.
        callbacks: Who is told.
        validate: Called after an epoch; returns the figures of the validation set, or
            None if there is none.
    """

    def __init__(
        self,
        model: Trained,
        epochs: EpochLoop,
        callbacks: CallbackList,
        validate: Callable[[], Figures] | None,
    ) -> None:
        self._model = model
        self._epochs = epochs
        self._callbacks = callbacks
        self._validate = validate

    def run(self, last: int) -> None:
        """Train from the model's data position to the epoch before `last`."""
        model, callbacks = self._model, self._callbacks
        model.stop_training = False
        try:
            callbacks.call("on_train_begin", None)
            figures: Figures = {}
            while model.data_position.epoch < last and not model.stop_training:
                figures = self._epoch()
            callbacks.call("on_train_end", figures)
        finally:
            callbacks.close()

    def _epoch(self) -> Figures:
        model, callbacks, position = (
            self._model,
            self._callbacks,
            self._model.data_position,
        )
        epoch, skip = position.epoch, position.batch
        callbacks.call("on_epoch_begin", epoch, None)
        model.train()
        figures, steps = self._epochs.run(epoch, skip)
        if steps == 0 and skip == 0:
            self._no_batches(epoch)
            return figures
        if self._validate is not None:
            validated = self._validate()
            figures |= {f"val_{name}": value for name, value in validated.items()}
        position.finish_epoch()
        callbacks.call("on_epoch_end", epoch, figures)
        return figures

    def _no_batches(self, epoch: int) -> None:
        """End training when an iterator has nothing left; refuse one that had none."""
        position = self._model.data_position
        if epoch == position.first_epoch:
            action = "Check the iterable; one that was used before may be empty."
            raise ValueError(message("fit", "at least one batch", "none", action))
        warnings.warn(
            f"The data ended before epoch {epoch + 1}: training ends here. Pass an "
            "iterable that can be iterated again, or set steps_per_epoch.",
            stacklevel=level_of_caller(),
        )
        self._model.stop_training = True


def run_evaluation(
    model: Trained, epochs: EpochLoop, callbacks: CallbackList
) -> Figures:
    """Run every batch through `test_step` and return the figures as floats."""
    callbacks.call("on_test_begin", None)
    with torch.no_grad():
        figures, steps = epochs.run(0)
    if steps == 0:
        action = "Check the iterable; one that was used before may be empty."
        raise ValueError(message("evaluate", "at least one batch", "none", action))
    callbacks.call("on_test_end", figures)
    return figures


def run_prediction(
    model: Trained, source: AbstractSource, callbacks: CallbackList, limit: int | None
) -> Any:
    """Run every batch through `predict_step` and join the outputs.

    Returns:
        The structure of outputs as NumPy arrays.
    """
    begin = callbacks.hooks("on_predict_batch_begin")
    end = callbacks.hooks("on_predict_batch_end")
    callbacks.call("on_predict_begin", None)
    outputs: list[Any] = []
    with torch.no_grad():
        for number, batch in enumerate(itertools.islice(source.epoch(0), limit)):
            for hook in begin:
                hook(number, None)
            outputs.append(model.predict_step(batch))
            for hook in end:
                hook(number, {"outputs": outputs[-1]})
    if not outputs:
        action = "Check the iterable; one that was used before may be empty."
        raise ValueError(message("predict", "at least one batch", "none", action))
    callbacks.call("on_predict_end", None)
    return map_structure(_to_numpy, concatenate_structures(outputs, torch.cat))


def _to_numpy(value: torch.Tensor) -> Any:
    value = value.detach().cpu()
    # NumPy has no bfloat16.
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _reducer(source: AbstractSource) -> Callable[[torch.Tensor], torch.Tensor]:
    device = source.device

    def reduce(state: torch.Tensor) -> torch.Tensor:
        return all_reduce(state.to(device)).to(state.device)

    return reduce
