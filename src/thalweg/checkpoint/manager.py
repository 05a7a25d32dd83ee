"""`CheckpointManager`: checkpoints by step in one folder, of which the newest stay."""

import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from thalweg.checkpoint.checkpoint import Checkpoint
from thalweg.checkpoint.durable import (
    ASIDE,
    MANIFEST,
    clear_leavings,
    make_parents,
    place_of,
    remove_checkpoint,
)
from thalweg.checkpoint.folder import check_structure
from thalweg.checkpoint.ranks import Ranks
from thalweg.checkpoint.record import Record
from thalweg.checkpoint.status import RestoreStatus
from thalweg.checkpoint.tensor_file import DamagedError
from thalweg.errors import CheckpointError, describe, level_of_caller, message

STEP_NAME = re.compile(r"step-(?P<step>\d{8,18})")


class CheckpointManager:
    """Saves a checkpoint every so many steps, keeps the newest, finds them again.

    A checkpoint stands at `directory/step-00000120`. The manager removes only what it
    has made itself, in this run or an earlier one (`checkpoints.json` says which), and
    only after a newer checkpoint is on the disk. One manager at a time uses a folder.
    With several ranks every rank makes the same calls; the first one's disk decides.

    Args:
        checkpoint: What is saved and restored.
        directory: The folder of checkpoints. It is made where missing.
        max_to_keep: How many of the newest are kept; None keeps all.
        keep_every: Checkpoints of steps that this divides are kept for good.
        save_interval: `save` does nothing until this many steps after the last one.

    Raises:
        TypeError: If `checkpoint` is no Checkpoint, or `directory` no path.
        ValueError: If one of the numbers is below 1.

    Example:
        >>> import tempfile, torch
        >>> folder = tempfile.mkdtemp()
        >>> checkpoint = Checkpoint(model=torch.nn.Linear(2, 1))
        >>> manager = CheckpointManager(checkpoint, folder, max_to_keep=2)
        >>> for step in range(4):
        ...     path = manager.save(step=step)
        >>> [path[-8:] for path in manager.checkpoints], manager.latest() == path
        (['00000002', '00000003'], True)
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        directory: str | os.PathLike[str],
        max_to_keep: int | None = 5,
        keep_every: int | None = None,
        save_interval: int = 1,
    ) -> None:
        _check_kind(checkpoint)
        _check_number("max_to_keep", max_to_keep)
        _check_number("keep_every", keep_every)
        _check_number("save_interval", save_interval)
        self.checkpoint = checkpoint
        self.directory = place_of("CheckpointManager", directory)
        self._max_to_keep = max_to_keep
        self._keep_every = keep_every
        self._save_interval = save_interval
        self._ranks = Ranks()
        self._record = Record(self.directory)
        self._has_cleared = False
        self._last_step: int | None = None
        self._written: Path | None = None

    def __repr__(self) -> str:
        return f"<CheckpointManager of {self.checkpoint!r} in {str(self.directory)!r}>"

    @property
    def checkpoints(self) -> list[str]:
        """Paths of all checkpoints in the folder whose files are whole, by step."""
        found = self._ranks.lead(lambda: list(map(str, self._valid(quiet=True))))
        return list(reversed(found))

    def latest(self) -> str | None:
        """The newest checkpoint whose manifest is sound and whose files are whole.

        Newer ones that are not are passed over, with a warning that names them.

        Returns:
            Its path; None if there is none.
        """
        return self._ranks.lead(lambda: next(map(str, self._valid(quiet=False)), None))

    def save(self, step: int, metadata: dict[str, Any] | None = None) -> str | None:
        """Save, if it is time; then remove what need not be kept.

        A checkpoint of the same step that the manager has made is replaced.

        Args:
            step: The number of the training step, from 0 on.
            metadata: Plain values of your own, for `read_metadata`.

        Returns:
            The path of the new checkpoint; None if the last one is less than
            `save_interval` steps old.

        Raises:
            ValueError: If `step` is negative.
            CheckpointError: If somebody else's checkpoint stands there, or something
                cannot be saved.
            OSError: From the system; all older checkpoints stand.
        """
        path = self._due(step)
        if path is None:
            return None
        owned = self._ranks.lead(lambda: self._announce(path))
        saved = self.checkpoint.save(path, overwrite=owned, metadata=metadata)
        self._last_step = step
        self._ranks.lead(lambda: self._keep(path))
        return saved

    def save_async(
        self, step: int, metadata: dict[str, Any] | None = None
    ) -> str | None:
        """Save as `save` does, but write while training goes on.

        A save before this one that is still being written is waited for. What need not
        be kept is removed once the new checkpoint stands: by the next save, or `wait`.

        Args:
            step: As for `save`.
            metadata: As for `save`.

        Returns:
            The path of the checkpoint to be, which stands once `wait` has returned;
            None as for `save`.

        Raises:
            ValueError: If `step` is negative.
            CheckpointError: As for `save`.
            OSError: What the save before this one failed with, and nothing is begun;
                the next call saves, whatever the interval.
        """
        path = self._due(step)
        if path is None:
            return None
        owned = self._ranks.lead(lambda: self._announce(path))
        place = self.checkpoint.save_async(path, overwrite=owned, metadata=metadata)
        self._last_step, self._written = step, path
        return place

    def wait(self) -> str | None:
        """Wait until what `save_async` began is on the disk, then remove what is old.

        Call it before the program ends.

        Returns:
            The path of the checkpoint; None if nothing was begun since the last wait.

        Raises:
            CheckpointError: If it could not be saved; see `save`.
            OSError: From the system; all older checkpoints stand.
        """
        path, self._written = self._written, None
        if path is None:
            return None
        try:
            self.checkpoint.wait()
        except BaseException:
            self._last_step = None
            raise
        self._ranks.lead(lambda: self._keep(path))
        return str(path)

    def _due(self, step: int) -> Path | None:
        """Where to save, if it is time, once what was begun before is done."""
        _check_number("step", step, least=0)
        last = self._last_step
        if last is not None and last <= step < last + self._save_interval:
            return None
        self.wait()
        return self.directory / f"step-{step:08d}"

    def restore_or_initialize(
        self, initialize: Callable[[], Any] | None = None, **options: Any
    ) -> RestoreStatus | None:
        """Restore the newest checkpoint that is sound, or start anew.

        One whose checksums turn out wrong is passed over with a warning, on all ranks
        alike, and the one before is restored.

        Args:
            initialize: Called if there is no checkpoint at all.
            **options: For `Checkpoint.restore`.

        Returns:
            What was restored and what was not; None if there is no checkpoint.

        Raises:
            CheckpointError: If there are checkpoints but none is sound, or the newest
                sound one does not fit.
            OSError: What a save that was still being written failed with.
        """
        self.wait()
        names = self._ranks.lead(lambda: list(map(str, self._valid(quiet=False))))
        for path in names:
            status = self._try_restore(path, options)
            if status is not None:
                self._last_step = _step_of(Path(path))
                return status
        if self._ranks.lead(lambda: bool(list(self._found()))):
            expected, got = "a sound checkpoint", "damaged ones only"
            action = "Move them away to start anew, or restore one by hand."
            where = f"CheckpointManager: {self.directory}"
            raise CheckpointError(message(where, expected, got, action))
        if initialize is not None:
            initialize()
        return None

    def _try_restore(self, path: str, options: dict[str, Any]) -> RestoreStatus | None:
        status: RestoreStatus | None = None
        problem = ""
        try:
            status = self.checkpoint.restore(path, **options)
        except DamagedError as damage:
            problem = str(damage)
        problems = [text for text in self._ranks.share(problem) if text]
        if not problems:
            return status
        _say_passed_over(path, problems[0])
        return None

    def _found(self) -> Iterator[tuple[int, Path]]:
        """All that are named like ours, also those that are moved aside."""
        if not self.directory.is_dir():
            return
        for folder in self.directory.iterdir():
            moved = ASIDE.fullmatch(folder.name)
            place = folder.with_name(moved["name"]) if moved else folder
            step = _step_of(place)
            if step is not None and (moved is None or not place.is_dir()):
                yield step, place

    def _valid(self, quiet: bool) -> Iterator[Path]:
        """Those whose structure is sound, the newest first."""
        for _, path in sorted(set(self._found()), reverse=True):
            try:
                check_structure(path)
            except (CheckpointError, OSError) as problem:
                if not quiet:
                    _say_passed_over(str(path), str(problem))
            else:
                yield path

    def _announce(self, path: Path) -> bool:
        """Take a name on the first rank; whether one of ours stands there."""
        make_parents(self.directory)
        if not self._has_cleared:
            self._has_cleared = True
            for name in self._record.names:
                clear_leavings(self.directory / name)
        owned = self._record.owns(path.name)
        is_folder = path.is_dir() and not path.is_symlink()
        if owned and is_folder and not os.path.lexists(path / MANIFEST):
            remove_checkpoint(path)  # what an interrupted removal has left
        if owned or not os.path.lexists(path):
            self._record.announce(path.name)
        return owned

    def _keep(self, path: Path) -> None:
        self._record.complete(path.name)
        if self._max_to_keep is None:
            return
        kept = [p.name for p in self._valid(quiet=True)][: self._max_to_keep]
        removed = [
            name
            for name in self._record.names
            if name not in kept and name != path.name and not self._is_for_good(name)
        ]
        for name in removed:
            folder = self.directory / name
            if self._record.owns(name) and folder.is_dir() and not folder.is_symlink():
                remove_checkpoint(folder)
        self._record.forget(removed)

    def _is_for_good(self, name: str) -> bool:
        step = _step_of(Path(name))
        if step is None or self._keep_every is None:
            return False
        return step % self._keep_every == 0


def _step_of(path: Path) -> int | None:
    found = STEP_NAME.fullmatch(path.name)
    return int(found["step"]) if found else None


def _say_passed_over(path: str, problem: str) -> None:
    text = f"{path} was passed over. {problem}"
    warnings.warn(text, stacklevel=level_of_caller())


def _check_kind(checkpoint: object) -> None:
    if not isinstance(checkpoint, Checkpoint):
        action = "Write CheckpointManager(Checkpoint(model=model), directory)."
        got = describe(checkpoint)
        raise TypeError(message("CheckpointManager", "a Checkpoint", got, action))


def _check_number(name: str, value: int | None, least: int = 1) -> None:
    if value is not None and (type(value) is not int or value < least):
        where, expected = f"CheckpointManager({name}=…)", f"an integer from {least} on"
        raise ValueError(message(where, expected, repr(value), "Pass another number."))
