"""Building: flags, caches, and every way it can fail without an exception."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from thalweg.compiler import build as module
from thalweg.compiler.build import (
    build,
    can_compile,
    cpu_features,
    find_compiler,
    wrong_choice,
)

TEXT = "int answer(void) { return 42; }\n"
needs_compiler = pytest.mark.skipif(not can_compile(), reason="needs a C compiler")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_SAID", set())
    monkeypatch.setattr(module, "_UNUSABLE", {})
    monkeypatch.setenv("THALWEG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("THALWEG_COMPILER", "1")
    monkeypatch.setattr(logging.getLogger("thalweg.compiler"), "propagate", True)


def compiled(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*.so"))


def counting_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes a line for each time it is started."""
    found = find_compiler()
    assert found is not None
    log, script = tmp_path / "log", tmp_path / "counting-cc"
    script.write_text(
        f'#!/bin/sh\necho started >> {log}\nexec {found.command[0]} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    return log


@needs_compiler
def test_text_becomes_functions_and_one_file(tmp_path: Path) -> None:
    library = build(TEXT)
    assert library is not None
    assert library.short.answer() == library.long.answer() == 42
    assert [library.path] == compiled(tmp_path)


@needs_compiler
def test_a_cached_library_starts_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = counting_compiler(tmp_path, monkeypatch)
    assert build(TEXT) is not None
    started = log.read_text()
    assert build(TEXT) is not None
    assert log.read_text() == started
    assert build(TEXT + "\n") is not None
    assert log.read_text() != started


@needs_compiler
def test_a_corrupt_file_is_built_again(tmp_path: Path) -> None:
    assert build(TEXT) is not None
    (path,) = compiled(tmp_path)
    path.unlink()  # the loaded file itself must stay as it is
    path.write_bytes(b"\x7fELF and nothing else")
    again = build(TEXT)
    assert again is not None
    assert again.short.answer() == 42


@needs_compiler
def test_an_untrusted_cache_is_not_used_but_kernels_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").mkdir(mode=0o777)
    (tmp_path / "cache").chmod(0o777)
    for _ in range(2):
        assert build(TEXT) is not None
    assert compiled(tmp_path) == []
    assert len(caplog.messages) == 1
    assert "not kept on disk" in caplog.messages[0]
    assert "chmod 700" in caplog.messages[0]


@needs_compiler
def test_a_full_disk_costs_only_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.DiskCache, "store", full)
    assert build(TEXT) is not None
    assert "No space left" in caplog.text


@needs_compiler
def test_openmp_is_compiled_in_but_not_linked() -> None:
    text = (
        "int total(int n) { int sum = 0;\n"
        "#pragma omp parallel for reduction(+:sum) num_threads(2)\n"
        "for (int i = 0; i < n; ++i) { sum += i; } return sum; }\n"
    )
    library = build(text)
    assert library is not None
    assert library.short.total(10) == 45
    if sys.platform == "linux" and shutil.which("readelf"):
        shown = subprocess.run(
            ["readelf", "-d", str(library.path)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "gomp" not in shown.stdout


def test_without_a_compiler_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    for _ in range(2):
        assert build(TEXT) is None
    assert len(caplog.messages) == 1
    assert "no C compiler was found" in caplog.messages[0]


@needs_compiler
def test_a_compiler_that_fails_says_its_first_error(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    assert build("int broken(void) { return nothing; }") is None
    assert len(caplog.messages) == 1
    assert "nothing" in caplog.messages[0]
    assert "undeclared" in caplog.messages[0]
    assert compiled(tmp_path) == []


def test_a_compiler_that_cannot_run_is_no_exception(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    script = tmp_path / "cc"
    script.write_text("not a program")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    assert build(TEXT) is None
    assert len(caplog.messages) == 1


def failing_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> Path:
    """A compiler that writes a line for each start, and does what a script says."""
    log, script = tmp_path / "log", tmp_path / "failing-cc"
    script.write_text(f"#!/bin/sh\necho started >> {log}\n{text}\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    return log


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('echo "$4: error: out of order" >&2; exit 1', "error: out of order"),
        ("exit 3", "exit status 3"),
        ("printf 'error: \\377\\376' >&2; exit 1", "error: "),
        ("kill -9 $$", "exit status -9"),
        ("exit 0", "it made no library"),
        ('while [ "$1" != -o ]; do shift; done; echo no > "$2"', "not be loaded"),
    ],
)
def test_a_broken_compiler_is_started_for_one_kernel_and_said_once(
    text: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = failing_compiler(tmp_path, monkeypatch, text)
    assert build(TEXT) is None
    started = log.read_text()
    assert started.count("started") <= 4  # to compile and link, this and a trivial one
    for number in range(3):
        assert build(f"{TEXT}/* {number} */") is None
    assert log.read_text() == started
    assert len(caplog.messages) == 1
    assert words in caplog.messages[0]
    assert str(tmp_path / "failing-cc") in caplog.messages[0]


@needs_compiler
def test_a_bad_text_does_not_switch_off_the_compiler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert build("int broken(void) { return nothing; }") is None
    assert build("\n\nint again(void) { return nothing; }") is None
    assert "failed: error: " in caplog.messages[0]
    assert "thalweg-" not in caplog.messages[0]
    library = build(TEXT)
    assert library is not None
    assert library.short.answer() == 42
    assert len(caplog.messages) == 1


@needs_compiler
def test_flags_that_fail_are_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = find_compiler()
    assert found is not None
    text = f'case "$*" in *-march=native*) exit 1;; esac\nexec {found.command[0]} "$@"'
    log = failing_compiler(tmp_path, monkeypatch, text)
    assert build(TEXT) is not None
    first = log.read_text().count("started")
    assert build(f"{TEXT}/* another */") is not None
    assert log.read_text().count("started") == first + 2  # compiles and links
    assert caplog.messages == []


@needs_compiler
@pytest.mark.parametrize("given", ["no-such-program -O2", "'an open quotation"])
def test_a_choice_that_names_no_program_is_said_and_passed_by(
    given: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CC", raising=False)
    default = find_compiler()
    assert wrong_choice() is None
    monkeypatch.setenv("CC", given)
    assert find_compiler() == default
    for number in range(2):
        assert build(f"{TEXT}/* {number} */") is not None
    assert len(caplog.messages) == 1
    assert f"CC={given!r} names no program; " in caplog.messages[0]
    assert default is not None
    assert f"{default.command[0]} is used" in caplog.messages[0]


def test_no_compiler_and_a_wrong_choice_are_one_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "icc")
    assert build(TEXT) is None
    assert len(caplog.messages) == 1
    assert "CC='icc' names no program; tried cc, gcc, clang" in caplog.messages[0]


def kept_under_the_name_of(text: str, tmp_path: Path) -> Path:
    """Put the library of another text where that of this one belongs."""
    assert build(text) is not None
    (place,) = compiled(tmp_path)
    place.unlink()
    assert build("int foreign(void) { return 1; }") is not None
    (foreign,) = compiled(tmp_path)
    foreign.rename(place)
    return place


@needs_compiler
def test_a_library_of_another_text_is_built_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = kept_under_the_name_of(TEXT, tmp_path)
    before = place.read_bytes()
    library = build(TEXT)
    assert library is not None
    assert library.short.answer() == 42
    assert compiled(tmp_path) == [place]
    assert place.read_bytes() != before
    assert caplog.messages == []


@needs_compiler
def test_so_is_one_whose_digest_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_under_the_name_of(TEXT, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module.DiskCache, "find", module.DiskCache.path)
        library = build(TEXT)  # dlopen gives the foreign one, which is loaded
    assert library is not None
    assert library.short.answer() == 42
    again = build(TEXT)
    assert again is not None
    assert again.short.answer() == 42


@needs_compiler
def test_a_folder_where_a_library_belongs_costs_only_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"{TEXT}/* {number} */" for number in range(2)]
    for text in texts:
        assert build(text) is not None
    for path in compiled(tmp_path):
        path.unlink()
        (path / "full").mkdir(parents=True)
    for text in texts:
        library = build(text)
        assert library is not None
        assert library.short.answer() == 42
    assert len(caplog.messages) == 1
    assert "not kept on disk" in caplog.messages[0]
    assert ".so: Is a directory" in caplog.messages[0]


@needs_compiler
def test_a_disk_that_is_full_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        number = len(list(tmp_path.iterdir()))
        (tmp_path / str(number)).touch()
        raise OSError(28, "No space left on device", f"{tmp_path}/{number}.part")

    assert build(TEXT) is not None
    monkeypatch.setattr("thalweg.compiler.cache.tempfile.mkstemp", full)
    for number in range(3):
        assert build(f"{TEXT}/* {number} */") is not None
    assert len(caplog.messages) == 1
    assert "No space left on device" in caplog.messages[0]
    assert ".part" not in caplog.messages[0]


def test_whether_anything_can_be_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing_compiler(tmp_path, monkeypatch, "exit 1")
    assert can_compile()  # nothing is known of it yet
    assert build(TEXT) is None
    assert not can_compile()
    monkeypatch.setenv("CC", sys.executable)
    assert can_compile()
    monkeypatch.setenv("THALWEG_COMPILER", "0")
    assert not can_compile()


def test_the_switch_turns_compiling_off_silently(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("THALWEG_COMPILER", "0")
    assert build(TEXT) is None
    assert caplog.messages == []


def test_cc_may_hold_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{sys.executable} -m something 'two words'")
    found = find_compiler()
    assert found is not None
    assert found.command[1:] == ("-m", "something", "two words")


@needs_compiler
def test_flags_a_compiler_does_not_know_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_compiler()
    assert found is not None
    script = tmp_path / "old-cc"
    script.write_text(
        '#!/bin/sh\ncase "$*" in *-march=native*|*-fopenmp*) echo error: unknown >&2; '
        f'exit 1;; esac\nexec {found.command[0]} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    assert build(TEXT) is not None


@needs_compiler
def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    code = (
        "from thalweg.compiler.build import build\n"
        f"assert build({TEXT!r}).short.answer() == 42"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=os.environ) for _ in range(2)
    ]
    assert [process.wait() for process in started] == [0, 0]
    assert len(compiled(tmp_path)) == 1


PARALLEL = """
int total(int n)
{
    int sum = 0;
#pragma omp parallel for reduction(+:sum) num_threads(2)
    for (int i = 0; i < n; ++i) {
        sum += i;
    }
    return sum;
}
"""
FORKING = f"""
import os
from thalweg.compiler.build import build
library = build({PARALLEL!r})
assert library.long.total(10) == 45
child = os.fork()
if child == 0:
    os._exit(library.long.total(10))
assert library.long.total(10) == 45
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 45
child = os.fork()
if child == 0:
    os._exit(library.short.total(5))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
"""


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    with subprocess.Popen([sys.executable, "-c", FORKING], process_group=0) as process:
        try:
            assert process.wait(timeout=60) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the child that hangs, too
            raise


def test_the_processor_is_described_without_what_changes() -> None:
    text = cpu_features()
    assert text
    assert "cpu MHz" not in text
