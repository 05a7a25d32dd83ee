"""Run one function on several ranks: N processes, gloo on loopback, bounded.

`run_ranks(function, world_size, *args)` starts one Python process a rank, gives
each the environment `torchrun` would give (``RANK``, ``WORLD_SIZE``,
``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``), calls ``function(*args)`` on
every rank and returns the results in rank order. The rendezvous store is served
by the calling process on a port the system chose, as torchrun's agent does, so
no two runs can take each other's port. When a rank raises, the others get a
short grace and are ended by their own process ids; the same when time is up.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

POLL_SECONDS = 0.02
GRACE_SECONDS = 3.0
OUTPUT_TAIL = 4000


class RankError(RuntimeError):
    """At least one rank raised or died; ``failures`` maps rank to its text."""

    def __init__(self, failures: dict[int, str]) -> None:
        self.failures = failures
        parts = [f"--- rank {rank} ---\n{text}" for rank, text in failures.items()]
        super().__init__("ranks failed:\n" + "\n".join(parts))


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 120.0,
    initialise: bool = True,
) -> list[Any]:
    """Call ``function(*args)`` on every rank and return the results by rank.

    Args:
        function: a function at the top level of a module that lies in a file;
            it asks `torch.distributed` for its rank.
        world_size: how many ranks.
        *args: what each rank is given; pickled.
        timeout: seconds until the ranks are ended and `TimeoutError` is raised.
        initialise: make the gloo process group before the call; with ``False``
            only the environment is set, as for a script under `torchrun`.

    Returns:
        list: what each rank returned (pickled), in rank order.

    Raises:
        RankError: a rank raised or died; its traceback is in the text.
        TimeoutError: the ranks were not done in time.
    """
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        _write_task(folder, function, args, timeout if initialise else None)
        ranks = [_start(folder, r, world_size, store.port) for r in range(world_size)]
        try:
            _wait(ranks, folder, timeout)
        finally:
            _end(ranks)
        return _collect(ranks, folder)


def _write_task(
    folder: Path,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    group_timeout: float | None,
) -> None:
    """Store what each rank needs; the function goes by file and name."""
    module = sys.modules[function.__module__]
    place = (function.__module__, str(module.__file__), function.__qualname__)
    task = (list(sys.path), place, group_timeout)
    (folder / "task.pickle").write_bytes(pickle.dumps(task))
    (folder / "args.pickle").write_bytes(pickle.dumps(args))


def _start(
    folder: Path, rank: int, world_size: int, port: int
) -> subprocess.Popen[bytes]:
    """Start one rank with the environment torchrun would give it."""
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # The store is served by this process, not by rank 0.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / f"output{rank}").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _wait(ranks: list[subprocess.Popen[bytes]], folder: Path, timeout: float) -> None:
    """Wait until all ranks are done, or one has failed and its grace is over."""
    deadline = time.monotonic() + timeout
    failing = False
    while any(rank.poll() is None for rank in ranks):
        if time.monotonic() > deadline:
            if failing:
                return
            outputs = {r: _output(folder, r) for r in range(len(ranks))}
            raise TimeoutError(f"ranks not done after {timeout} s: {outputs}")
        if not failing and any(rank.poll() not in (None, 0) for rank in ranks):
            failing = True
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        time.sleep(POLL_SECONDS)


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """End what is still running, each by its own process handle."""
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
    for rank in ranks:
        rank.wait()


def _collect(ranks: list[subprocess.Popen[bytes]], folder: Path) -> list[Any]:
    """Read the results, or raise with the text of every rank that failed."""
    failures: dict[int, str] = {}
    results: list[Any] = []
    for number, rank in enumerate(ranks):
        path = folder / f"result{number}"
        if not path.exists():
            failures[number] = f"exit {rank.returncode}: {_output(folder, number)}"
            continue
        succeeded, value = pickle.loads(path.read_bytes())
        if succeeded:
            results.append(value)
        else:
            failures[number] = value
    if failures:
        raise RankError(failures)
    return results


def _output(folder: Path, rank: int) -> str:
    """The last characters a rank wrote."""
    return (folder / f"output{rank}").read_text(errors="replace")[-OUTPUT_TAIL:]


# ----------------------------------------------------------------- in a rank


def _load_function(place: tuple[str, str, str]) -> Callable[..., Any]:
    """Import the function's file under the module name it had for the caller."""
    name, file, qualified = place
    if name == "__main__":  # as itself, a script would start ranks once more
        name = "script_of_ranks"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    found: Any = module
    for part in qualified.split("."):
        found = getattr(found, part)
    return found


@contextlib.contextmanager
def _process_group(timeout: float | None) -> Iterator[None]:
    """A gloo group for the call; without a timeout none is made here."""
    if timeout is not None:
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    yield
    # Reached only when the call succeeded: tearing down after an exception
    # could wait for ranks that are waiting for this one.
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _rank_main(folder: Path, rank: int) -> int:
    """Run the task of one rank and store its result or its traceback."""
    path, place, timeout = pickle.loads((folder / "task.pickle").read_bytes())
    sys.path[:] = path
    torch.set_num_threads(1)
    succeeded, value = True, None
    try:
        function = _load_function(place)
        args = pickle.loads((folder / "args.pickle").read_bytes())
        with _process_group(timeout):
            value = function(*args)
        data = pickle.dumps((True, value))
    except BaseException:
        succeeded, data = False, pickle.dumps((False, traceback.format_exc()))
    temporary = folder / f"result{rank}.part"
    temporary.write_bytes(data)
    temporary.rename(folder / f"result{rank}")
    return 0 if succeeded else 1


if __name__ == "__main__":
    # Skip interpreter teardown: gloo threads may outlive a failed group.
    status = _rank_main(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
