"""What the benchmarks share: interleaved timing, the machine's description, results.

Contenders are timed in turns, round after round, so that a slow minute of the machine
falls on all of them; the median over the rounds is what counts.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    *("thalweg", "torch", "numpy", "keras", "typer"),
    *("triton", "jax", "optax", "tensorflow", "tensorflow-cpu", "fbgemm-gpu-cpu"),
    *("transformers", "accelerate"),
)


def interleaved(
    contenders: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Time contenders in turns.

    Args:
        contenders: Names to functions that return seconds; called in this order in
            even rounds and in the reverse order in odd ones.
        rounds: How many times each is called.
        warm_up: How many further rounds come first and do not count.

    Returns:
        Names to the seconds of each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-warm_up, rounds):
        names = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            taken = contenders[name]()
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, least and greatest of some timings."""
    return {
        "median": statistics.median(seconds),
        "least": min(seconds),
        "greatest": max(seconds),
    }


def machine() -> dict[str, Any]:
    """Describe where the figures come from: processor, threads, versions, date."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: found for name in _PACKAGES if (found := _version(name))},
    }


def report(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    verdicts: Mapping[str, Any],
    *,
    write: bool = True,
) -> Path:
    """Print a table and write `results/<name>.json`.

    Args:
        name: Of the benchmark.
        rows: Alike in their keys, which head the columns.
        verdicts: Figures that are held against a bound.
        write: False for a trial run, which leaves the file as it is.

    Returns:
        The path of the JSON file.
    """
    described = machine()
    lines = [*_table(rows), *(f"{key}: {_cell(v)}" for key, v in verdicts.items())]
    lines.append(", ".join(f"{key} {value}" for key, value in described.items()))
    sys.stdout.write("\n".join(lines) + "\n")
    path = RESULTS / f"{name}.json"
    if not write:
        return path
    RESULTS.mkdir(exist_ok=True)
    content = {"rows": list(rows), "verdicts": dict(verdicts), "machine": described}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    columns = zip(*cells, strict=True)
    widths = [max(len(cell) for cell in column) for column in columns]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    found = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    return next(found, platform.processor())
