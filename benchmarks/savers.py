"""Ways of saving training state, held against one another by `reliability`.

Each keeps a few checkpoints of numbered steps in a folder, as training scripts do: the
next is saved, then the oldest is removed. The state of step i holds i in every element,
so that a mixture of two states is seen at once.

    python -m benchmarks.savers NAME FOLDER COUNT

saves COUNT states and makes a folder `acknowledged/i` after each.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from thalweg.checkpoint import Checkpoint
from thalweg.checkpoint.manager import CheckpointManager
from thalweg.state import Variable

KEPT = 2
State = dict[str, torch.Tensor]


def state_of(number: int, tensors: int = 4, elements: int = 1500) -> State:
    """The state of a step: every element is its number."""
    full = torch.full
    return {f"t{i}": full((elements,), float(number)) for i in range(tensors)}


def number_of(state: Mapping[str, torch.Tensor]) -> int | None:
    """Which step a state is of; None if it is none's."""
    values = torch.cat([tensor.flatten() for tensor in state.values()])
    number = int(values[0]) if values.numel() and values[0].isfinite() else -1
    return number if bool((values == number).all()) else None


class Saver:
    """A way of saving.

    Args:
        save: Saves a state at a path.
        load: Gives the tensors at a path, or raises.
        replaces: Whether one path is saved over and over; else each step has its own.
    """

    def __init__(
        self,
        save: Callable[[State, Path], Any],
        load: Callable[[Path], Mapping[str, torch.Tensor]],
        replaces: bool = False,
    ) -> None:
        self._save, self._load, self._replaces = save, load, replaces

    def save(self, number: int, folder: Path) -> None:
        """Save the state of a step and remove the oldest."""
        name = "newest" if self._replaces else f"step-{number:04d}"
        self._save(state_of(number), folder / name)
        oldest = folder / f"step-{number - KEPT:04d}"
        if oldest.is_dir():
            shutil.rmtree(oldest)
        elif oldest.exists():
            oldest.unlink()

    def load(self, folder: Path) -> int | None:
        """The newest step that can be loaded.

        Returns:
            Its number; -1 if nothing can be loaded, None if what was loaded is wrong.
        """
        for path in sorted(folder.glob("*"), reverse=True):
            try:
                state = self._load(path)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:  # DCP's errors are no Exceptions
                continue  # a script would go on with the one before
            return number_of(state)
        return -1


def _save_torch(state: State, path: Path) -> None:
    torch.save(state, path)


def _load_torch(path: Path) -> State:
    return torch.load(path, weights_only=True)


def _save_safetensors(state: State, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, path)


def _load_safetensors(path: Path) -> State:
    from safetensors.torch import load_file

    return load_file(path)


def save_distributed(state: State, path: Path) -> None:
    """Save with torch.distributed's checkpoints."""
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is one process only
        save(state, checkpoint_id=path, no_dist=True)


def load_distributed(path: Path, state: State | None = None) -> State:
    """Load a checkpoint of torch.distributed into tensors."""
    from torch.distributed.checkpoint.state_dict_loader import load

    state = state_of(-7) if state is None else state
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(state, checkpoint_id=path, no_dist=True)
    return state


def variables(state: State) -> dict[str, Variable]:
    """A state as objects to save."""
    return {key: Variable(tensor) for key, tensor in state.items()}


def _save_folder(state: State, path: Path) -> None:
    Checkpoint(**variables(state)).save(path, overwrite=True)


def _load_folder(path: Path) -> State:
    objects: Any = variables(state_of(-7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an interrupted overwrite is right here
        Checkpoint(**objects).restore(path).assert_consumed()
    return objects


class Overwriting(Saver):
    """`Checkpoint.save(path, overwrite=True)`."""

    def __init__(self) -> None:
        super().__init__(_save_folder, _load_folder, replaces=True)

    def load(self, folder: Path) -> int | None:
        """The step at the one path, or where an overwrite has moved it."""
        try:
            return number_of(_load_folder(folder / "newest"))
        except ValueError:
            return -1


class Managed(Saver):
    """`CheckpointManager`."""

    def __init__(self) -> None:
        super().__init__(_save_folder, _load_folder)
        self._objects: Any = variables(state_of(0))
        self._managers: dict[Path, CheckpointManager] = {}

    def save(self, number: int, folder: Path) -> None:
        """Save through the manager, which removes the oldest."""
        for variable in self._objects.values():
            variable.assign(torch.full_like(variable, float(number)))
        if folder not in self._managers:
            checkpoint = Checkpoint(**self._objects)
            self._managers[folder] = CheckpointManager(checkpoint, folder, KEPT)
        self._managers[folder].save(number)

    def load(self, folder: Path) -> int | None:
        """The step that the manager restores."""
        objects: Any = variables(state_of(-7))
        manager = CheckpointManager(Checkpoint(**objects), folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is damaged is passed over
            try:
                status = manager.restore_or_initialize()
            except ValueError:
                return -1
        return -1 if status is None else number_of(objects)


SAVERS: dict[str, Callable[[], Saver]] = {
    "thalweg, manager": Managed,
    "thalweg, overwrite": Overwriting,
    "torch.save": lambda: Saver(_save_torch, _load_torch),
    "torch.save, one path": lambda: Saver(_save_torch, _load_torch, replaces=True),
    "safetensors": lambda: Saver(_save_safetensors, _load_safetensors),
    "safetensors, one path": lambda: Saver(
        _save_safetensors, _load_safetensors, replaces=True
    ),
    "DCP": lambda: Saver(save_distributed, load_distributed),
    "DCP, one path": lambda: Saver(save_distributed, load_distributed, replaces=True),
}


def main(name: str, folder: str, count: str) -> None:
    """Save states one after the other, and say of each that it is saved."""
    saver, place = SAVERS[name](), Path(folder)
    for number in range(int(count)):
        saver.save(number, place)
        os.mkdir(place / "acknowledged" / str(number))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
