"""How long compiling takes: cold, from the cache, and `torch.compile` beside it.

Every timing is a new process; importing does not count. Then: what steps after the
first one compile and allocate, which should be nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import thalweg as tw
from benchmarks.cases import arguments
from benchmarks.harness import report, summary
from thalweg.compiler.build import find_compiler
from thalweg.testing.steady import Allocations, new_kernels

COLD_BOUND_S = 0.5
TORCH_BOUND = 50.0
_OURS = """
import time, torch, thalweg as tw
torch.set_num_threads({threads})
held = [tw.Variable(torch.ones(1000), name=f"v{{i}}") for i in range({tensors})]
pairs = [(torch.ones(1000), variable) for variable in held]
optimizer = tw.optimizers.AdamW()
optimizer.build(held)
start = time.perf_counter()
optimizer.apply_gradients(pairs)
first = time.perf_counter() - start
start = time.perf_counter()
optimizer.apply_gradients(pairs)
print(first - (time.perf_counter() - start))
"""
_TORCH = """
import time, torch
torch.set_num_threads({threads})
held = [torch.nn.Parameter(torch.ones(1000)) for _ in range({tensors})]
for parameter in held:
    parameter.grad = torch.ones(1000)
optimizer = torch.optim.AdamW(held)
step = torch.compile(lambda: optimizer.step())
start = time.perf_counter()
step()
step()
first = time.perf_counter() - start
start = time.perf_counter()
step()
print(first - 2 * (time.perf_counter() - start))
"""


def process_seconds(program: str, tensors: int, threads: int, **changes: str) -> float:
    """Run a program that prints seconds, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program.format(tensors=tensors, threads=threads)],
        env={**os.environ, **changes},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def counting_compiler(folder: Path) -> tuple[str, Path]:
    """A compiler that writes a line into a file each time it is started."""
    found = find_compiler()
    if found is None:
        raise SystemExit("There is no C compiler, so nothing can be measured.")
    script, log = folder / "cc", folder / "log"
    log.write_text("")
    script.write_text(
        f'#!/bin/sh\necho >> {log}\nexec {" ".join(found.command)} "$@"\n'
    )
    script.chmod(0o755)
    return str(script), log


def measure(tensors: int, threads: int) -> tuple[float, float, int]:
    """Seconds of the first step cold and warm, and compilers started when warm."""
    with tempfile.TemporaryDirectory() as name:
        compiler, log = counting_compiler(Path(name))
        changes = {"CC": compiler, "THALWEG_CACHE_DIR": f"{name}/cache"}
        cold = process_seconds(_OURS, tensors, threads, **changes)
        log.write_text("")
        warm = process_seconds(_OURS, tensors, threads, **changes)
        return cold, warm, len(log.read_text().splitlines())


def torch_seconds(tensors: int, threads: int) -> float:
    """Seconds that `torch.compile` of a step takes, without torch's own cache."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {"TORCHINDUCTOR_CACHE_DIR": folder}
        return process_seconds(_TORCH, tensors, threads, **changes)


def steady(tensors: int) -> dict[str, int]:
    """What steps after the first one compile, and which tensors they make.

    Args:
        tensors: Number of variables.

    Returns:
        Counts by name: with other gradients and another learning rate, then with
        fewer variables.
    """
    held = [torch.nn.Parameter(torch.ones(1000)) for _ in range(tensors)]
    pairs = [(torch.ones(1000), variable) for variable in held]
    others = [(torch.zeros(1000), variable) for variable in held]
    optimizer = tw.optimizers.AdamW(global_clipnorm=1.0, use_ema=True)
    optimizer.apply_gradients(pairs)
    counts: dict[str, int] = {}
    changes = {"another learning rate": others, "fewer variables": others[::2]}
    for change, changed in changes.items():
        with new_kernels() as kernels, Allocations() as made:
            optimizer.apply_gradients(changed)
            optimizer.learning_rate = 0.5 * optimizer.learning_rate
            optimizer.apply_gradients(changed)
        counts[f"kernels compiled after the first step, {change}"] = len(kernels)
        counts[f"tensors allocated after the first step, {change}"] = len(made.names)
    return counts


def results(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure everything; rows and verdicts as `harness.report` takes them."""
    runs = [measure(52, options.threads) for _ in range(1 if options.quick else 7)]
    cold, warm = summary([r[0] for r in runs]), summary([r[1] for r in runs])
    rows = [_row("thalweg, cold", cold), _row("thalweg, second process", warm)]
    verdicts = {
        "cold_s": _verdict(cold["median"], at_most=COLD_BOUND_S),
        "compilers started in a second process": _verdict(
            max(r[2] for r in runs), at_most=0
        ),
        **{name: _verdict(n, at_most=0) for name, n in steady(52).items()},
    }
    if not options.quick:
        theirs = summary([torch_seconds(52, options.threads)])
        rows.append(_row("torch.compile(AdamW.step)", theirs))
        ratio = theirs["median"] / statistics.median([r[0] for r in runs])
        verdicts["torch.compile / thalweg"] = _verdict(ratio, at_least=TORCH_BOUND)
    return rows, verdicts


def _row(name: str, seconds: dict[str, float]) -> dict[str, Any]:
    return {"contender": name, **{f"{k}_s": round(v, 4) for k, v in seconds.items()}}


def _verdict(value: float, **bound: float) -> dict[str, Any]:
    met = value >= bound.get("at_least", value) and value <= bound.get("at_most", value)
    return {"value": round(value, 3), **bound, "met": met}


def main(words: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = arguments(__doc__).parse_args(words)
    rows, verdicts = results(options)
    report("compile", rows, verdicts, write=not options.quick)


if __name__ == "__main__":
    main()
