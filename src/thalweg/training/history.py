"""History: what `fit` returns."""

from __future__ import annotations

from typing import Any

from thalweg.training.callback import Callback


class Remembering(Callback):
    """A callback that forgets earlier runs when one begins, except a restored one.

    Documented for subclassing: override `forget`, and call `remember` at the end of
    `load_state_dict`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_restored = False

    def forget(self) -> None:
        """Be as new."""

    def remember(self) -> None:
        """Say that the next run goes on with what is there."""
        self._is_restored = True

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start anew, or go on with what was restored."""
        del logs
        if not self._is_restored:
            self.forget()
        self.go_on()

    def go_on(self) -> None:
        """Say that the run has begun: what is there is this run's, not the next's."""
        self._is_restored = False


class History(Remembering):
    """The figures of every epoch.

    Attributes:
        history: The name of every figure, those of validation with `val_` before it,
            to its values, one an epoch.
        epoch: The numbers of the epochs.

    Example:
        >>> record = History()
        >>> record.on_epoch_end(0, {"loss": 2.0})
        >>> record.history, record.epoch
        ({'loss': [2.0]}, [0])
    """

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []

    def __repr__(self) -> str:
        count = len(self.epoch)
        last = [f"{name} {values[-1]:.4g}" for name, values in self.history.items()]
        told = f": {', '.join(last)}" if last else ""
        return f"<History of {count} epoch{'' if count == 1 else 's'}{told}>"

    def forget(self) -> None:
        """Drop the figures of earlier runs."""
        self.history, self.epoch = {}, []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Take in the figures of one epoch."""
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint saves."""
        return {"history": self.history, "epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave; the next run goes on with it."""
        self.history, self.epoch = state_dict["history"], state_dict["epoch"]
        self.remember()
