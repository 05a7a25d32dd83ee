"""Cases of a benchmark: contenders side by side, and what one must reach."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import devices
from benchmarks.contenders import MissingError, Problem, Setup, timed
from benchmarks.harness import interleaved, report, summary

OURS = "thalweg"
MEMORY = "memory"
# Contenders whose names begin so may fail on a device: their table says how.
THEIRS = "torch"
_LATER = "not in the same rounds as those above, for want of memory"


@dataclass(frozen=True)
class Bound:
    """What must be reached.

    Attributes:
        faster: The contender whose time is divided by.
        slower: The contender, or several of which the fastest counts.
        at_least: Least ratio of times; None if there is no requirement.
        at_most: Greatest ratio.
        device: The kind of device on which it holds.
    """

    faster: str
    slower: str | tuple[str, ...]
    at_least: float | None = None
    at_most: float | None = None
    device: str = field(default="cpu", kw_only=True)


@dataclass(frozen=True)
class Case:
    """One row of requirements.

    Attributes:
        name: Of the case.
        problem: The variables.
        contenders: Names and how they are set up; those whose name begins with
            "memory" move 8 bytes an element.
        bounds: What must be reached.
        passes: How often the update reads or writes a tensor of the variables' size;
            a mapping for contenders that differ.
        share: Least share of the memory bandwidth, by kind of device.
        repeats: Steps of one timing.
        rounds: Rounds, where the option ``--rounds`` is for longer steps.
        keeps: Bytes of the device that a contender holds between steps, at most.
            What contenders need beyond that within a step is taken to be no more.
    """

    name: str
    problem: Problem
    contenders: Mapping[str, Setup]
    bounds: Sequence[Bound] = ()
    passes: float | Mapping[str, float] | None = None
    share: Mapping[str, float] = field(default_factory=dict[str, float])
    repeats: int = 1
    rounds: int | None = field(default=None, kw_only=True)
    keeps: int = field(default=0, kw_only=True)

    @property
    def kind(self) -> str:
        """The kind of device it is measured on."""
        return devices.kind(self.problem.device)

    def turns(self) -> list[list[str]]:
        """The contenders that the device has room for together, in order."""
        room = devices.free_bytes(self.problem.device) - self.keeps
        turns: list[list[str]] = []
        left = 0.0
        for name in self.contenders:
            copies = 8 * self.problem.num_elements
            needed = copies if name.startswith(MEMORY) else self.keeps
            if not turns or needed > left:
                turns.append([])
                left = room
            turns[-1].append(name)
            left -= needed
        return turns


@dataclass
class Results:
    """Rows and verdicts, as `harness.report` takes them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    verdicts: dict[str, Any] = field(default_factory=dict)

    def measure(self, case: Case, rounds: int) -> None:
        """Run a case and add what it gave."""
        seconds: dict[str, list[float]] = {}
        devices.give_back(case.problem.device)
        turns = case.turns()
        for names in turns:
            seconds |= interleaved(self._set_up(case, names), rounds)
            devices.give_back(case.problem.device)
        bandwidth = _bandwidth(case, seconds)
        for name, taken in seconds.items():
            note = "" if name in turns[0] else _LATER
            self._add_times(case, name, taken, seconds.get(OURS), bandwidth, note)
        for bound in case.bounds:
            self._judge(case, bound, seconds)
        if case.kind in case.share and bandwidth:
            rate = _rate(case, statistics.median(seconds[OURS]), OURS)
            self._verdict(
                f"{case.name}: share of bandwidth",
                rate / bandwidth,
                {"at_least": case.share[case.kind]},
            )

    def _set_up(
        self, case: Case, names: Iterable[str]
    ) -> dict[str, Callable[[], float]]:
        """The contenders that can take a step; the others become notes."""
        running: dict[str, Callable[[], float]] = {}
        for name in names:
            try:
                running[name] = _tried(case, name)
            except MissingError as reason:
                self._add_row(case, name, note=str(reason))
            except RuntimeError as reason:
                if not name.startswith(THEIRS):
                    raise
                self._add_row(case, name, note=str(reason).strip().split("\n")[0])
        return running

    def _add_times(
        self,
        case: Case,
        name: str,
        taken: list[float],
        ours: list[float] | None,
        bandwidth: float | None,
        note: str,
    ) -> None:
        found = summary(taken)
        rate = _rate(case, found["median"], name)
        share = rate / bandwidth if rate and bandwidth else None
        self._add_row(
            case,
            name,
            note,
            median_us=1e6 * found["median"],
            least_us=1e6 * found["least"],
            over_ours=_ratio(taken, ours) if ours else None,
            gb_per_s=rate / 1e9 if rate else None,
            share=share,
        )

    def _add_row(self, case: Case, name: str, note: str = "", **cells: Any) -> None:
        keys = ("median_us", "least_us", "over_ours", "gb_per_s", "share")
        rounded = {k: _rounded(cells.get(k)) for k in keys}
        self.rows.append(
            {"case": case.name, "contender": name, **rounded, "note": note}
        )

    def _judge(
        self, case: Case, bound: Bound, seconds: Mapping[str, list[float]]
    ) -> None:
        names = (bound.slower,) if isinstance(bound.slower, str) else bound.slower
        known = [name for name in names if name in seconds]
        if bound.device != case.kind or not known or bound.faster not in seconds:
            return
        best = min(known, key=lambda name: statistics.median(seconds[name]))
        value = _ratio(seconds[best], seconds[bound.faster])
        required = {"at_least": bound.at_least, "at_most": bound.at_most}
        label = f"{case.name}: {best} / {bound.faster}"
        self._verdict(label, value, {k: v for k, v in required.items() if v})

    def _verdict(self, label: str, value: float, required: Mapping[str, float]) -> None:
        met = value >= required.get("at_least", 0.0)
        met = met and value <= required.get("at_most", float("inf"))
        self.verdicts[label] = {"value": _rounded(value), **required, "met": met}


def _tried(case: Case, name: str) -> Callable[[], float]:
    """A contender that has taken one step, which shows whether it can."""
    device = case.problem.device
    step = case.contenders[name](case.problem)
    timed(step, 1, device)()
    return timed(step, case.repeats, device)


def _ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """The median of the ratios in each round: a slow minute falls on both."""
    pairs = zip(slower, faster, strict=True)
    return statistics.median(a / b for a, b in pairs)


def _rate(case: Case, seconds: float, name: str) -> float:
    passes = case.passes.get(name) if isinstance(case.passes, Mapping) else case.passes
    passes = 2.0 if name.startswith(MEMORY) else passes
    return 4.0 * passes * case.problem.num_elements / seconds if passes else 0.0


def _bandwidth(case: Case, seconds: Mapping[str, list[float]]) -> float | None:
    """The best of the ways to move memory, in the same rounds."""
    rates = [
        _rate(case, statistics.median(taken), name)
        for name, taken in seconds.items()
        if name.startswith(MEMORY)
    ]
    return max(rates, default=None)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def arguments(description: str | None, *, gpu: bool = False) -> argparse.ArgumentParser:
    """The options of benchmarks that are made of cases.

    Args:
        description: Of the benchmark.
        gpu: Whether it can measure a CUDA device.

    Returns:
        A parser.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    devices.add_option(parser, gpu=gpu)
    parser.add_argument("--quick", action="store_true", help="small, in seconds")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--torch-compile", action="store_true", help="takes minutes")
    return parser


@contextmanager
def _cores(count: int) -> Iterator[None]:
    """Give this process so many cores: not all contenders let threads be chosen."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[-count:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run(name: str, cases: Iterable[Case], options: argparse.Namespace) -> Results:
    """Measure cases one after the other, print them, and write them if complete.

    Args:
        name: Of the benchmark.
        cases: Made when their turn comes, so that one at a time is in memory.
        options: Of `arguments`.

    Returns:
        What was measured; in full runs it is also in ``results/``, in a file that
        has the name of a GPU in its own.
    """
    torch.set_num_threads(options.threads)
    results = Results()
    with _cores(options.threads), devices.current(options.device):
        for case in cases:
            if options.only in case.name:
                rounds = case.rounds or options.rounds
                results.measure(case, 2 if options.quick else rounds)
        label, is_whole = name + devices.label(options.device), not options.only
        if results.rows:
            write = is_whole and not options.quick
            report(label, results.rows, results.verdicts, write=write)
    return results
