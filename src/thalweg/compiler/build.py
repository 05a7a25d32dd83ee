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
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from thalweg import settings
from thalweg.compiler.cache import DiskCache, FolderRefusedError

__all__ = [
    "COMPILE_FLAGS",
    "Compiler",
    "Library",
    "build",
    "can_compile",
    "cpu_features",
    "find_compiler",
    "flags_to_try",
    "wrong_choice",
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
_OMP_PAUSE_HARD = 2  # of OpenMP's omp_pause_resource_t
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


class _Unit(NamedTuple):
    """A text to compile, and a symbol by which its library is known."""

    text: str
    mark: str
    timeout_s: float


_TRIVIAL = _Unit("int thalweg_trivial(void) { return 0; }\n", "thalweg_trivial", 30)
_UNUSABLE: dict[tuple[Compiler, tuple[str, ...]], str] = {}
"""Why a compiler cannot make even a trivial program with flags; "" where it can."""


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
    for words in (_words_of_cc(), ["cc"], ["gcc"], ["clang"]):
        path = shutil.which(words[0]) if words else None
        if path:
            real = Path(path).resolve()
            status = real.stat()
            identity = f"{real} {status.st_size} {status.st_mtime_ns}"
            return Compiler((path, *words[1:]), identity)
    return None


def wrong_choice() -> str | None:
    """What is wrong with $CC, if it is set and names no program."""
    given, words = os.environ.get("CC", ""), _words_of_cc()
    if not given.strip() or (words and shutil.which(words[0])):
        return None
    return f"CC={given!r} names no program"


def _words_of_cc() -> list[str]:
    try:
        return shlex.split(os.environ.get("CC", ""))
    except ValueError:  # a quotation without an end
        return []


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

    A compiler that fails at a trivial program too is not started again in this
    process; one that fails at this text only is tried with the next.

    Args:
        text: One translation unit.

    Returns:
        The loaded library, or None if it cannot be had; then one line was logged.
    """
    chosen = settings.read()
    if not chosen.use_compiler:
        return None
    compiler, wrong = find_compiler(), wrong_choice()
    if compiler is None:
        tried = f"{wrong}; tried cc" if wrong else "tried $CC, cc"
        _say(f"no C compiler was found ({tried}, gcc, clang); install one or set CC")
        return None
    if wrong:
        _say_once(f"{wrong}; {compiler.command[0]} is used")
    library, reason = _find_or_compile(text, compiler, _open_cache(chosen.cache_dir))
    if library is None:
        _say(f"{shlex.join(compiler.command)} failed: {reason}")
    else:
        _end_threads_before_forks()
    return library


@cache
def _end_threads_before_forks() -> None:
    """Let GNU's OpenMP end its threads when this process forks; it starts others.

    A forked process has none of them, but the runtime would wait for them for ever, in
    torch's parallel regions as in ours. Other runtimes see to it themselves.
    """
    process = ctypes.PyDLL(None)
    pause = getattr(process, "omp_pause_resource_all", None)
    if pause is not None and not hasattr(process, "__kmpc_fork_call"):
        os.register_at_fork(before=partial(pause, _OMP_PAUSE_HARD))


def can_compile() -> bool:
    """Whether there is a compiler to use that is not known to fail at everything."""
    compiler = find_compiler() if settings.read().use_compiler else None
    return compiler is not None and not _why_unusable(compiler, COMPILE_FLAGS)


def _find_or_compile(
    text: str, compiler: Compiler, cache_on_disk: DiskCache | None
) -> tuple[Library | None, str]:
    mark = f"thalweg_text_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    unit = _Unit(f"{text}\nconst int {mark} = 1;\n", mark, _TIMEOUT_S)
    reason = ""
    for flags in flags_to_try():
        key = _key(text, compiler, flags)
        library = _load(cache_on_disk.find(key), mark) if cache_on_disk else None
        if library is None:
            reason = _why_unusable(compiler, flags)
            if not reason:
                library, reason = _compile(unit, compiler, flags, key, cache_on_disk)
                _learn_from(library, compiler, flags)
        if library is not None:
            return library, ""
    return None, reason


def _why_unusable(compiler: Compiler, flags: tuple[str, ...]) -> str:
    """Why it is known that a compiler fails with flags, or nothing."""
    least = _UNUSABLE.get((compiler, COMPILE_FLAGS))
    return least or _UNUSABLE.get((compiler, flags), "")


def _learn_from(
    library: Library | None, compiler: Compiler, flags: tuple[str, ...]
) -> None:
    """After a failure find out, once, whether a trivial program fails too."""
    for tried in (COMPILE_FLAGS, flags):
        if library is None and not _why_unusable(compiler, flags):
            case = compiler, tried
            if case not in _UNUSABLE:
                _, _UNUSABLE[case] = _compile(_TRIVIAL, compiler, tried)


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
    unit: _Unit,
    compiler: Compiler,
    flags: Sequence[str],
    key: str = "",
    cache_on_disk: DiskCache | None = None,
) -> tuple[Library | None, str]:
    try:
        with tempfile.TemporaryDirectory(prefix="thalweg-") as folder:
            made = Path(folder) / "kernel.so"
            reason = _run(unit, compiler, flags, made)
            if reason:
                return None, reason
            kept = _keep(made, key, cache_on_disk)
            # A folder mounted without the right to execute: load the fresh file. So
            # too where a foreign one of the kept one's name is loaded already.
            library = _load(kept, unit.mark) or _load(made, unit.mark)
    except (OSError, subprocess.SubprocessError) as error:
        return None, str(error)
    return library, "" if library else "the result could not be loaded"


def _run(unit: _Unit, compiler: Compiler, flags: Sequence[str], made: Path) -> str:
    """Run the compiler; why it failed, or nothing."""
    source, middle = made.with_suffix(".c"), made.with_suffix(".o")
    source.write_text(unit.text, encoding="utf-8")
    # Linked by itself, without -fopenmp: that would add a second OpenMP runtime.
    for arguments in (
        (*flags, "-c", str(source), "-o", str(middle)),
        (str(middle), "-o", str(made), *_LINK_FLAGS),
    ):
        done = subprocess.run(
            [*compiler.command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=unit.timeout_s,
            check=False,
        )
        if done.returncode != 0:
            return _without_place(_first_error(done), made.parent)
    return "" if made.is_file() else "it made no library"


def _first_error(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line] or lines
    return errors[0] if errors else f"exit status {done.returncode}"


def _without_place(error: str, folder: Path) -> str:
    """An error without the line of a file that is gone, so that it is said once."""
    return re.sub(rf"{re.escape(str(folder))}{os.sep}[\w.]+(:\d+)*:? ?", "", error)


def _keep(made: Path, key: str, cache_on_disk: DiskCache | None) -> Path | None:
    if cache_on_disk is None:
        return None
    try:
        return cache_on_disk.store(key, made.read_bytes())
    except OSError as error:
        # The name of a folder that is in the way helps, that of a temporary file not.
        place = error.filename2 or cache_on_disk.folder
        problem = f"{place}: {error.strerror or error}"
        cause = f"{cache_on_disk.folder}: {error.errno}"
        _say_once(f"compiled kernels are not kept on disk: {problem}", cause)
        return None


def _load(path: Path | None, mark: str) -> Library | None:
    """The library of a file, if it is one and made from the text of this mark."""
    if path is None:
        return None
    try:
        library = Library(ctypes.PyDLL(str(path)), ctypes.CDLL(str(path)), path)
    except OSError:
        return None
    return library if hasattr(library.short, mark) else None


def _say(reason: str) -> None:
    _say_once(f"update rules are interpreted, which is slower: {reason}")


def _say_once(text: str, cause: str = "") -> None:
    if (cause or text) not in _SAID:
        _SAID.add(cause or text)
        _LOGGER.warning("thalweg: %s", text)
