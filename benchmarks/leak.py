"""Does memory stay flat over a long training that saves checkpoints?

    python -m benchmarks.leak            10,000 steps each way, kept in results/
    python -m benchmarks.leak --quick    300 steps, as the tests run them

A small model is trained; every tenth step is saved by a manager that keeps three
checkpoints, either before training goes on or beside it. The first fifth warms up. From
then on the process may grow by a megabyte, and the interpreter by a hundred objects; a
single byte that each step keeps would not show, 125 would.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import thalweg as tw
from benchmarks.harness import report

Row = dict[str, Any]
WAYS = ("save", "save_async")
SAMPLES = 40
WARM_UP = 0.2
MOST_BYTES = 1 << 20
MOST_OBJECTS = 100


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def opened() -> int:
    """Open files of this process."""
    return len(os.listdir("/proc/self/fd"))


def measure(
    way: str,
    steps: int,
    every: int = 10,
    after_step: Callable[[int], object] = lambda step: None,
) -> Row:
    """Train with saving, and look at the memory now and then.

    Args:
        way: Method of the manager that saves.
        steps: Length of the training.
        every: Steps from one save to the next.
        after_step: Called after each step.

    Returns:
        A line of the table.
    """
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 1))
    optimizer = tw.optimizers.Adam(1e-3)
    checkpoint = tw.Checkpoint(
        model=model, optimizer=optimizer, random=tw.RandomState()
    )
    inputs = torch.randn(8, 256)
    seen: list[tuple[int, int, int]] = []
    gc.freeze()  # what is there already is not looked through each time
    with tempfile.TemporaryDirectory(prefix="leak-") as folder:
        manager = tw.CheckpointManager(checkpoint, folder, max_to_keep=3)
        save = getattr(manager, way)
        for step in range(1, steps + 1):
            model.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.apply_gradients([(p.grad, p) for p in model.parameters()])
            if step % every == 0:
                save(step)
            after_step(step)
            if step > WARM_UP * steps and step % max(1, steps // SAMPLES) == 0:
                manager.wait()
                gc.collect()
                seen.append((resident(), len(gc.get_objects()), opened()))
        manager.wait()
    gc.unfreeze()
    return _row(way, steps, steps // every, seen)


def _row(way: str, steps: int, saves: int, seen: list[tuple[int, int, int]]) -> Row:
    """Medians of the last quarter against those of the first one."""
    quarter = max(1, len(seen) // 4)
    grown, objects, files = (
        statistics.median(numbers[-quarter:]) - statistics.median(numbers[:quarter])
        for numbers in zip(*seen, strict=True)
    )
    is_flat = grown <= MOST_BYTES and objects <= MOST_OBJECTS and files <= 0
    return {
        "way": way,
        "steps": steps,
        "saves": saves,
        "resident_mb": seen[-1][0] / 1e6,
        "grown_kb": grown / 1e3,
        "objects_grown": objects,
        "files_grown": files,
        "flat": is_flat,
    }


def main() -> int:
    """Run the long form, or the short one; status 1 if memory is not flat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="300 steps; keep nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(2)
    rows = [measure(way, 300 if quick else 10_000) for way in WAYS]
    is_flat = all(row["flat"] for row in rows)
    report("leak", rows, {"memory flat": is_flat}, write=not quick)
    return 0 if is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
