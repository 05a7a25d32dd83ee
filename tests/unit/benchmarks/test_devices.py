"""What benchmarks measure on a GPU, a pretended one: cases, bounds, room, notes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import thalweg as tw
from benchmarks import devices, harness, sparse, step
from benchmarks.cases import OURS, Bound, Case, Results, arguments, run
from benchmarks.contenders import (
    MissingError,
    Problem,
    Step,
    memory_copy,
    optax_full_step,
    optax_step,
    tensorflow_step,
    thalweg_step,
    timed,
    torch_step,
)
from benchmarks.sparse_contenders import (
    Tables,
    fbgemm_embedding,
    optax_rows,
    tensorflow_adagrad,
    tensorflow_adam,
    thalweg_rows,
    torch_rows,
)
from tests.unit.step.pretended_device import pretended_device

GB = 1_000_000_000
FREE = 140 * GB


class _Gpu:
    """What `torch.cuda` is asked for here, beside what the steps ask for."""

    def __init__(self) -> None:
        self.free = FREE
        self.waits: list[object] = []
        self.emptied = 0

    def empty_cache(self) -> None:
        self.emptied += 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Gpu:
    found = _Gpu()
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    stand_ins: dict[str, Any] = {
        "is_available": lambda: True,
        "synchronize": found.waits.append,
        "mem_get_info": lambda _: (found.free, FREE),
        "get_device_name": lambda *_: "NVIDIA H200",
        "empty_cache": found.empty_cache,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return found


@pytest.fixture
def device(gpu: _Gpu) -> Iterator[None]:
    """Tensors can be made on ``cuda``."""
    del gpu
    with pretended_device():
        yield


def options(*words: str) -> Any:
    return arguments(None, gpu=True).parse_args(["--device", "cuda", *words])


def bounds(case: Case) -> list[tuple[Any, ...]]:
    """Those that hold on a GPU."""
    return [
        (b.faster, b.slower, b.at_least, b.at_most)
        for b in case.bounds
        if b.device == "cuda"
    ]


# -- the option ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["compile", "interpreter", "raw_op", "dropin", "fit"])
def test_benchmarks_of_the_cpu_refuse_another_device(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr("sys.argv", [name, "--device", "cuda"])
    with pytest.raises(SystemExit):
        module.main()
    assert "this benchmark measures the CPU only, got 'cuda'" in capsys.readouterr().err


@pytest.mark.parametrize("module", [step, sparse], ids=["step", "sparse"])
@pytest.mark.parametrize(
    ("word", "told"),
    [("cuda", "finds no CUDA device here"), ("gpu", "expected cpu, cuda or cuda:1")],
)
def test_a_device_that_cannot_be_measured_is_refused(
    module: Any,
    word: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        module.main(["--device", word])
    assert told in capsys.readouterr().err


# -- cases and bounds ----------------------------------------------------------


@pytest.mark.usefixtures("device")
def test_the_bounds_of_dense_steps_on_a_gpu() -> None:
    found = {case.name: case for case in step.cases(options("--quick"))}
    fused = (OURS, "torch fused", 1.5, None)
    small = ("300 × 1,024 Adam", "300 × 1,024 AdamW", "300 × 1,024, 50 settings")
    unfused = [f"1B {name}" for name in ("RMSprop", "NAdam", "Adadelta", "Adamax")]
    wanted = {
        **{name: [fused] for name in small},
        "1B AdamW": [(OURS, "torch fused", 1.0, None)],
        **{name: [(OURS, "torch foreach", 2.5, None)] for name in unfused},
    }
    assert {n: bounds(c) for n, c in found.items() if bounds(c)} == wanted
    assert found["1B AdamW"].share["cuda"] == 0.92
    assert [n for n, c in found.items() if "cuda" in c.share] == ["1B AdamW"]
    large = [c for n, c in found.items() if n.startswith("1B")]
    assert len(large) == 10
    assert all(list(c.contenders)[:2] == ["memory copy", OURS] for c in large)


@pytest.mark.usefixtures("device")
def test_the_bounds_of_rows_on_a_gpu() -> None:
    found = {case.name: bounds(case) for case in sparse.cases(options("--quick"))}
    wanted = {
        "Adam, 65,536 of 10M rows of 128": [
            (OURS, sparse.TORCH, 3.0, None),
            (sparse.COO, sparse.TORCH, 3.0, None),
        ]
    }
    assert {name: held for name, held in found.items() if held} == wanted
    assert "Adam, beside whole tables" not in found


@pytest.mark.parametrize(
    ("free", "word", "count"),
    [(140, "1B", GB), (40, "1B", GB), (16, "450M", 450_000_000)],
)
def test_large_cases_take_what_there_is_room_for(
    free: int, word: str, count: int, gpu: _Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.free = free * GB
    monkeypatch.setattr(step, "Problem", lambda sizes, _: sum(sizes))
    assert step.large_problem(options()) == (word, count)


@pytest.mark.parametrize(("free", "rows"), [(140, 10_000_000), (16, 4_687_500)])
def test_large_tables_take_what_there_is_room_for(
    free: int, rows: int, gpu: _Gpu
) -> None:
    gpu.free = free * GB
    case = sparse.large_table(options(), Problem([]))
    assert case.keeps == 3 * 4 * rows * 128
    assert f"{rows // 1_000_000}M rows" in case.name


def test_the_size_on_the_cpu_is_fixed() -> None:
    given = arguments(None, gpu=True).parse_args(["--quick"])
    assert step.large_problem(given)[0] == "50M"


# -- room ----------------------------------------------------------------------


def nothing(_: Problem) -> Step:
    return lambda: None


def large_case(device: str = "cuda") -> Case:
    """Four contenders that keep 12 bytes an element of a thousand million."""
    problem = Problem([], device)
    object.__setattr__(problem, "sizes", [GB])
    names = ("memory copy", OURS, "torch fused", "torch foreach", "torch for-loop")
    return Case("name", problem, dict.fromkeys(names, nothing), keeps=12 * GB)


@pytest.mark.parametrize(
    ("free", "turns"), [(140, [5]), (80, [5]), (40, [2, 2, 1]), (1, [1] * 5)]
)
def test_contenders_that_do_not_fit_take_turns(
    free: int, turns: list[int], gpu: _Gpu
) -> None:
    gpu.free = free * GB
    case = large_case()
    found = case.turns()
    assert [len(names) for names in found] == turns
    assert [name for names in found for name in names] == list(case.contenders)


def test_the_cpu_has_room_for_all(gpu: _Gpu) -> None:
    gpu.free = 0
    assert len(large_case("cpu").turns()) == 1


def test_turns_are_told_and_judged_together(gpu: _Gpu) -> None:
    gpu.free = 40 * GB
    case, results = large_case(), Results()
    bound = Bound(OURS, "torch for-loop", 0.0, device="cuda")
    object.__setattr__(case, "bounds", [bound, Bound(OURS, "torch fused", 1.0)])
    results.measure(case, 2)
    notes = {row["contender"]: row["note"] for row in results.rows}
    assert [name for name, note in notes.items() if not note] == ["memory copy", OURS]
    assert notes["torch fused"].startswith("not in the same rounds")
    assert list(results.verdicts) == ["name: torch for-loop / thalweg"]
    assert gpu.emptied == 4


# -- contenders ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("setup", "name"),
    [
        (optax_step("adam"), "optax"),
        (optax_full_step, "optax"),
        (tensorflow_step("ResourceApplyAdam"), "TensorFlow"),
        (optax_rows("adam", Tables(8, 4, device="meta")), "optax"),
        (tensorflow_adam(Tables(8, 4, device="meta")), "TensorFlow"),
        (tensorflow_adagrad(Tables(8, 4, device="meta")), "TensorFlow"),
        (fbgemm_embedding("EXACT_ADAGRAD", Tables(8, 4, device="meta")), "FBGEMM"),
    ],
)
def test_those_of_the_cpu_are_missing_elsewhere(setup: Any, name: str) -> None:
    with pytest.raises(MissingError, match=f"{name} is measured on the CPU only"):
        setup(Problem([8], "meta"))


def refuses(_: Problem) -> Step:
    raise RuntimeError("`fused` is not for this device\nmore of it")


def refuses_to_step(_: Problem) -> Step:
    def step() -> None:
        raise RuntimeError("no such kernel")

    return step


def test_what_torch_refuses_is_a_note() -> None:
    contenders = {
        OURS: nothing,
        "torch fused": refuses,
        "torch foreach": refuses_to_step,
    }
    results = Results()
    results.measure(Case("name", Problem([4]), contenders), 1)
    notes = {row["contender"]: row["note"] for row in results.rows}
    assert notes["torch fused"] == "`fused` is not for this device"
    assert notes["torch foreach"] == "no such kernel"
    assert notes[OURS] == ""


def test_what_is_refused_by_this_package_is_raised() -> None:
    case = Case("name", Problem([4]), {OURS: refuses_to_step})
    with pytest.raises(RuntimeError, match="no such kernel"):
        Results().measure(case, 1)


def test_tables_are_on_their_device() -> None:
    tables = Tables(8, 4, 16, "meta")
    tensors = [tables.table(2), *tables.indices(), tables.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert tables.table().shape == (8, 16)
    assert tables.values().shape == (4, 16)


# -- whole runs ----------------------------------------------------------------


def test_a_gpu_is_waited_for_before_and_after(gpu: _Gpu) -> None:
    waits: list[int] = []
    seconds = timed(lambda: waits.append(len(gpu.waits)), 3, "cuda")()
    assert seconds >= 0
    assert waits == [1, 1, 1]
    assert gpu.waits == ["cuda", "cuda"]


@pytest.mark.usefixtures("device")
def test_steps_run_on_the_device(
    gpu: _Gpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = Tables(20, 4, 8, "cuda")
    dense = {
        "memory copy": memory_copy,
        OURS: thalweg_step(tw.optimizers.AdamW),
        "torch fused": torch_step("AdamW", fused=True),
        "optax jit": optax_step("adamw"),
    }
    rows = {
        OURS: thalweg_rows(tw.optimizers.Adam, tables),
        "torch sparse": torch_rows("SparseAdam", tables),
    }
    problem = Problem([6, 4], "cuda")
    share = {"cpu": 1.0, "cuda": 1e-9}
    cases = [
        Case("dense", problem, dense, [Bound(OURS, "torch fused", 1.0)], 7, share),
        Case("rows", Problem([], "cuda"), rows, repeats=2),
    ]
    results = run("trial", cases, options("--rounds", "1", "--threads", "1"))
    measured = [row for row in results.rows if row["median_us"] is not None]
    assert len(measured) == 5
    assert results.verdicts["dense: share of bandwidth"]["at_least"] == 1e-9
    assert list(results.verdicts) == ["dense: share of bandwidth"]
    assert set(gpu.waits) == {"cuda"}
    assert [path.name for path in tmp_path.iterdir()] == ["trial-nvidia-h200.json"]
    assert "gpu NVIDIA H200" in capsys.readouterr().out


def test_results_of_a_gpu_have_its_name(gpu: _Gpu) -> None:
    del gpu
    assert devices.label("cuda") == "-nvidia-h200"
    assert devices.label("cpu") == ""
