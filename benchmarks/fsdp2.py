"""Time of an AdamW step on sharded parameters: two ranks, many small and some large.

The parameters are those of a module under `fully_shard`, so DTensors; gradients are set
once and only `step` is timed, on every rank at the same time. torch's own optimizers go
through DTensor's dispatch for every tensor; this one takes the local shards.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.distributed.fsdp import fully_shard

from benchmarks.harness import interleaved, report, summary
from thalweg.optim import AdamW

RANKS = 2
SMALL, LARGE = 300, 20
SIDES = {"large 256 × 256": (32, 256), "large 1,024 × 1,024": (32, 1024)}
ROUNDS = 15
STEPS = 3
THREADS = 1
BOUND = 4.0

Contenders = dict[str, Callable[[], float]]


def sharded(small: int, large: int) -> nn.Module:
    """Return a module under `fully_shard`, with gradients."""
    torch.manual_seed(0)
    sides = [small] * SMALL + [large] * LARGE
    module = nn.Module()
    for number, side in enumerate(sides):
        module.register_parameter(f"p{number}", nn.Parameter(torch.randn(side, side)))
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(module, mesh=mesh)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    return module


def contender(optimizer: torch.optim.Optimizer) -> Callable[[], float]:
    """Return a function that takes steps together with the other ranks."""

    def run() -> float:
        dist.barrier()
        start = time.perf_counter()
        for _ in range(STEPS):
            optimizer.step()
        return (time.perf_counter() - start) / STEPS

    return run


def contenders(small: int, large: int) -> Contenders:
    """Return the optimizers, each over parameters of its own."""

    def parameters() -> list[nn.Parameter]:
        return list(sharded(small, large).parameters())

    made: dict[str, torch.optim.Optimizer] = {
        "thalweg.optim": AdamW(parameters(), lr=1e-3),
        "torch foreach": torch.optim.AdamW(parameters(), lr=1e-3, foreach=True),
        "torch fused": torch.optim.AdamW(parameters(), lr=1e-3, fused=True),
    }
    return {name: contender(optimizer) for name, optimizer in made.items()}


def measure(case: str, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each contender of a case, with this rank's figures."""
    timings = interleaved(contenders(*SIDES[case]), rounds)
    ours = timings["thalweg.optim"]
    rows = []
    for name, seconds in timings.items():
        ratios = sorted(t / o for t, o in zip(seconds, ours, strict=True))
        figures = {f"{k}_us": round(1e6 * v, 1) for k, v in summary(seconds).items()}
        ratio = round(ratios[len(ratios) // 2], 2)
        rows.append({"case": case, "contender": name, **figures, "times": ratio})
    return rows


def rank_main(rank: int, folder: str, arguments: argparse.Namespace) -> None:
    """Measure on one rank; the first one writes."""
    torch.set_num_threads(arguments.threads)
    address = f"file://{Path(folder) / 'ranks'}"
    dist.init_process_group("gloo", address, rank=rank, world_size=RANKS)
    rows = [row for case in SIDES for row in measure(case, arguments.rounds)]
    verdicts: dict[str, Any] = {
        f"{row['case']}, {row['contender']} over this": row["times"]
        for row in rows
        if row["contender"] != "thalweg.optim"
    }
    if rank == 0:
        # Beyond some size the step is bound by memory, and all are alike.
        verdicts[f"at least, {next(iter(SIDES))}"] = BOUND
        report("fsdp2", rows, verdicts, write=not arguments.dry)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=THREADS, help="of each rank")
    parser.add_argument("--dry", action="store_true", help="write no result")
    arguments = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        spawn = multiprocessing.spawn  # pyright: ignore[reportPrivateImportUsage]
        spawn(rank_main, (folder, arguments), nprocs=RANKS)


if __name__ == "__main__":
    main()
