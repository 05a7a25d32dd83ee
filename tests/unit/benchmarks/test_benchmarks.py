"""The benchmarks in short form: every case runs, bounds are judged, nothing is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import compile as compile_benchmark
from benchmarks import harness, sparse, step
from benchmarks.cases import OURS, Bound, Case, Results, arguments, run
from benchmarks.contenders import MissingError, Problem, Step, timed
from thalweg.compiler.build import find_compiler


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setenv("THALWEG_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def missing(problem: Problem) -> Step:
    raise MissingError(f"not for {problem.num_elements}")


def nothing(problem: Problem) -> Step:
    del problem
    return lambda: None


def waits(seconds: float) -> Callable[[Problem], Step]:
    return lambda _: lambda: torch.ones(int(seconds * 1e8)).sum()


@pytest.mark.parametrize(
    ("module", "count"), [(step, 14), (sparse, 7)], ids=["step", "sparse"]
)
def test_every_case_runs(
    module: Any, count: int, kept: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    options = arguments(None).parse_args(["--quick", "--threads", "1"])
    results = run("trial", module.cases(options), options)
    measured = {row["case"] for row in results.rows if row["median_us"] is not None}
    assert len(measured) >= count
    assert all(isinstance(v["met"], bool) for v in results.verdicts.values())
    printed = capsys.readouterr().out
    assert all(case in printed for case in measured)
    assert list(kept.glob("*.json")) == []


@pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")
def test_compiling_is_timed(kept: Any, capsys: pytest.CaptureFixture[str]) -> None:
    compile_benchmark.main(["--quick", "--threads", "1"])
    printed = capsys.readouterr().out
    assert "thalweg, second process" in printed
    assert "'value': 0, 'at_most': 0, 'met': True" in printed
    assert list(kept.glob("*.json")) == []


def test_bounds_are_judged_and_absence_is_told() -> None:
    case = Case(
        "name",
        Problem([4, 4]),
        {OURS: nothing, "slow": waits(0.001), "absent": missing},
        [
            Bound(OURS, "slow", 1.0),
            Bound("slow", OURS, 1.0),
            Bound("slow", OURS, at_most=0.9),
            Bound(OURS, ("slow", "absent"), 1e9),
            Bound(OURS, "absent", 1.0),
        ],
        passes=3,
        share={"cpu": 1e-9},
    )
    results = Results()
    results.measure(case, 3)
    verdicts = [v["met"] for v in results.verdicts.values()]
    assert sorted(results.verdicts) == ["name: slow / thalweg", "name: thalweg / slow"]
    assert verdicts == [False, True]
    notes = {row["contender"]: row["note"] for row in results.rows}
    assert notes["absent"] == "not for 8"


def test_bandwidth_is_that_of_the_same_rounds() -> None:
    memory = {"memory copy": waits(0.001)}
    contenders = {OURS: waits(0.001), **memory}
    case = Case("name", Problem([1000]), contenders, passes=7, share={"cpu": 0.5})
    results = Results()
    results.measure(case, 3)
    (row,) = [row for row in results.rows if row["contender"] == OURS]
    assert row["gb_per_s"] > 0
    verdict = results.verdicts["name: share of bandwidth"]
    assert verdict["value"] == pytest.approx(row["share"])


def test_repeats_are_divided_out() -> None:
    calls: list[int] = []
    seconds = timed(lambda: calls.append(1), repeats=10)()
    assert len(calls) == 10
    assert seconds < 0.1


def test_only_chosen_cases_run(capsys: pytest.CaptureFixture[str]) -> None:
    options = arguments(None).parse_args(["--quick", "--only", "MLP"])
    results = run("trial", step.few(options), options)
    assert {row["case"] for row in results.rows} == {"MLP, 4 tensors, 100k"}
    assert "MLP" in capsys.readouterr().out


def test_a_full_run_is_kept(kept: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = arguments(None).parse_args(["--rounds", "1"])
    run("trial", [Case("name", Problem([4]), {OURS: nothing})], options)
    assert [path.name for path in kept.glob("*.json")] == ["trial.json"]
    assert "name" in capsys.readouterr().out
