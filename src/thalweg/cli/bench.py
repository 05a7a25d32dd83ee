"""`thalweg bench`: measure this machine, and keep its bandwidth for `explain`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from thalweg.testing.speed import Speed

_WIDTH = 36


def bench(
    elements: Annotated[
        int, typer.Option(min=4096, help="Numbers in the largest variable.")
    ] = 16_000_000,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; torch's own number by default.")
    ] = None,
) -> None:
    """Measure memory bandwidth and some updates; explain() uses the result."""
    # Imported when the command runs: this is where torch comes in.
    torch, speed = import_module("torch"), import_module("thalweg.testing.speed")
    kept = import_module("thalweg.step.bandwidth")
    if threads is not None:
        torch.set_num_threads(threads)
    bandwidth = speed.measure_bandwidth(elements)
    rate = bandwidth.bytes_per_second
    typer.echo(f"memory: {rate / 1e9:.1f} GB/s, {bandwidth.threads} threads")
    for found in speed.measure_kernels(elements):
        typer.echo(_line(found, rate))
    typer.echo(f"kept in {kept.keep_bandwidth(bandwidth)}")


def _line(found: Speed, bandwidth: float) -> str:
    rate = found.bytes_per_second
    share = f"{rate / 1e9:6.1f} GB/s, {100 * rate / bandwidth:4.0f} % of memory"
    return f"{found.name:<{_WIDTH}}{1e3 * found.seconds:9.3f} ms  {share}"
