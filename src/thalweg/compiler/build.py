"""From C text to functions: find a compiler, run it, load what it made.

Nothing here raises: without a compiler, or with one that fails, the result is None,
one line says why, and the caller interprets. OpenMP is compiled in but not linked: it
binds to the runtime torch has loaded, so that a process never has two.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from thalweg import settings
from thalweg.compiler.cache import DiskCache, FolderRefusedError

__all__ = [
    "COMPILE_FLAGS",
    "Compiler",
    "Library",
    "build",
    "cpu_features",
    "find_compiler",
    "flags_to_try",
]

COMPILE_FLAGS = (
    "-std=gnu11",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
)
"""Flags of every build; never -ffast-math, which changes results of the process."""
NATIVE, OPENMP = "-march=native", "-fopenmp"
# By default gcc uses half of AVX-512; halves are converted a fifth faster with all.
_WIDE = ("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()
_LINK_FLAGS = ("-shared", "-lm")
_TIMEOUT_S = 300
_LOGGER = logging.getLogger("thalweg.compiler")
_SAID: set[str] = set()


@dataclass(frozen=True)
class Compiler:
    """A C compiler.

    Attributes:
        command: The words that start it.
        identity: Path, size and time of the program: another version is another
            compiler, and finding that out starts no process.
    """

    command: tuple[str, ...]
    identity: str


@dataclass(frozen=True)
class Library:
    """A loaded library, twice: calls through `short` keep the interpreter lock.

    Attributes:
        short: For calls that take microseconds, where giving the lock away could
            cost milliseconds.
        long: For calls during which other threads should run.
        path: The file it was loaded from.
    """

    short: ctypes.PyDLL
    long: ctypes.CDLL
    path: Path


def find_compiler() -> Compiler | None:
    """The first of $CC, cc, gcc and clang that exists; $CC may hold arguments."""
    for words in (shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]):
        path = shutil.which(words[0]) if words else None
        if path:
            real = Path(path).resolve()
            status = real.stat()
            identity = f"{real} {status.st_size} {status.st_mtime_ns}"
            return Compiler((path, *words[1:]), identity)
    return None


@cache
def cpu_features() -> str:
    """What -march=native stands for here: the processor's model and features."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    changing = (
        "processor",
        "cpu MHz",
        "bogomips",
        "core id",
        "apicid",
        "initial apicid",
    )
    lines = text.split("\n\n", 1)[0].splitlines()
    return "\n".join(line for line in lines if not line.startswith(changing))


def build(text: str) -> Library | None:
    """Compile and load C text, from the disk cache if it is there.

    Args:
        text: One translation unit.

    Returns:
        The loaded library, or None if it cannot be had; then one line was logged.
    """
    chosen = settings.read()
    if not chosen.use_compiler:
        return None
    compiler = find_compiler()
    if compiler is None:
        _say(
            "no C compiler was found (tried $CC, cc, gcc, clang); install one or set CC"
        )
        return None
    cache_on_disk = _open_cache(chosen.cache_dir)
    reason = ""
    for flags in flags_to_try():
        key = _key(text, compiler, flags)
        library = _load(cache_on_disk.find(key)) if cache_on_disk else None
        if library is None:
            library, reason = _compile(text, compiler, flags, key, cache_on_disk)
        if library is not None:
            return library
    _say(f"{shlex.join(compiler.command)} failed: {reason}")
    return None


def flags_to_try() -> list[tuple[str, ...]]:
    """Flags to try in turn: not every compiler knows -march=native or OpenMP."""
    serial = (*COMPILE_FLAGS, NATIVE, *_WIDE)
    full = (*serial, OPENMP)
    has_runtime = hasattr(ctypes.CDLL(None), "GOMP_parallel")
    return [full, serial, COMPILE_FLAGS] if has_runtime else [serial, COMPILE_FLAGS]


def _key(text: str, compiler: Compiler, flags: Sequence[str]) -> str:
    parts = (
        text,
        *compiler.command,
        compiler.identity,
        *flags,
        *_LINK_FLAGS,
        cpu_features(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


def _open_cache(folder: Path) -> DiskCache | None:
    found = DiskCache(folder)
    try:
        found.open()
    except FolderRefusedError as error:
        _say_once(f"compiled kernels are not kept on disk: {error}")
        return None
    return found


def _compile(
    text: str,
    compiler: Compiler,
    flags: Sequence[str],
    key: str,
    cache_on_disk: DiskCache | None,
) -> tuple[Library | None, str]:
    try:
        with tempfile.TemporaryDirectory(prefix="thalweg-") as folder:
            made = Path(folder) / "kernel.so"
            reason = _run(text, compiler, flags, made)
            if reason:
                return None, reason
            kept = _keep(made, key, cache_on_disk)
            # A folder mounted without the right to execute: load the fresh file.
            library = _load(kept) or _load(made)
    except (OSError, subprocess.SubprocessError) as error:
        return None, str(error)
    return library, "" if library else "the result could not be loaded"


def _run(text: str, compiler: Compiler, flags: Sequence[str], made: Path) -> str:
    """Run the compiler; why it failed, or nothing."""
    source, middle = made.with_suffix(".c"), made.with_suffix(".o")
    source.write_text(text, encoding="utf-8")
    # Linked by itself, without -fopenmp: that would add a second OpenMP runtime.
    for arguments in (
        (*flags, "-c", str(source), "-o", str(middle)),
        (str(middle), "-o", str(made), *_LINK_FLAGS),
    ):
        done = subprocess.run(
            [*compiler.command, *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            return _first_error(done)
    return ""


def _first_error(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line] or lines
    return errors[0] if errors else f"exit status {done.returncode}"


def _keep(made: Path, key: str, cache_on_disk: DiskCache | None) -> Path | None:
    if cache_on_disk is None:
        return None
    try:
        return cache_on_disk.store(key, made.read_bytes())
    except OSError as error:
        _say_once(f"compiled kernels are not kept on disk: {error}")
        return None


def _load(path: Path | None) -> Library | None:
    if path is None:
        return None
    try:
        return Library(ctypes.PyDLL(str(path)), ctypes.CDLL(str(path)), path)
    except OSError:
        return None


def _say(reason: str) -> None:
    _say_once(f"update rules are interpreted, which is slower: {reason}")


def _say_once(text: str) -> None:
    if text not in _SAID:
        _SAID.add(text)
        _LOGGER.warning("thalweg: %s", text)
