"""Callbacks that come with the package; `Callback` is for your own."""

from __future__ import annotations

import math
import re
import string
import warnings
from pathlib import Path
from typing import Any

import torch

from thalweg.checkpoint import Checkpoint
from thalweg.errors import level_of_caller, message, nearest
from thalweg.state import named_variables
from thalweg.training.backup import BackupAndRestore, check_save_freq
from thalweg.training.callback import Callback, Logs
from thalweg.training.history import History, Remembering
from thalweg.training.lost_variables import lost_among, named_in_short
from thalweg.training.progress import ProgressBar

__all__ = [
    "BackupAndRestore",
    "Callback",
    "EarlyStopping",
    "History",
    "LambdaCallback",
    "ModelCheckpoint",
    "ProgressBar",
    "TerminateOnNaN",
]

_MODES = ("auto", "min", "max")
_GROWING = re.compile(r"acc|auc|precision|recall|f1|cosine")


class _Monitor:
    """The best value of a figure so far.

    Args:
        where: How messages call the callback.
        name: The figure.
        mode: "min", "max", or "auto": by the name.
        min_delta: How much better a value has to be to count.
    """

    def __init__(
        self, where: str, name: str, mode: str, min_delta: float = 0.0
    ) -> None:
        if mode not in _MODES:
            expected, action = "mode 'auto', 'min' or 'max'", nearest(mode, _MODES)
            raise ValueError(message(where, expected, repr(mode), action))
        grows = mode == "max" or (mode == "auto" and bool(_GROWING.search(name)))
        self.name = name
        self._where = where
        self._sign = 1.0 if grows else -1.0
        self._min_delta = abs(min_delta)
        self.best = -self._sign * math.inf

    def read(self, logs: Logs) -> float | None:
        """Return the figure, or None, with a warning, where it is missing."""
        value = (logs or {}).get(self.name)
        if value is None:
            warnings.warn(
                f"{self._where} monitors {self.name!r}, which is not among "
                f"{', '.join(logs or {})}; nothing is done.",
                stacklevel=level_of_caller(),
            )
            return None
        return float(value)

    def improves(self, value: float) -> bool:
        """Return whether a value is better than the best, which it then becomes."""
        if self._sign * (value - self.best) > self._min_delta:
            self.best = value
            return True
        return False


class EarlyStopping(Remembering):
    """Ends training when a figure no longer improves.

    Args:
        monitor: The figure.
        min_delta: How much better it has to be to count.
        patience: After how many epochs without improvement training ends.
        mode: "min", "max", or "auto": by the figure's name.
        baseline: A value that has to be bettered first.
        restore_best_weights: Whether the model ends with the best epoch's weights.

    Raises:
        ValueError: If `mode` is unknown or `patience` negative.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
    ) -> None:
        super().__init__()
        if patience < 0:
            action = "Pass a number of epochs."
            raise ValueError(
                message("EarlyStopping", "patience >= 0", str(patience), action)
            )
        _Monitor("EarlyStopping", monitor, mode)
        self._settings = (monitor, mode, min_delta)
        self.patience = patience
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.stopped_epoch: int | None = None
        self.best_epoch: int | None = None
        self._weights: dict[str, Any] | None = None
        self.forget()

    def forget(self) -> None:
        """Forget all epochs."""
        monitor, mode, min_delta = self._settings
        self._monitor = _Monitor("EarlyStopping", monitor, mode, min_delta)
        if self.baseline is not None:
            self._monitor.best = self.baseline
        self._waited = 0
        self.stopped_epoch = self.best_epoch = self._weights = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint saves."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "stopped_epoch": self.stopped_epoch,
            "waited": self._waited,
            "weights": self._weights,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave; the next run goes on with it."""
        self.forget()
        self._monitor.best = state_dict["best"]
        self.best_epoch = state_dict["best_epoch"]
        # Earlier versions did not save it.
        self.stopped_epoch = state_dict.get("stopped_epoch")
        self._waited = state_dict["waited"]
        self._weights = state_dict["weights"]
        self.remember()

    @property
    def best(self) -> float:
        """The best value so far."""
        return self._monitor.best

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Compare with the best epoch."""
        value = self._monitor.read(logs)
        if value is None:
            return
        self.stopped_epoch = None
        self._waited += 1
        if self._monitor.improves(value):
            self._waited, self.best_epoch = 0, epoch
            if self.restore_best_weights:
                self._weights = _copied(self.model.state_dict())
        elif self._waited >= max(self.patience, 1):
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Logs = None) -> None:
        """Put the best weights back if asked to."""
        del logs
        if self._weights is not None:
            self.model.load_state_dict(self._weights)


class ModelCheckpoint(Callback):
    """Saves model and optimizer after epochs or steps.

    Args:
        path: A folder; may hold figures, as in "runs/{epoch:02d}-{val_loss:.3f}",
            where `epoch` counts from 1 and `batch` is the step in the epoch.
            The same name is overwritten.
        monitor: The figure for `save_best_only`.
        save_best_only: Whether only an epoch better than all before is saved.
        mode: "min", "max", or "auto": by the figure's name.
        save_freq: "epoch", or a number of steps.

    Raises:
        ValueError: If `mode` or `save_freq` is unknown.
    """

    def __init__(
        self,
        path: str | Path,
        monitor: str = "val_loss",
        save_best_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
    ) -> None:
        super().__init__()
        check_save_freq("ModelCheckpoint", save_freq)
        self.path = str(path)
        self.last_saved: Path | None = None
        self._monitor = _Monitor("ModelCheckpoint", monitor, mode)
        self._save_best_only = save_best_only
        self._save_freq = save_freq
        self._steps = 0
        self._epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint saves: the best value so far, and the steps counted."""
        return {"best": self._monitor.best, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self._monitor.best = state_dict["best"]
        self._steps = state_dict["steps"]

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Note the epoch."""
        del logs
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Save after every so many steps."""
        if self._save_freq == "epoch":
            return
        self._steps += 1
        if self._steps % int(self._save_freq) == 0:
            figures = {name: float(value) for name, value in (logs or {}).items()}
            self._save(figures, batch)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Save after the epoch."""
        del epoch
        if self._save_freq == "epoch":
            self._save(logs or {}, self.model.data_position.batch)

    def _save(self, figures: dict[str, Any], batch: int) -> None:
        if self._save_best_only:
            value = self._monitor.read(figures)
            if value is None or not self._monitor.improves(value):
                return
        values = {"epoch": self._epoch + 1, "batch": batch + 1, **figures}
        path = Path(_filled(self.path, values))
        path.parent.mkdir(parents=True, exist_ok=True)
        parts: dict[str, Any] = {"model": self.model}
        if self.model.optimizer is not None:
            parts["optimizer"] = self.model.optimizer
        Checkpoint(**parts).save(path, overwrite=True)
        self.last_saved = path


class TerminateOnNaN(Callback):
    """Ends training, with a warning, when the loss is NaN or infinite.

    By then the variables may be so, too; the warning names them. An optimizer with
    ``nonfinite="error"`` or ``"skip"`` looks at gradients instead, before a step. This
    callback reads the loss after every step, for which a GPU is waited for.
    """

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Look at the loss."""
        loss = float((logs or {}).get("loss", 0.0))
        model: Any = self.model
        # All replicas stop in the same step: one that left would be waited for.
        if not model.replicas.total(int(not math.isfinite(loss))):
            return
        self.model.stop_training = True
        lost = named_in_short(lost_among(named_variables(self.model)))
        warnings.warn(
            f"TerminateOnNaN: the loss is {loss} in step {batch + 1}; training ends "
            f"here. Variables with an inf or NaN: {lost}.",
            stacklevel=level_of_caller(),
        )


class LambdaCallback(Callback):
    """A callback made of functions.

    Args:
        **hooks: Functions by the names of hooks, such as `on_epoch_end`.

    Raises:
        ValueError: If there is no such hook.

    Example:
        >>> seen = []
        >>> note = LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
        >>> note.on_epoch_end(3, {})
        >>> seen
        [3]
    """

    def __init__(self, **hooks: Any) -> None:
        super().__init__()
        known = [name for name in vars(Callback) if name.startswith("on_")]
        for name, function in hooks.items():
            if name not in known:
                action = nearest(name, known)
                raise ValueError(
                    message("LambdaCallback", "the name of a hook", repr(name), action)
                )
            self.__dict__[name] = function


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for name, value in state.items()
    }


def _filled(path: str, values: dict[str, Any]) -> str:
    """Fill in figures; a name that is not known is said with the known ones."""
    for _, name, _, _ in string.Formatter().parse(path):
        if name is not None and name not in values:
            action = nearest(name, values)
            raise ValueError(
                message("ModelCheckpoint", "a figure of the epoch", repr(name), action)
            )
    return path.format(**values)


def __dir__() -> list[str]:
    return sorted(__all__)
