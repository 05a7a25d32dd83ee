"""What `thalweg doctor` looks at: compiler, OpenMP, GPU, cache, bits of kernels."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy
import torch

from thalweg import rules, settings
from thalweg.compiler import KernelKey, Rule, build, compile_rule, interpret
from thalweg.compiler.build import NATIVE, find_compiler, wrong_choice
from thalweg.compiler.cache import DiskCache, FolderRefusedError
from thalweg.compiler.triton_kernel import has_triton
from thalweg.step import launch_dense
from thalweg.step.bandwidth import read_bandwidth
from thalweg.step.device_kernel import has_device_kernels

__all__ = ["Finding", "examine", "openmp_runtimes"]

_OPENMP_LIBRARY = re.compile(r"lib(gomp|omp|iomp5)\b[^/]*$")
_WIDTHS = {"__AVX512F__": 512, "__AVX2__": 256, "__AVX__": 256}
_WIDTHS |= {"__SSE2__": 128, "__ARM_NEON": 128}
_TIMEOUT_S = 60
_ELEMENTS = 100_003  # an odd number, and enough for several threads


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        name: What was looked at.
        text: What was found.
        is_wrong: Whether something should be done about it.
    """

    name: str
    text: str
    is_wrong: bool = False


def examine() -> Iterator[Finding]:
    """Look at this machine and installation.

    Yields:
        A finding for each thing that decides how fast and how right updates are.
    """
    yield Finding("versions", _versions())
    wrong = _wrong_setting()
    if wrong:
        yield Finding("settings", wrong, is_wrong=True)
    yield _compiler()
    yield Finding("flags", " ".join(build.flags_to_try()[0]))
    yield Finding("vector width", _vector_width())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    known = f" of {cores} cores" if cores else ""
    yield Finding("threads", f"{torch.get_num_threads()}{known}")
    yield _openmp()
    yield Finding("Triton", _version("triton") or "not installed")
    yield Finding("GPU", _gpu())
    yield _cache()
    if not wrong:  # which the kernels would be refused for
        yield Finding("bandwidth", _bandwidth())
        yield _kernel()
        yield from map(_device_kernel, range(torch.cuda.device_count()))


def _wrong_setting() -> str:
    """What is wrong with the environment switches; nothing if they are right."""
    try:
        settings.read()
    except ValueError as error:
        return str(error)
    return ""


def _settings() -> settings.Settings:
    """The settings in force, with the default for a switch that is wrong."""
    if _wrong_setting():
        return settings.read({**os.environ, "THALWEG_COMPILER": ""})
    return settings.read()


def _versions() -> str:
    own = {"thalweg": _version("thalweg"), "torch": torch.__version__}
    own |= {"numpy": numpy.__version__, "Python": platform.python_version()}
    return ", ".join(f"{name} {found}" for name, found in own.items() if found)


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return version(package)
    except PackageNotFoundError:
        return "from source"


def _compiler() -> Finding:
    if not _settings().use_compiler:
        return Finding("compiler", "not used: THALWEG_COMPILER is 0")
    found = find_compiler()
    if found is None:
        text = "none found (tried $CC, cc, gcc, clang); install one or set CC"
        return Finding("compiler", text, is_wrong=True)
    command = " ".join(found.command)
    lines = _output([*found.command, "--version"]).splitlines()
    if not lines:
        return Finding("compiler", f"{command} does not run", is_wrong=True)
    wrong = wrong_choice()
    before = f"{wrong}; " if wrong else ""
    return Finding("compiler", f"{before}{command} ({lines[0]})", is_wrong=bool(wrong))


def _output(command: list[str]) -> str:
    """What a command prints; nothing if it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _vector_width() -> str:
    """The widest registers that the compiler uses for this processor."""
    found = find_compiler()
    command = [] if found is None else [*found.command, NATIVE, "-dM", "-E", "-xc", "-"]
    macros = set(_output(command).split()) if command else set()
    known = [
        (bits, name.strip("_")) for name, bits in _WIDTHS.items() if name in macros
    ]
    bits, name = max(known, default=(0, ""))
    torch_s = torch.backends.cpu.get_cpu_capability()
    if not bits:
        return f"unknown (torch uses {torch_s})"
    return f"{bits} bits ({name}; torch uses {torch_s})"


def openmp_runtimes() -> list[str] | None:
    """Paths of the OpenMP runtimes in this process; None where nobody can tell."""
    try:
        text = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    paths = (line.split(maxsplit=5)[5] for line in text.splitlines() if "/" in line)
    return sorted({path for path in paths if _OPENMP_LIBRARY.search(path)})


def _openmp() -> Finding:
    found = openmp_runtimes()
    if found is None:
        return Finding("OpenMP runtimes", "this system does not tell")
    text = ", ".join(Path(path).name for path in found) or "none"
    if len(found) > 1:
        text += ": two runtimes fight for the cores; import torch first"
    return Finding("OpenMP runtimes", text, is_wrong=len(found) != 1)


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none"
    count = torch.cuda.device_count()
    return ", ".join(torch.cuda.get_device_name(i) for i in range(count))


def _cache() -> Finding:
    folder = _settings().cache_dir
    try:
        DiskCache(folder).open()
        sizes = [path.stat().st_size for path in folder.glob("*.so")]
    except FolderRefusedError as error:
        return Finding("cache", f"not used: {error}", is_wrong=True)
    if not os.access(folder, os.W_OK):
        return Finding("cache", f"{folder} cannot be written", is_wrong=True)
    return Finding(
        "cache", f"{folder}: {len(sizes)} kernels, {sum(sizes) / 1e6:.1f} MB"
    )


def _bandwidth() -> str:
    found = read_bandwidth()
    if found is None:
        return "not measured; say `thalweg bench`"
    rate = found.bytes_per_second / 1e9
    return f"{rate:.1f} GB/s with {found.threads} threads, measured on {found.date}"


def _kernel() -> Finding:
    """Run Adam's rule compiled and interpreted, and compare the bits."""
    name = "kernel = interpreter"
    rule, flags = Rule.of(rules.adam), {"use_nesterov": False}
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.rand(_ELEMENTS, generator=generator) for _ in range(4)]
    numbers = {"beta1_power": 0.9, "beta2_power": 0.999, "lr": 0.001}
    numbers |= {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-7}
    key = KernelKey(rule, tuple(flags.items()), (torch.float32,) * 4)
    backend = compile_rule(key).backend
    if backend != "c":
        text = "there is no kernel: the interpreter runs, which is slower"
        return Finding(name, text, is_wrong=settings.read().use_compiler)
    wanted = interpret(rule, flags, tensors, numbers)
    launch_dense(rule, flags, tensors, numbers)
    differing = sum(int((a != b).sum()) for a, b in zip(tensors, wanted, strict=False))
    text = (
        f"{differing} of {3 * _ELEMENTS} numbers differ" if differing else "same bits"
    )
    return Finding(name, f"Adam, {_ELEMENTS:,} elements: {text}", bool(differing))


def _device_kernel(number: int) -> Finding:
    """Run a small kernel on a GPU, as the first step there does."""
    device = torch.device("cuda", number)
    name = f"kernel on {device}"
    if not has_triton():
        text = 'no Triton: the interpreter runs, which is slower; install "triton>=3.6"'
        return Finding(name, text, is_wrong=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        is_right = has_device_kernels(device)
    if is_right:
        return Finding(name, "same bits as the interpreter's")
    reason = str(told[-1].message) if told else "a small kernel fails, as was warned of"
    return Finding(name, reason.removesuffix(" See `thalweg doctor`."), is_wrong=True)
