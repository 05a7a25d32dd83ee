"""`thalweg bench`: measure this machine, and keep its bandwidth for `explain`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli.text import counted

if TYPE_CHECKING:
    from thalweg.step.bandwidth import Bandwidth
    from thalweg.testing.speed import Speed

_WIDTH = 36


def bench(
    elements: Annotated[
        int | None,
        typer.Option(
            min=4096, help="Numbers in the largest variable; 16 million, 268 on a GPU."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; torch's own number by default.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, or a GPU (cuda:0), of which memory is measured.")
    ] = "cpu",
) -> None:
    """Measure memory bandwidth and some updates; explain() uses the result."""
    # Imported when the command runs: this is where torch comes in.
    torch = import_module("torch")
    if threads is not None:
        torch.set_num_threads(threads)
    if device != "cpu":
        name, bandwidth = _measure_gpu(torch, device, elements or 2**28)
        typer.echo(f"{name}: {bandwidth.bytes_per_second / 1e9:.1f} GB/s")
        typer.echo(_kept(bandwidth, name))
        return
    speed = import_module("thalweg.testing.speed")
    bandwidth, steps = speed.measure(elements or 16_000_000)
    rate, caches = bandwidth.bytes_per_second, speed.cache_bytes()
    threads_used = counted(bandwidth.threads, "thread")
    typer.echo(f"memory: {rate / 1e9:.1f} GB/s, {threads_used}")
    for found in steps:
        typer.echo(_line(found, rate, caches))
    typer.echo(_kept(bandwidth, "cpu"))


def _measure_gpu(torch: Any, device: str, elements: int) -> tuple[str, Any]:
    """Name and bandwidth of a GPU."""
    names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if device == "cuda" and len(names) > 1:
        device = f"cuda:{torch.cuda.current_device()}"
    if device not in names:
        text = f"expected one of {', '.join(names)}; got {device!r}."
        raise typer.BadParameter(text, param_hint="--device")
    place = torch.device(device)
    measure = import_module("thalweg.testing.device_speed").measure_device_bandwidth
    return torch.cuda.get_device_name(place), measure(elements, place)


def _kept(bandwidth: Bandwidth, device: str) -> str:
    """Keep what was measured; where, or why not."""
    try:
        keep = import_module("thalweg.step.bandwidth").keep_bandwidth
        return f"kept in {keep(bandwidth, device)}"
    except OSError as refusal:
        return f"not kept: {refusal}"


def _line(found: Speed, bandwidth: float, caches: int) -> str:
    rate = found.bytes_per_second
    share = f"{100 * rate / bandwidth:4.0f} % of memory"
    if not found.is_of_memory(caches):
        share = "from caches"
    time = f"{found.name:<{_WIDTH}}{1e3 * found.seconds:9.3f} ms"
    return f"{time}  {rate / 1e9:6.1f} GB/s, {share}"
