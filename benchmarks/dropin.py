"""What one changed import gives: torch's optimizers beside those of `thalweg.optim`.

Two cases, each interleaved in one run: the step alone on the 52 tensors of a small GPT,
and the whole plain loop (zero_grad, forward, backward, step) on the digits MLP.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks import devices
from benchmarks.fit import BATCH_SIZE, digits
from benchmarks.harness import interleaved, report, summary
from thalweg import optim

OURS = "thalweg.optim"
DEFAULT, FUSED, FOREACH = "torch default", "torch fused", "torch foreach"
BOUNDS = {
    ("step", FUSED): 2.0,
    ("step", DEFAULT): 8.0,
    ("loop", FUSED): 1.0,
    ("loop", DEFAULT): 1.1,
}
WIDTH, BLOCKS, ALPHABET, CONTEXT = 136, 4, 65, 128

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
CONTENDERS: dict[str, Make] = {
    OURS: lambda held: optim.AdamW(held),
    FUSED: lambda held: torch.optim.AdamW(held, fused=True),
    FOREACH: lambda held: torch.optim.AdamW(held, foreach=True),
    DEFAULT: lambda held: torch.optim.AdamW(held),
}


def gpt() -> list[nn.Parameter]:
    """The parameters of a GPT of four blocks, with gradients: 52 tensors."""
    block = [
        *((WIDTH,), (WIDTH,), (3 * WIDTH, WIDTH), (3 * WIDTH,)),
        *((WIDTH, WIDTH), (WIDTH,), (WIDTH,), (WIDTH,)),
        *((4 * WIDTH, WIDTH), (4 * WIDTH,), (WIDTH, 4 * WIDTH), (WIDTH,)),
    ]
    tables = [(ALPHABET, WIDTH), (CONTEXT, WIDTH)]
    shapes = [*tables, *block * BLOCKS, (WIDTH,), (WIDTH,)]
    torch.manual_seed(0)
    held = [nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes]
    for parameter in held:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return held


def stepping(make: Make, steps: int) -> Callable[[], float]:
    """The time of a step of an optimizer on the GPT."""
    optimizer = make(gpt())

    def run() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.step()
        return (time.perf_counter() - start) / steps

    return run


def looping(make: Make, data: Any, steps: int) -> Callable[[], float]:
    """The time of a step of the whole loop on the digits MLP."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = make(list(model.parameters()))
    inputs, labels = (torch.as_tensor(part) for part in data)
    starts = range(0, len(inputs) - BATCH_SIZE + 1, BATCH_SIZE)
    batches = [(inputs[i : i + BATCH_SIZE], labels[i : i + BATCH_SIZE]) for i in starts]

    def run() -> float:
        start = time.perf_counter()
        for number in range(steps):
            x, y = batches[number % len(batches)]
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return (time.perf_counter() - start) / steps

    return run


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--threads", type=int, default=2)
    devices.add_option(parser)
    parser.add_argument("--quick", action="store_true", help="few rounds, no file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds = 5 if arguments.quick else arguments.rounds
    data = digits()
    cases: dict[str, dict[str, Callable[[], float]]] = {
        "step": {name: stepping(make, 10) for name, make in CONTENDERS.items()},
        "loop": {name: looping(make, data, 40) for name, make in CONTENDERS.items()},
    }
    rows, verdicts = [], {}
    for case, contenders in cases.items():
        timings = interleaved(contenders, rounds, warm_up=3)
        figures = {name: summary(seconds) for name, seconds in timings.items()}
        for name, row in figures.items():
            cells = {f"{key}_us": round(1e6 * value, 1) for key, value in row.items()}
            rows.append({"case": case, "contender": name, **cells})
        for name in (FUSED, FOREACH, DEFAULT):
            ratio = figures[name]["median"] / figures[OURS]["median"]
            verdicts[f"{case}: {name} / {OURS}"] = round(ratio, 2)
            if (case, name) in BOUNDS:
                verdicts[f"{case}: {name}, at least"] = BOUNDS[case, name]
    report("dropin", rows, verdicts, write=not arguments.quick)


if __name__ == "__main__":
    main()
