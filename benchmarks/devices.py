"""The device that a benchmark measures: its choice, its room, its name, its pace."""

from __future__ import annotations

import argparse
import gc
import math
import re
from contextlib import AbstractContextManager, nullcontext

import torch

# What other programs and the allocator's own pieces take is left to them.
_SHARE = 0.9


def add_option(parser: argparse.ArgumentParser, *, gpu: bool = False) -> None:
    """Add ``--device``.

    Args:
        parser: Of the benchmark.
        gpu: Whether the benchmark can measure a CUDA device.
    """
    kind = _cpu_or_cuda if gpu else _cpu
    told = "cpu, cuda or cuda:1" if gpu else "cpu only"
    parser.add_argument("--device", type=kind, default="cpu", help=told)


def _cpu(word: str) -> str:
    if word == "cpu":
        return word
    raise argparse.ArgumentTypeError(
        f"this benchmark measures the CPU only, got {word!r}; leave the option out "
        "(the benchmarks step and sparse take cuda)"
    )


def _cpu_or_cuda(word: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", word):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:1, got {word!r}")
    if word != "cpu" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(
            f"torch {torch.__version__} finds no CUDA device here, got {word!r}; "
            "leave the option out to measure the CPU"
        )
    return word


def kind(device: str) -> str:
    """What a device is: "cpu" or "cuda"."""
    return torch.device(device).type


def current(device: str) -> AbstractContextManager[object]:
    """A scope in which work that names no device goes to this one."""
    return nullcontext() if kind(device) == "cpu" else torch.cuda.device(device)


def wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    if kind(device) != "cpu":
        torch.cuda.synchronize(device)


def label(device: str) -> str:
    """What a file of results is called after: "" for the CPU, or a GPU's name."""
    if kind(device) == "cpu":
        return ""
    name = torch.cuda.get_device_name(device).lower()
    return "-" + re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def free_bytes(device: str) -> float:
    """Bytes that can be taken; the CPU's are not counted."""
    if kind(device) == "cpu":
        return math.inf
    return _SHARE * torch.cuda.mem_get_info(device)[0]


def fitting(wanted: int, bytes_each: int, device: str) -> int:
    """How many things of so many bytes there is room for, up to a number."""
    free = free_bytes(device)
    return wanted if free >= wanted * bytes_each else int(free) // bytes_each


def give_back(device: str) -> None:
    """Free what nothing refers to, also what torch keeps of it."""
    gc.collect()
    if kind(device) != "cpu":
        torch.cuda.empty_cache()
