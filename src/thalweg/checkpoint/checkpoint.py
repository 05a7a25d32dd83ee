"""`Checkpoint`: named objects that are saved to a folder and restored from it."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from thalweg.checkpoint.asynchronous import Background
from thalweg.checkpoint.deferral import Deferral
from thalweg.checkpoint.durable import check_free, place_of
from thalweg.checkpoint.folder import Reader, read_metadata, write_folder
from thalweg.checkpoint.graph import Graph, build_graph
from thalweg.checkpoint.hyperparameters import HYPER_POLICIES, HyperPolicy
from thalweg.checkpoint.manifest import Manifest
from thalweg.checkpoint.matching import Match, match
from thalweg.checkpoint.ranks import Ranks
from thalweg.checkpoint.restoring import carry_out
from thalweg.checkpoint.snapshot import Snapshot, take_snapshot
from thalweg.checkpoint.status import RestoreStatus, list_problems
from thalweg.errors import CheckpointError, level_of_caller, message, nearest

PathLike = str | os.PathLike[str]


class Checkpoint:
    """Saves and restores named objects: everything is found by its name.

    A key is the object's name, then the attribute path: `model/0.weight`. A slot of an
    optimizer stands under the name of its variable, so that the order in which
    variables were made or passed does not matter. Nothing is pickled. The folder is
    described in docs/checkpoint-format.md.

    With several ranks every rank calls `save` and `restore`; the first one writes.

    Args:
        **objects: What to save, by name: modules, Trackables (models, layers),
            optimizers, variables and other tensors, plain values (None, bool, int,
            float, str, lists and dicts of such), objects with `state_dict()` and
            `load_state_dict()`, or lists and dicts of all these.

    Raises:
        ValueError: If no object is given, or a name is that of a method.

    Example:
        >>> import tempfile, torch
        >>> checkpoint = Checkpoint(model=torch.nn.Linear(2, 1), epoch=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = checkpoint.save(f"{folder}/first")
        ...     checkpoint.update(epoch=9)
        ...     status = checkpoint.restore(path)
        >>> status.assert_consumed().restored, checkpoint.epoch
        (('model/weight', 'model/bias', 'epoch'), 3)
    """

    def __init__(self, **objects: Any) -> None:
        taken = sorted(name for name in objects if hasattr(type(self), name))
        if taken or not objects:
            raise ValueError(
                message(
                    "Checkpoint",
                    "objects by name",
                    f"the name of a method, '{taken[0]}'" if taken else "none",
                    "Write, for example, Checkpoint(model=model, optimizer=optimizer).",
                )
            )
        self._objects = objects
        self._has_said_unnamed = False
        self._deferral: Deferral | None = None
        self._background = Background()

    @property
    def objects(self) -> Mapping[str, Any]:
        """The objects by name; a plain value is here the one last restored."""
        return MappingProxyType(self._objects)

    def __repr__(self) -> str:
        return f"<Checkpoint of {', '.join(self.__dict__.get('_objects', ()))}>"

    def __getattr__(self, name: str) -> Any:
        objects = self.__dict__.get("_objects", {})
        if name not in objects:
            raise AttributeError(f"Checkpoint has no object '{name}'")
        return objects[name]

    def update(self, **objects: Any) -> None:
        """Replace objects that the checkpoint has, such as a plain counter.

        Raises:
            ValueError: If a name is new; nothing is replaced then.
        """
        for name in objects:
            if name not in self._objects:
                where, expected = "Checkpoint.update", "the name of one of its objects"
                action = nearest(name, self._objects)
                raise ValueError(message(where, expected, repr(name), action))
        if self._deferral is not None:
            self._deferral.adopt(self._objects | objects)
        self._objects.update(objects)

    def save(
        self,
        path: PathLike,
        overwrite: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        """Write all objects to a new folder, which appears whole or not at all.

        When this returns, the checkpoint is on the disk, not only in a cache.

        Args:
            path: The folder to make. Folders above it are made where missing.
            overwrite: Whether a checkpoint that stands there is replaced. It is moved
                aside first, and removed when the new one stands.
            metadata: Plain values of your own, for `read_metadata`.

        Returns:
            The path of the folder, absolute.

        Raises:
            CheckpointError: If `path` exists (and `overwrite` is False, or it is no
                checkpoint), or something cannot be saved; nothing was written.
            OSError: From the system, such as a full disk. What was written is removed,
                and an older checkpoint stands where it stood.
        """
        place, ranks = self._begin_save(path), Ranks()
        snapshot, manifest = self._take(metadata, ranks)
        write_folder(place, snapshot.tensors, manifest, overwrite, ranks)
        return str(place)

    def save_async(
        self,
        path: PathLike,
        overwrite: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        """Copy all that `save` would write, return, and write it meanwhile.

        What is written is what the objects hold now, whatever is done to them after
        this returns. The copies are in memory that is kept for the next time. A save
        before this one that is still being written is waited for. The interpreter
        does not end before the writing has.

        Args:
            path: As for `save`.
            overwrite: As for `save`.
            metadata: As for `save`.

        Returns:
            The path of the folder to be, absolute. It stands there, whole and on the
            disk, once `wait` has returned.

        Raises:
            CheckpointError: As for `save`.
            OSError: What the save before this one failed with, and nothing is begun.

        Example:
            >>> import tempfile, torch
            >>> weight = torch.ones(2)
            >>> checkpoint = Checkpoint(weight=weight)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = checkpoint.save_async(f"{folder}/first")
            ...     _ = weight.zero_()
            ...     _ = checkpoint.restore(checkpoint.wait())
            >>> weight.tolist()
            [1.0, 1.0]
        """
        place, ranks = self._begin_save(path), Ranks()
        ranks.lead(lambda: check_free(place, overwrite))
        snapshot, manifest = self._take(metadata, ranks)
        pieces = self._background.staging.copy(snapshot.tensors)
        ranks = self._background.ranks()

        def write() -> str:
            write_folder(place, pieces, manifest, overwrite, ranks)
            return str(place)

        self._background.writer.submit(write)
        return str(place)

    def wait(self) -> str | None:
        """Wait until what `save_async` began is on the disk.

        Returns:
            The path of its folder; None if nothing was begun since the last wait.

        Raises:
            CheckpointError: If it could not be saved; see `save`.
            OSError: From the system, such as a full disk.
        """
        return self._background.writer.wait()

    def _begin_save(self, path: PathLike) -> Path:
        place = place_of("Checkpoint", path)
        self.wait()
        if self._deferral is not None:
            self._deferral.status.warn_if_ignored(level_of_caller())
        return place

    def _take(
        self, metadata: dict[str, Any] | None, ranks: Ranks
    ) -> tuple[Snapshot, Manifest]:
        """What this rank writes, once every rank has found what it can write."""
        taken: list[Snapshot] = []

        def take() -> dict[str, Any]:
            graph = build_graph(self._objects)
            self._say_unnamed(graph)
            taken.append(take_snapshot(graph, metadata))
            return taken[0].own_values

        values = ranks.together(take)
        return taken[0], taken[0].with_values(values)

    def restore(
        self,
        path: PathLike,
        hyper: HyperPolicy = "checkpoint",
        *,
        checksums: bool = True,
    ) -> RestoreStatus:
        """Put saved values into the existing objects, in place.

        Everything is read, checked and matched before the first value is written.
        Slots that an optimizer has not made yet are made. What has no place yet waits:
        a variable that is made later takes its value when it becomes part of a saved
        module or Trackable, and so do its slots. A value that is set after that, as
        by an initializer, counts.

        Args:
            path: The folder that `save` returned.
            hyper: "checkpoint" takes saved hyperparameters and logs each that differs;
                "keep" leaves the optimizer's own; "error-if-different" refuses.
            checksums: False leaves out reading all files through before the first
                value is written; their structure is checked all the same.

        Returns:
            What was restored and what was not. Look at it: `assert_consumed()`,
            `assert_existing_objects_matched()` or `expect_partial()`. Otherwise the
            next step or save warns of what did not match.

        Raises:
            TypeError: If `path` is no path, such as the `latest` of an empty manager.
            ValueError: If `hyper` is none of the three.
            CheckpointError: If there is no sound checkpoint at `path`, a shape or
                dtype or the kind of an optimizer differs, or an object refuses its
                state; all that does not fit is listed, and nothing was changed.
        """
        _check_policy(hyper)
        reader = Reader(path, checksums)
        _say_aside(reader.folder, path)
        graph = build_graph(self._objects)
        found = match(graph, reader.manifest, hyper)
        _check_fit(found, reader.folder)
        carry_out(graph, found, reader, hyper)
        self._deferral = Deferral(self._objects, reader, hyper, found, graph)
        return self._deferral.status

    @staticmethod
    def read_metadata(path: PathLike) -> dict[str, Any]:
        """The `metadata` that was given to `save`; see `checkpoint.read_metadata`."""
        return read_metadata(path)

    def _say_unnamed(self, graph: Graph) -> None:
        count = graph.count_unnamed()
        if count and not self._has_said_unnamed:
            self._has_said_unnamed = True
            warnings.warn(
                f"Checkpoint: no saved object holds {count} variables of an "
                "optimizer. Their slots are saved as unnamed_0, unnamed_1, … in the "
                "optimizer's order. Give the model to Checkpoint too.",
                stacklevel=level_of_caller(),
            )


def _say_aside(folder: Path, path: PathLike) -> None:
    if folder != Path(os.path.abspath(path)):
        warnings.warn(
            f"Checkpoint: saving over {path} was interrupted; the checkpoint that "
            f"stood there before is read from {folder}.",
            stacklevel=level_of_caller(),
        )


def _check_policy(hyper: str) -> None:
    if hyper not in HYPER_POLICIES:
        expected = " or ".join(f'"{policy}"' for policy in HYPER_POLICIES)
        action = nearest(hyper, HYPER_POLICIES)
        where = "Checkpoint.restore(hyper=…)"
        raise ValueError(message(where, expected, repr(hyper), action))


def _check_fit(found: Match, folder: Path) -> None:
    if found.mismatched:
        problems = list_problems(
            tuple(found.missing), tuple(found.unexpected), tuple(found.mismatched)
        )
        raise CheckpointError(
            f"Checkpoint.restore: {folder} does not fit these objects."
            f"{problems}\nNothing was changed."
        )
