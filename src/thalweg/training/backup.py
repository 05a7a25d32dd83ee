"""BackupAndRestore: a run of `fit` that goes on where it was broken off."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

from thalweg.checkpoint import Checkpoint, CheckpointManager, RandomState
from thalweg.checkpoint.durable import remove_checkpoint
from thalweg.checkpoint.folder import read_manifest
from thalweg.checkpoint.graph import build_graph
from thalweg.checkpoint.matching import match
from thalweg.checkpoint.status import Outcome, RestoreStatus
from thalweg.distribute import rank, world_size
from thalweg.errors import level_of_caller, message
from thalweg.state import named_variables
from thalweg.training.callback import Callback, Logs
from thalweg.training.history import Remembering
from thalweg.training.lost_variables import lost_among, named_in_short
from thalweg.training.replicas import Replicas
from thalweg.training.trained import Trained

__all__ = ["BackupAndRestore", "check_save_freq"]

_OWN = (
    "model",
    "optimizer",
    "position",
    "figures",
    "history",
    "random_state",
    "stopped",
)


class BackupAndRestore(Callback):
    """Saves where training stands; the same program, run again, goes on from there.

    Model, optimizer, position in the data, figures, history and random numbers are
    saved, so that a run that was killed and started anew gives the bits of one that
    was not. When `fit` comes to its end, the backup is removed. Callbacks that have a
    memory are named to it as ``others``; it comes after them, wherever it is listed.

    A run that was stopped stays stopped: started anew, it runs no epoch. One that was
    stopped by a loss that is NaN or infinite is not saved; it goes on before that.
    Neither is one whose trained variables have an inf or NaN, whatever its loss: a
    warning names them, and the backup before that stays.

    Metrics of your own are gone on with if they keep numbers and tensors in
    attributes, or have ``state_dict`` and ``load_state_dict``.

    Args:
        backup_dir: A folder of its own.
        save_freq: "epoch", or a number of steps.
        delete_checkpoint: Whether the backup is removed when training has ended. If
            not, another `fit` with more epochs goes on from the end of this one.
        **others: What is saved besides, by name: callbacks with ``state_dict``,
            schedulers, and all else that a `Checkpoint` takes.

    Raises:
        ValueError: If `save_freq` is unknown, or a name in `others` is taken.
        CheckpointError: At the start of training, if what is in the folder does not
            fit what is to be restored; nothing of that was changed then.

    Example:
        >>> import tempfile
        >>> model = tw.Model(torch.nn.Linear(2, 1))
        >>> model.compile("sgd", loss="mse")
        >>> backup = BackupAndRestore(tempfile.mkdtemp(), delete_checkpoint=False)
        >>> data = dict(x=torch.ones(4, 2), y=torch.ones(4, 1), verbose=0)
        >>> history = model.fit(**data, epochs=2, callbacks=[backup])
        >>> model.fit(**data, epochs=3, callbacks=[backup]).epoch
        [0, 1, 2]
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        save_freq: str | int = "epoch",
        delete_checkpoint: bool = True,
        **others: Any,
    ) -> None:
        super().__init__()
        check_save_freq("BackupAndRestore", save_freq)
        _check_names(others)
        self.backup_dir = str(backup_dir)
        self._save_freq = save_freq
        self._deletes = delete_checkpoint
        self._others = others
        self._manager: CheckpointManager | None = None
        self._saves = 0
        self._steps = 0

    def set_model(self, model: Trained) -> None:
        """Make the checkpoint of this model's run."""
        super().set_model(model)
        self._manager = None

    def on_train_begin(self, logs: Logs = None) -> None:
        """Restore the backup if there is one."""
        del logs
        self._manager = manager = self._made()
        _check_match(manager)
        status = manager.restore_or_initialize()
        if status is not None:
            status.assert_consumed()
            self._saves = int(status.path.name.rpartition("-")[2])
            self.model.stop_training = bool(manager.checkpoint.stopped)
            # The run has begun already: these go on with it, and not in the next one.
            self.model.data_position.start(0)
            for one in (self.model.history, *self._others.values()):
                if isinstance(one, Remembering):
                    one.go_on()
        self._steps = self.model.data_position.batch

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Save after every so many steps."""
        del batch, logs
        if self._save_freq != "epoch":
            self._steps += 1
            # A run that is stopped is saved at the end of the epoch.
            if self._steps % int(self._save_freq) == 0 and not self.model.stop_training:
                self._save()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Save after the epoch."""
        del epoch
        is_stopped = self.model.stop_training
        if is_stopped and not math.isfinite((logs or {}).get("loss", 0.0)):
            return  # it would be gone on with from variables that are lost
        if is_stopped or self._save_freq == "epoch":
            self._save()

    def on_train_end(self, logs: Logs = None) -> None:
        """Remove the backup, if that was asked for."""
        del logs
        if not self._deletes or self._manager is None:
            return
        paths = self._manager.checkpoints  # asked by all ranks, removed by one
        if rank() == 0:
            for path in paths:
                remove_checkpoint(Path(path))

    def _save(self) -> None:
        if self._manager is not None and not self._is_lost():
            self._saves += 1
            self._manager.checkpoint.update(stopped=self.model.stop_training)
            self._manager.save(self._saves)

    def _is_lost(self) -> bool:
        """Whether going on from here is of no use; all ranks say the same."""
        found = named_variables(self.model).items()
        lost = lost_among({n: v for n, v in found if v.requires_grad})
        # All of them save together: one that did not would be waited for.
        if not Replicas(world_size(), rank()).total(int(bool(lost))):
            return False
        which = named_in_short(lost) if lost else "those of another rank"
        warnings.warn(
            f"BackupAndRestore: variables have an inf or NaN ({which}). This is not "
            "saved; a backup from before stays.",
            stacklevel=level_of_caller(),
        )
        return True

    def _made(self) -> CheckpointManager:
        parts: dict[str, Any] = {"model": self.model}
        if self.model.optimizer is not None:
            parts["optimizer"] = self.model.optimizer
        parts["position"] = self.model.data_position
        parts["figures"] = self.model.data_position.figures
        parts["history"] = self.model.history
        parts["random_state"] = RandomState()
        parts["stopped"] = False
        checkpoint = Checkpoint(**parts, **self._others)
        return CheckpointManager(checkpoint, self.backup_dir, max_to_keep=1)


def _check_names(others: dict[str, Any]) -> None:
    """Refuse names that a backup or a checkpoint has for itself."""
    taken = [name for name in others if name in _OWN]
    if taken:
        expected = f"names other than {', '.join(_OWN)}"
        action = "These are saved anyway; name what is saved besides differently."
        got = repr(taken[0])
        raise ValueError(message("BackupAndRestore", expected, got, action))
    if others:
        Checkpoint(**others)


def _check_match(manager: CheckpointManager) -> None:
    """Refuse a backup that does not match in all, before anything is restored."""
    paths = manager.checkpoints  # without warnings, which the restore gives
    if not paths:
        return
    path = paths[-1]
    graph = build_graph(dict(manager.checkpoint.objects))
    found = match(graph, read_manifest(path), "checkpoint")
    lists = (found.missing, found.unexpected, found.mismatched, found.reasons)
    RestoreStatus(
        Path(path), None, (), Outcome((), *map(tuple, lists))
    ).assert_consumed()


def check_save_freq(where: str, save_freq: object) -> None:
    """Refuse what is neither "epoch" nor a number of steps.

    Args:
        where: How messages call the callback.
        save_freq: What was given.

    Raises:
        ValueError: If it is neither.
    """
    is_count = type(save_freq) is int and save_freq > 0
    if save_freq != "epoch" and not is_count:
        expected, action = "save_freq 'epoch' or a number of steps", "Pass one."
        raise ValueError(message(where, expected, repr(save_freq), action))
