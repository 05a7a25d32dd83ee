"""Reliability of checkpoints: processes killed, power cut, disks full, files damaged.

    python -m benchmarks.reliability            the long forms, kept in results/
    python -m benchmarks.reliability --quick    the short ones, as the tests run them

Other ways of saving go through the same harness of power cuts, and through the timing,
where each flushes its files: saving that a power cut undoes is not compared.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks import crashes, hostile, resharding, resuming
from benchmarks.harness import RESULTS, interleaved, report
from benchmarks.power_loss import states, traced
from benchmarks.savers import SAVERS, load_distributed, save_distributed, state_of
from tests.distributed.harness import run_ranks
from thalweg.checkpoint import Checkpoint, disk
from thalweg.checkpoint.manifest import seal
from thalweg.errors import CheckpointError
from thalweg.state import Variable

Row = dict[str, Any]
CODES = (errno.ENOSPC, errno.EIO, errno.EROFS)
ROUND_TRIP = "save and load"
HELD_UP = "training held up"
FORGERIES: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**80, "", "x", "../x.safetensors"),
    *([], {}, [0], [[[]]], [7, 1], {"$float": "nan"}, {"$tensor": "t0"}, "float32"),
]
SHARED_MEMORY = Path("/dev/shm")  # thousands of small disks are made
PROJECT = Path(__file__).parents[1]


@contextmanager
def scratch(fast: bool = False) -> Iterator[Path]:
    """An empty folder, in memory if `fast`."""
    place = SHARED_MEMORY if fast and SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="reliability-", dir=place) as name:
        yield Path(name).resolve()


def row(test: str, subject: str, trials: int, failures: int, **more: Any) -> Row:
    """A line of the table; with no failure in N trials the rate is below 3/N."""
    bound = f"< {3 / trials:.2g}" if trials and not failures else ""
    notes = ", ".join(f"{key} {value}" for key, value in more.items())
    return {
        "test": test,
        "subject": subject,
        "trials": trials,
        "failures": failures,
        "rate_95": bound,
        "median_s": None,
        "notes": notes,
    }


# ----------------------------------------------------------- processes that die


def run_crashes(*arguments: str) -> dict[str, Any]:
    """Run `benchmarks.crashes` in a process of its own, which has no threads yet."""
    command = [sys.executable, "-m", "benchmarks.crashes", *arguments]
    paths = [str(PROJECT), str(PROJECT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=3600
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def kill(rounds: int, megabytes: float) -> list[Row]:
    """`kill -9` at random moments of saving."""
    with scratch() as folder:
        found = run_crashes("kill", str(folder), str(rounds), str(megabytes))
    size, saved = f"{megabytes} MB", found["saved"]
    name = "kill -9 while saving"
    return [
        row(name, "thalweg", found["rounds"], found["lost"], state=size, saved=saved)
    ]


def exit_everywhere() -> list[Row]:
    """The process ends before each change of the disk that a save makes."""
    with scratch(fast=True) as folder:
        found = run_crashes("exit", str(folder))
    return [row("exit at every change", "thalweg", found["points"], found["lost"])]


# ------------------------------------------------------------------- power cuts


def power_loss(names: list[str], count: int, saves: int) -> list[Row]:
    """What is found on the disks that a power cut may leave."""
    return [_power_loss(name, count, saves) for name in names]


def _power_loss(name: str, count: int, saves: int) -> Row:
    with scratch() as folder:
        place, logs = folder / "disk", folder / "logs"
        (place / "acknowledged").mkdir(parents=True)
        logs.mkdir()
        command = [sys.executable, "-m", "benchmarks.savers", name, str(place)]
        operations = traced([*command, str(saves)], place, logs)
    saver, outcomes = SAVERS[name](), Counter[str]()
    for acknowledged, write in states(operations, count, seed=1):
        with scratch(fast=True) as place:
            write(place)
            number = saver.load(place)
        outcomes[judged(number, acknowledged)] += 1
    lost = outcomes.total() - outcomes["good"]
    kinds = {kind: n for kind, n in outcomes.items() if kind != "good"}
    return row("power loss", name, count, lost, changes=len(operations), **kinds)


def judged(number: int | None, acknowledged: int) -> str:
    """What it means that a step was found, given the newest acknowledged one."""
    if number is None:
        return "wrong values"
    if number >= acknowledged:
        return "good"
    return "an older one" if number >= 0 else "nothing"


# ------------------------------------------------------------- disks that refuse


class Refusing:
    """Refuses one change of the disk, or all from one on, and counts them."""

    def __init__(self, change: int, code: int, for_good: bool) -> None:
        self.seen, self._change, self._code = 0, change, code
        self._for_good = for_good

    def __call__(self, kind: str, path: Path, detail: Any) -> None:
        """Be told of a change."""
        del detail
        adds = kind in ("create", "write", "flush", "make folder", "flush folder")
        self.seen += 1
        again = self._for_good and adds and self.seen > self._change
        if self.seen == self._change or again:
            raise OSError(self._code, os.strerror(self._code), str(path))


@contextmanager
def watched(watcher: disk.Watcher) -> Iterator[None]:
    """Have every change of the disk pass by a watcher."""
    before, disk.before = disk.before, watcher
    try:
        yield
    finally:
        disk.before = before


def full_disk(codes: tuple[int, ...] = CODES) -> list[Row]:
    """ENOSPC, EIO or EROFS at every change: an error, and the old one as it was."""
    trials = failures = 0
    for way in crashes.WAYS:
        for code in codes:
            for for_good in (False, True):
                some, bad = _refused_everywhere(way, code, for_good)
                trials, failures = trials + some, failures + bad
    return [row("ENOSPC, EIO, EROFS at every change", "thalweg", trials, failures)]


def _refused_everywhere(way: str, code: int, for_good: bool) -> tuple[int, int]:
    failures = 0
    for change in count(1):
        with scratch(fast=True) as folder:
            trainer = crashes.Trainer(way, folder, 1000)
            for step in (1, 2, 3):
                trainer.save(step)
            before = listing(folder)
            refusing = Refusing(change, code, for_good)
            least = 3
            try:
                with watched(refusing):
                    trainer.save(4)
                least = 4
            except OSError as problem:
                failures += problem.errno != code
                # A record may be newer than the checkpoints that it names.
                failures += way == "overwrite" and listing(folder) != before
            failures += trainer.restore() < least
            if refusing.seen < change:
                return change - 1, failures
    raise AssertionError("a save has an end")


def listing(folder: Path) -> dict[str, bytes]:
    """All files of a folder with their bytes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---------------------------------------------------------------- damaged files


def fuzz(count: int) -> list[Row]:
    """Files flipped, cut, spliced, swapped, and manifests changed and sealed anew."""
    chance, outcomes, slowest = random.Random(1), Counter[str](), 0.0
    with scratch(fast=True) as folder:
        first, second = _fuzzed_state(0), _fuzzed_state(1)
        Checkpoint(**first).save(folder / "a", metadata={"lr": 0.5})
        Checkpoint(**second).save(folder / "b")
        files, others = listing(folder / "a"), listing(folder / "b")
        # Both files exchanged make the other checkpoint, which is as whole as this.
        expected = [
            {key: _bits(value) for key, value in state.items()}
            for state in (first, second)
        ]
        for _ in range(count):
            damaged = _damage(files, others, chance)
            shutil.rmtree(folder / "a")
            (folder / "a").mkdir()
            for name, text in damaged.items():
                (folder / "a" / name).write_bytes(text)
            # Of this process: the machine may have other things to do.
            start = time.process_time()
            outcomes[_outcome(folder / "a", expected)] += 1
            slowest = max(slowest, time.process_time() - start)
    bad = outcomes.total() - outcomes["refused"] - outcomes["equal"]
    bad += slowest > 1.0
    notes = {**outcomes, "slowest_ms": round(slowest * 1e3, 1)}
    return [row("damaged files", "thalweg", count, bad, **notes)]


def _fuzzed_state(number: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    dtypes = (torch.float32, torch.bfloat16, torch.int64, torch.uint8)
    return {
        f"t{i}": Variable((torch.rand(7, i + 1, generator=generator) * 99).to(dtype))
        for i, dtype in enumerate(dtypes)
    }


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def _outcome(path: Path, expected: list[dict[str, bytes]]) -> str:
    objects = _fuzzed_state(2)
    before = {key: _bits(value) for key, value in objects.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Checkpoint(**objects).restore(path).expect_partial()
    except CheckpointError as problem:
        named = str(path) in str(problem)
        untouched = before == {key: _bits(value) for key, value in objects.items()}
        return "refused" if named and untouched else "half restored"
    except Exception as problem:
        return type(problem).__name__
    after = {key: _bits(value) for key, value in objects.items()}
    whole = any(
        all(bits in (state[key], before[key]) for key, bits in after.items())
        for state in expected
    )
    return "equal" if whole else "wrong values"


def _damage(
    files: Mapping[str, bytes], others: Mapping[str, bytes], chance: random.Random
) -> dict[str, bytes]:
    changed = dict(files)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        name = chance.choice(list(files))
        text = changed.get(name, b"")
        kind = chance.randrange(9)
        at, to = sorted(chance.choices(range(len(text) + 1), k=2))
        if kind == 0 and text:
            at = chance.randrange(len(text))
            flipped = bytes([text[at] ^ (1 << chance.randrange(8))])
            changed[name] = text[:at] + flipped + text[at + 1 :]
        elif kind == 1:
            changed[name] = text[:at]
        elif kind == 2:
            changed[name] = text[:at] + others[name][at:]
        elif kind == 3:
            changed[name] = text[:to] + text[at:]
        elif kind == 4:
            changed[name] = text[:at] + chance.randbytes(to - at) + text[to:]
        elif kind == 5:
            changed[name] = text + chance.randbytes(chance.randrange(1, 1000))
        elif kind == 6:
            changed[name] = others[name]
        elif kind == 7:
            changed.pop(name, None)
        else:
            changed["manifest.json"] = _forged(files["manifest.json"], chance)
    return changed


def _forged(text: bytes, chance: random.Random) -> bytes:
    """A manifest with one value replaced, and the right checksum."""
    content: Any = json.loads(text)
    node: Any = content
    while True:
        key = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.2:
            break
        node = inner
    node[key] = chance.choice(FORGERIES)
    return seal(content)


def hostile_folders() -> list[Row]:
    """Folders as slow to refuse as may be, of the largest size that is read."""
    slowest, largest, failures = ("", 0.0), ("", 0.0), 0
    for name, make in hostile.KINDS.items():
        with scratch(fast=True) as folder:
            make(folder / "x")
            found = hostile.refuse(folder / "x")
        memory = found["peak"] / found["granted"]
        slowest = max(slowest, (name, found["seconds"]), key=lambda pair: pair[1])
        largest = max(largest, (name, memory), key=lambda pair: pair[1])
        failures += not found["sound"] or found["seconds"] > 1.0 or memory > 1.0
    notes = {
        "slowest": f"{slowest[0]} {slowest[1]:.2f} s",
        "most memory": f"{largest[0]} {largest[1]:.2f} of what is granted",
    }
    name = "hostile folders at the largest allowed size"
    return [row(name, "thalweg", len(hostile.KINDS), failures, **notes)]


# ---------------------------------------------------- any ranks to any, and races


def reshard() -> list[Row]:
    """1 to 4 processes save, 1 to 4 processes restore, uneven and empty boxes."""
    failures = trials = 0
    with scratch() as folder:
        for saving in range(1, 5):
            run_ranks(resharding.save, saving, str(folder / str(saving)))
        for restoring in range(1, 5):
            for wrong in run_ranks(resharding.wrong, restoring, str(folder)):
                failures += wrong
            trials += 4
    return [row("reshard, processes", "thalweg", trials, failures)]


def races(count: int) -> list[Row]:
    """Everything is changed as soon as `save_async` returns."""
    failures = 0
    objects: Any = {key: Variable(t) for key, t in state_of(0, elements=50_000).items()}
    checkpoint = Checkpoint(**objects)
    with scratch(fast=True) as folder:
        for number in range(count):
            for variable in objects.values():
                variable.assign(torch.full_like(variable, float(number)))
            checkpoint.save_async(folder / "x", overwrite=True)
            for variable in objects.values():
                variable.assign(torch.full_like(variable, -1.0))
            checkpoint.wait()
            checkpoint.restore(folder / "x").assert_consumed()
            same = all(bool((v == number).all()) for v in objects.values())
            failures += not same
    return [row("asynchronous save, changed at once", "thalweg", count, failures)]


def resume(quick: bool) -> list[Row]:
    """Runs stopped after random steps and resumed, with every optimizer."""
    trials, wrong = resuming.stopped_and_resumed(quick)
    more = {"other bits": wrong} if wrong else {}
    way = f"every optimizer and option, {resuming.STOPS} of {resuming.STEPS} steps"
    name = "resumed after a random step"
    return [row(name, "thalweg", trials, len(wrong), way=way, **more)]


# --------------------------------------------------------------------- speed


def speed(megabytes: int, rounds: int) -> list[Row]:
    """Save and load, beside what else flushes; and how long training is held up."""
    state = {f"t{i}": torch.randn(megabytes * 16384) for i in range(16)}
    pairs = _contenders(state)
    with scratch() as folder:
        timed = {name: _round_trip(*pair, folder) for name, pair in pairs.items()}
        seconds = interleaved(timed, rounds)
    rows = [
        _timed(ROUND_TRIP, name, megabytes, found) for name, found in seconds.items()
    ]
    blocked, copied = _held_up(state, rounds)
    return [
        *rows,
        _timed(HELD_UP, "thalweg, save_async", megabytes, blocked),
        _timed(HELD_UP, "torch, one copy", megabytes, copied),
    ]


def bounded(
    value: float, at_least: float = 0.0, at_most: float = 1e9
) -> dict[str, Any]:
    """A figure, its bound, and whether it is met."""
    bound = {"at_least": at_least} if at_least else {"at_most": at_most}
    return {"value": round(value, 3), **bound, "met": at_least <= value <= at_most}


def _timed(test: str, subject: str, megabytes: int, seconds: list[float]) -> Row:
    least, greatest = min(seconds), max(seconds)
    found = row(test, subject, len(seconds), 0, MB=megabytes)
    notes = f"{megabytes} MB, {least:.3f} to {greatest:.3f} s"
    median = round(statistics.median(seconds), 4)
    return found | {"rate_95": "", "median_s": median, "notes": notes}


Pair = tuple[Callable[[Path], Any], Callable[[Path], Any]]


def _contenders(state: dict[str, torch.Tensor]) -> dict[str, Pair]:
    """How each saves `state` and loads into it."""
    import safetensors.torch

    def take(loaded: Mapping[str, torch.Tensor]) -> None:
        for key, tensor in loaded.items():
            state[key].copy_(tensor)

    ours = Checkpoint(**state)
    return {
        "thalweg": (ours.save, lambda path: ours.restore(path).assert_consumed()),
        "torch.save, flushed": (
            lambda path: flushed(torch.save, state, path),
            lambda path: take(torch.load(path, weights_only=True, mmap=True)),
        ),
        "safetensors, flushed": (
            lambda path: flushed(safetensors.torch.save_file, state, path),
            lambda path: take(safetensors.torch.load_file(path)),
        ),
        "DCP": (
            lambda path: save_distributed(state, path),
            lambda path: load_distributed(path, state),
        ),
    }


def flushed(save: Callable[..., Any], state: Any, path: Path) -> None:
    """Save to a file and flush it and its name."""
    save(state, path)
    for place in (path, path.parent):
        descriptor = os.open(place, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _round_trip(
    save: Callable[[Path], Any], load: Callable[[Path], Any], folder: Path
) -> Callable[[], float]:
    def timed() -> float:
        path = folder / "saved"
        os.sync()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # DCP says that there is one process only
            start = time.perf_counter()
            save(path)
            load(path)
            taken = time.perf_counter() - start
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return taken

    return timed


def _held_up(
    state: dict[str, torch.Tensor], rounds: int
) -> tuple[list[float], list[float]]:
    copies = {key: tensor.clone() for key, tensor in state.items()}
    ours = Checkpoint(**state)

    def copy() -> float:
        start = time.perf_counter()
        for key, tensor in state.items():
            copies[key].copy_(tensor)
        return time.perf_counter() - start

    with scratch() as folder:

        def save() -> float:
            start = time.perf_counter()
            ours.save_async(folder / "x", overwrite=True)
            taken = time.perf_counter() - start
            ours.wait()
            return taken

        # The first one takes memory for the copies, which later ones use again.
        seconds = interleaved({"save": save, "copy": copy}, rounds, warm_up=2)
    return seconds["save"], seconds["copy"]


# ----------------------------------------------------------------- all together


def arguments() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description="Reliability of checkpoints.")
    parser.add_argument(
        "--quick", action="store_true", help="short forms; kept nowhere"
    )
    text = "only these parts; the other figures stay as they were measured"
    parser.add_argument("--only", nargs="+", choices=list(parts(True)), help=text)
    return parser


def parts(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """What is measured, by name."""
    ours, others = list(SAVERS)[:2], list(SAVERS)[2:]
    return {
        "speed": lambda: speed(16 if quick else 1024, 2 if quick else 7),
        "kill": lambda: kill(10 if quick else 500, 1 if quick else 5),
        "exit": exit_everywhere,
        "disk": lambda: full_disk(CODES[:1] if quick else CODES),
        "fuzz": lambda: fuzz(300 if quick else 10_000),
        "hostile": hostile_folders,
        "race": lambda: races(10 if quick else 200),
        "reshard": reshard,
        "resume": lambda: resume(quick),
        "power": lambda: power_loss(ours, 100 if quick else 5_000, 6),
        "others": lambda: power_loss(others, 20 if quick else 1_000, 6),
    }


def verdicts(rows: list[Row]) -> dict[str, Any]:
    """The figures that are held against a bound."""
    judged: dict[str, Any] = {}
    lost = sum(r["failures"] for r in rows if r["subject"].startswith("thalweg"))
    judged["failures"] = bounded(lost, at_most=0)
    trips = {r["subject"]: r["median_s"] for r in rows if r["test"] == ROUND_TRIP}
    held = {r["subject"]: r["median_s"] for r in rows if r["test"] == HELD_UP}
    if trips:
        # Of the others only DCP flushes by itself; what flushes for them is ours.
        ours = trips["thalweg"]
        judged["DCP / thalweg"] = bounded(trips["DCP"] / ours, at_least=0.9)
        for name in ("torch.save, flushed", "safetensors, flushed"):
            judged[f"{name} / thalweg"] = bounded(trips[name] / ours, at_least=0.9)
    if held:
        ratio = held["thalweg, save_async"] / held["torch, one copy"]
        judged["save_async / one copy"] = bounded(ratio, at_most=1.3)
    return judged


def main(options: list[str] | None = None) -> None:
    """Run everything, or a part."""
    chosen = arguments().parse_args(options)
    torch.set_num_threads(2)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    rows: list[Row] = []
    for name, measure in parts(chosen.quick).items():
        if not chosen.only or name in chosen.only:
            start = time.perf_counter()
            rows += measure()
            sys.stderr.write(f"{name}: {time.perf_counter() - start:.0f} s\n")
    file = RESULTS / "reliability.json"
    if chosen.only and file.exists() and not chosen.quick:
        measured = {(r["test"], r["subject"]) for r in rows}
        before = json.loads(file.read_text(encoding="utf-8"))["rows"]
        rows = [
            *(r for r in before if (r["test"], r["subject"]) not in measured),
            *rows,
        ]
    report("reliability", rows, verdicts(rows), write=not chosen.quick)


if __name__ == "__main__":
    main()
