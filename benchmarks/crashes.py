"""Processes that die while they save, and what is found afterwards.

    python -m benchmarks.crashes kill FOLDER ROUNDS MEGABYTES
    python -m benchmarks.crashes exit FOLDER

A child saves without end and says of each checkpoint that it is saved; it is killed at
a random moment, or ends itself at a given change of the disk. Its parent then restores.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.savers import number_of
from thalweg.checkpoint import Checkpoint, disk
from thalweg.checkpoint.manager import CheckpointManager
from thalweg.state import Variable

WAYS = ("overwrite", "manager")


class Trainer:
    """State, a way of saving it to a folder, and a way of finding it again."""

    def __init__(self, way: str, folder: Path, elements: int) -> None:
        half = elements // 2
        self.objects: Any = {"x": Variable(torch.zeros(half))}
        self.objects["y"] = Variable(torch.zeros(elements - half))
        self.checkpoint = Checkpoint(**self.objects)
        self.way, self.folder = way, folder
        self.manager = CheckpointManager(self.checkpoint, folder, max_to_keep=2)

    def save(self, number: int) -> None:
        """Save the state of a step."""
        for variable in self.objects.values():
            variable.assign(torch.full_like(variable, float(number)))
        if self.way == "manager":
            self.manager.save(number)
        else:
            self.checkpoint.save(self.folder / "newest", overwrite=True)

    def restore(self) -> int:
        """Restore into zeros; the step that came back."""
        for variable in self.objects.values():
            variable.assign(torch.zeros_like(variable))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an interrupted overwrite is right here
            if self.way == "manager":
                self.manager = CheckpointManager(self.checkpoint, self.folder, 2)
                status = self.manager.restore_or_initialize()
                if status is None:
                    raise LookupError("there is no checkpoint")
            else:
                status = self.checkpoint.restore(self.folder / "newest")
            status.assert_consumed()
        number = number_of(self.objects)
        if number is None:
            raise LookupError("a mixture of states was restored")
        return number


def in_child(work: Callable[[Callable[[int], None]], None]) -> tuple[int, int]:
    """Run `work` in a child; its process, and a pipe with what it acknowledges."""
    source, sink = os.pipe()
    child = os.fork()
    if child:
        os.close(sink)
        return child, source
    try:
        work(lambda number: void(os.write(sink, b"%d " % number)))
    finally:
        os._exit(0)


def save_on(trainer: Trainer, first: int, say: Callable[[int], None]) -> None:
    """Save step after step."""
    for step in count(first):
        trainer.save(step)
        say(step)


def save_and_end(trainer: Trainer, change: int, say: Callable[[int], None]) -> None:
    """Save step 4, and end before a change of the disk."""
    disk.before = ends_at(change)
    trainer.save(4)
    say(4)


def void(_: object) -> None:
    """Take a result and give none."""


def acknowledged(source: int, before: int) -> int:
    """The newest checkpoint that the child has acknowledged."""
    with os.fdopen(source) as told:
        return max([before, *map(int, told.read().split())])


def kill(folder: Path, rounds: int, megabytes: float) -> dict[str, Any]:
    """Kill a saving process at random moments."""
    chance, losses = random.Random(1), 0
    saved: dict[str, int] = {}
    for way in WAYS:
        trainer = Trainer(way, folder / way, int(megabytes * 250_000))
        trainer.save(1)
        number = 1
        for _ in range(rounds // 2):
            child, source = in_child(partial(save_on, trainer, number + 1))
            time.sleep(chance.uniform(0.0, 0.05 + 0.06 * megabytes))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            least = acknowledged(source, number)
            number = trainer.restore()
            losses += number < least
        saved[way] = number
    return {"rounds": 2 * (rounds // 2), "lost": losses, "saved": sum(saved.values())}


def ends_at(change: int) -> disk.Watcher:
    """End the process, as if by kill, before that change of the disk."""
    remaining = [change]

    def watch(kind: str, path: Path, detail: Any) -> None:
        del kind, path, detail
        remaining[0] -= 1
        if not remaining[0]:
            os._exit(9)

    return watch


def exit_everywhere(folder: Path) -> dict[str, Any]:
    """End a saving process before each change that a save makes."""
    losses, points = 0, 0
    for way in WAYS:
        for change in count(1):
            place = folder / f"{way}{change}"
            trainer = Trainer(way, place, 1000)
            for step in (1, 2, 3):
                trainer.save(step)

            child, source = in_child(partial(save_and_end, trainer, change))
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            losses += trainer.restore() < acknowledged(source, 3)
            trainer.save(5)  # and it goes on from there
            losses += trainer.restore() != 5
            shutil.rmtree(place)
            if ended == 0:
                break
            points += 1
    return {"points": points, "lost": losses}


def main(what: str, folder: str, *numbers: str) -> None:
    """Print the outcome as JSON."""
    if what == "kill":
        outcome = kill(Path(folder), int(numbers[0]), float(numbers[1]))
    else:
        outcome = exit_everywhere(Path(folder))
    sys.stdout.write(json.dumps(outcome) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
