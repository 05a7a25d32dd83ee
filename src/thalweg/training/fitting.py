"""The half of Model that runs loops: `fit`, `evaluate` and `predict`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from thalweg.distribute import get_replica_context, has_strategy
from thalweg.errors import message
from thalweg.state import name_of, register_names
from thalweg.training.arguments import (
    batch_size_for,
    check_count,
    check_verbose,
    split_off,
    validation_parts,
)
from thalweg.training.callback import Callback, CallbackList
from thalweg.training.callbacks import BackupAndRestore, ModelCheckpoint
from thalweg.training.data_adapter import make_source
from thalweg.training.history import History
from thalweg.training.labels import check_labels
from thalweg.training.loop import (
    EpochLoop,
    TrainingLoop,
    run_evaluation,
    run_prediction,
)
from thalweg.training.losses import Loss
from thalweg.training.progress import ProgressBar
from thalweg.training.runnable import Runnable
from thalweg.training.sources import AbstractSource, ArraySource, SourceOptions
from thalweg.training.structure import map_structure
from thalweg.training.tensors import placement_of, to_device

Result = TypeVar("Result")


class Fitting(Runnable):
    """A layer with loops; `Model` completes it and is the class to derive from."""

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = 1,
        callbacks: Iterable[Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
    ) -> History:
        """Train the model.

        Args:
            x: Arrays or tensors, or tuples and dictionaries of them; a Dataset; a
                DataLoader or another iterable of batches (x, y[, sample_weight]).
            y: Targets, if x are arrays.
            batch_size: Samples in a batch of all replicas; 32 by default. Every
                replica takes its contiguous share.
            epochs: The number of the epoch to stop before.
            verbose: 0 silent, 1 a live bar, 2 one line an epoch.
            callbacks: Who is told how it goes.
            validation_split: The share of the samples, from the end, to validate on.
            validation_data: (x, y[, sample_weight]) or data that bring targets; goes
                before `validation_split`.
            shuffle: Whether every epoch has an order of its own; not for iterables.
            class_weight: Weight of every class by its number.
            sample_weight: Weight of every sample in the sum that the loss is. The
                count that it is divided by knows no weights, as in Keras.
            initial_epoch: The number of the first epoch.
            steps_per_epoch: The greatest number of steps in an epoch.

        Returns:
            The History of this run.

        Raises:
            RuntimeError: If the model is not compiled.
            ValueError: If data are empty, of unequal lengths or with labels out of
                range, or another argument is out of its range.
            TypeError: If an argument is of a wrong kind.
        """
        self._require_compiled("fit", "train_step")
        check_count("fit", "epochs", epochs)
        check_count("fit", "initial_epoch", initial_epoch, least=0)
        check_count("fit", "steps_per_epoch", steps_per_epoch)
        shown = check_verbose("fit", verbose)
        size = batch_size_for("fit", x, batch_size)
        record = History()
        told = self._callbacks(record, callbacks, shown)
        parts, held_out = (x, y, sample_weight), None
        if validation_data is not None:
            held_out = validation_parts(validation_data)
        else:
            parts, held_out = split_off(x, y, sample_weight, validation_split)

        def train() -> History:
            source = self._source("fit", *parts, size, shuffle, class_weight)
            validation = None
            if held_out is not None:
                validation = self._source("fit: validation_data", *held_out, size)
            self._prepare("train_step", [source, validation])
            self._start(initial_epoch, record, told, epochs, source, steps_per_epoch)
            self._train(source, validation, told, epochs, steps_per_epoch)
            return record

        return self._as_replica(train)

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: int | str = 1,
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Iterable[Callback] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Measure the model on data; see `fit` for what they may be.

        Args:
            x: Inputs.
            y: Targets.
            batch_size: Samples in a batch of all replicas.
            verbose: 0 is silent, else one line is written.
            sample_weight: Weight of every sample in the loss.
            steps: The greatest number of batches.
            callbacks: Who is told how it goes.
            return_dict: Whether figures come by name.

        Returns:
            The loss and the metrics in the order of `metrics`: one float if there is
            one figure, else a list, or a dict.

        Raises:
            RuntimeError: If the model is not compiled.
            ValueError: As `fit`.
            TypeError: As `fit`.
        """
        self._require_compiled("evaluate", "test_step")
        check_count("evaluate", "steps", steps)
        shown = check_verbose("evaluate", verbose)
        size = batch_size_for("evaluate", x, batch_size)
        told = self._callbacks(None, callbacks, shown)

        def measure() -> dict[str, float]:
            source = self._source("evaluate", x, y, sample_weight, size)
            self._prepare("test_step", [source])
            told.begin(self, {"steps": source.num_batches})
            return self._evaluate(source, told, steps)

        was_training = self.training
        try:
            figures = self._as_replica(measure)
        finally:
            told.close()
            self.train(was_training)
        if return_dict:
            return figures
        values = list(figures.values())
        return values[0] if len(values) == 1 else values

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: int | str = 0,
        steps: int | None = None,
        callbacks: Iterable[Callback] | None = None,
    ) -> Any:
        """Compute the outputs for all samples; every replica computes all of them.

        Args:
            x: Inputs; see `fit` for what they may be.
            batch_size: Samples in a batch.
            verbose: As for `evaluate`.
            steps: The greatest number of batches.
            callbacks: Who is told how it goes.

        Returns:
            NumPy arrays in the structure of the outputs, joined along the first axis.

        Raises:
            ValueError: If there are no samples, or arguments are out of range.
            TypeError: As `fit`.
        """
        check_count("predict", "steps", steps)
        size = batch_size_for("predict", x, batch_size)
        told = self._callbacks(None, callbacks, check_verbose("predict", verbose))
        options = SourceOptions(placement_of(self), size)
        source = make_source("predict", x, None, None, options)
        told.begin(self, {"steps": source.num_batches})
        was_training = self.training
        try:
            return run_prediction(self, source, told, steps)
        finally:
            told.close()
            self.train(was_training)

    # ------------------------------------------------------------- preparation

    def _require_compiled(self, method: str, step: str) -> None:
        if not self.is_compiled:
            action = "Call compile(optimizer, loss) first."
            raise RuntimeError(message(method, "a compiled model", "none", action))
        lacks = step == "train_step" and self.optimizer is None
        if lacks and self._uses_default(step):
            action = "Pass one to compile(), or override train_step."
            raise ValueError(message(method, "an optimizer", "none", action))

    def _callbacks(
        self, record: History | None, given: Iterable[Callback] | None, shown: int
    ) -> CallbackList:
        listed: list[Any] = [] if given is None else _listed(given)
        has_bar = any(isinstance(one, ProgressBar) for one in listed)
        if shown and not has_bar and self.replicas.rank == 0:
            listed.append(ProgressBar(verbose=shown))
        # A backup is made of what all the others have done, wherever it is listed.
        listed.sort(key=lambda one: isinstance(one, BackupAndRestore))
        return CallbackList([*([] if record is None else [record]), *listed])

    def _source(
        self,
        where: str,
        x: Any,
        y: Any,
        sample_weight: Any,
        batch_size: int,
        shuffle: bool | None = None,
        class_weight: dict[int, float] | None = None,
    ) -> AbstractSource:
        options = SourceOptions(
            placement_of(self),
            batch_size,
            bool(shuffle),
            self.replicas,
            None if shuffle is None else self.data_position,
            class_weight,
        )
        return make_source(where, x, y, sample_weight, options)

    def _prepare(self, step: str, sources: list[AbstractSource | None]) -> None:
        """Check labels, and tell the containers who takes part."""
        loss = self.compiled_loss.loss
        are_clean = False
        if loss is not None and self._uses_default(step):
            checked = [self._check_labels(loss, one) for one in sources if one]
            are_clean = all(checked)
        self.compiled_loss.prepare(self.replicas, are_clean)
        self.compiled_metrics.prepare(are_clean)

    def _check_labels(self, loss: Loss, source: AbstractSource) -> bool:
        """Check arrays now, other batches as they come; return whether all is clean."""
        if type(loss).label_limit is Loss.label_limit:
            return False
        if not isinstance(source, ArraySource):
            source.check = self._batch_check(loss)
            return False
        batch = source.first_sample()
        labels = source.data[1] if isinstance(batch, tuple) and len(batch) > 1 else None
        if not isinstance(labels, torch.Tensor):
            return False
        limit = self._label_limit(loss, batch)
        return limit is not None and check_labels("fit", labels, loss, limit)

    def _batch_check(self, loss: Loss) -> Callable[[Any], None]:
        limits: list[int | None] = []

        def check(batch: Any) -> None:
            labels = batch[1] if isinstance(batch, tuple) and len(batch) > 1 else None
            if not isinstance(labels, torch.Tensor) or not len(labels):
                return
            if not limits:
                first = map_structure(lambda leaf: leaf[:1], batch)
                device = placement_of(self).device
                limits.append(self._label_limit(loss, to_device(first, device)))
            # Reading labels that are on the device already would wait for it.
            if limits[0] is not None and labels.device.type == "cpu":
                check_labels("fit", labels, loss, limits[0])

        return check

    def _label_limit(self, loss: Loss, batch: Any) -> int | None:
        """Run one sample in evaluation mode to see how many classes there are."""
        was_training, compiled = self.training, self._compiled_call_impl
        self._compiled_call_impl = None
        try:
            with torch.no_grad():
                outputs = self.predict_step(batch)
        finally:
            self._compiled_call_impl = compiled
            self.train(was_training)
        return loss.label_limit(outputs) if isinstance(outputs, torch.Tensor) else None

    def _start(
        self,
        initial_epoch: int,
        record: History,
        told: CallbackList,
        epochs: int,
        source: AbstractSource,
        limit: int | None,
    ) -> None:
        """Begin to change things: all checks have passed."""
        known = [one for one in (source.num_batches, limit) if one is not None]
        steps = min(known) if known else None
        told.begin(self, {"epochs": epochs, "steps": steps})
        self.data_position.start(initial_epoch, self.replicas.count)
        self._name_variables()
        self.distribute_strategy.extended.broadcast_initial(list(self.variables))
        self.history = record

    def _name_variables(self) -> None:
        """Let messages and ``per_variable`` know variables by their paths."""
        if any(name_of(variable) is None for variable in self.trainable_variables):
            register_names(self)

    # ------------------------------------------------------------------- loops

    def _train(
        self,
        source: AbstractSource,
        validation: AbstractSource | None,
        told: CallbackList,
        epochs: int,
        limit: int | None,
    ) -> None:
        replicas = self.replicas
        step = self.train_step
        holding = self._holding_variables if self._may_hold(told) else None
        epoch_loop = EpochLoop(
            self, step, source, told, "train", replicas, limit, holding
        )
        validate = None
        if validation is not None:
            held_out = validation
            validate = lambda: self._evaluate(held_out, told, None)  # noqa: E731 one use
        vouched: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self.compiled_loss.loss is not None:
            vouched = self.distribute_strategy.extended.loss_divided_globally()
        with vouched:
            TrainingLoop(self, epoch_loop, told, validate).run(epochs)
        # A device may have found the last step wrong: asking raises what it found.
        getattr(self.optimizer, "last_step_applied", None)

    def _may_hold(self, told: CallbackList) -> bool:
        """Whether nobody can change within an epoch which variables train."""
        lookers = (ProgressBar, ModelCheckpoint, BackupAndRestore)
        others = CallbackList(one for one in told.callbacks if type(one) not in lookers)
        hooks = others.hooks("on_train_batch_begin") + others.hooks(
            "on_train_batch_end"
        )
        return self._uses_default("train_step") and not hooks

    def _evaluate(
        self, source: AbstractSource, told: CallbackList, limit: int | None
    ) -> dict[str, float]:
        step = self.test_step
        loop = EpochLoop(self, step, source, told, "test", self.replicas, limit)
        return run_evaluation(self, loop, told)

    def _as_replica(self, function: Callable[[], Result]) -> Result:
        """Run a loop as one replica of the strategy, which optimizers ask for."""
        if has_strategy() and get_replica_context() is not None:
            return function()
        return self.distribute_strategy.run(function)


def _listed(given: Iterable[Callback] | Callback) -> list[Any]:
    return [given] if isinstance(given, Callback) else list(given)
