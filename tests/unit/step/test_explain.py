"""`explain`: a line for each variable and kernel, bytes by what is read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from thalweg import rules
from thalweg.compiler import Rule
from thalweg.step import Member
from thalweg.step.bandwidth import Bandwidth, keep_bandwidth
from thalweg.step.explain import Part, explain


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THALWEG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("THALWEG_COMPILER", "0")


def member(rule: Any, *sizes: int, layouts: tuple[str, ...] = ()) -> Member:
    """A member whose variable and slots have these sizes."""
    made = Rule.of(rule)
    flags = tuple((name, False) for name in made.flags)
    return Member(made, tuple(torch.ones(size) for size in sizes), layouts, 0, flags)


def explained(
    title: str, *members: tuple[str, Member], gradient: torch.dtype = torch.float32
) -> str:
    return explain(title, [Part(name, made, gradient) for name, made in members])


@pytest.mark.parametrize(("now", "told"), [(2, ""), (4, " (now 4)"), (1, " (now 1)")])
def test_what_times_leave_out_and_other_threads_are_told(
    now: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_bandwidth(Bandwidth(1e9, 2, "2026-01-31"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: now)
    text = explained("SGD", ("a", member(rules.gradient_descent, 8)))
    assert text.splitlines()[1] == (
        f"Expected at 1.0 GB/s, measured on 2026-01-31, 2 threads{told}; "
        "a call's own tens of µs come on top."
    )


def test_bytes_are_those_read_and_written() -> None:
    keep_bandwidth(Bandwidth(1e9, 2, "2026-01-31"))
    adam = member(rules.adam, 1000, 1000, 1000)
    text = explained("Adam", ("layer.weight", adam))
    lines = text.splitlines()
    # Three are read and written, the gradient is read: 7 × 4 bytes a number.
    assert lines[0] == "Adam: variables: 1, launches: 1, 28.0 kB, 28.00 µs"
    assert lines[1].startswith("Expected at 1.0 GB/s, measured on 2026-01-31, 2 thr")
    words = ["layer.weight", "1000", "adam", "adam", "#1", "28.0", "kB", "28.00", "µs"]
    assert lines[4].split() == words
    assert lines[-1].split()[0] == "adam"
    assert "float32" in lines[-1]


def test_it_says_where_there_is_no_kernel() -> None:
    def never_compiled(var: Any, grad: Any, *, rate: float) -> Any:
        return var - rate * grad

    text = explained("Own", ("a", member(never_compiled, 8)))
    assert "never_compiled #1  interpreter" in text


def test_variables_of_one_kernel_share_a_launch() -> None:
    small = member(rules.gradient_descent, 10)
    large = member(rules.gradient_descent, 1_000_000)
    text = explained("SGD", ("a", small), ("b", large))
    assert "variables: 2, launches: 1, 12.0 MB, ?" in text
    assert "say `thalweg bench`" in text


def test_a_reading_pass_counts() -> None:
    lamb = member(rules.lamb, 1000, 1000, 1000)
    text = explained("Lamb", ("a", lamb))
    assert "2 passes" in text
    assert "44.0 kB" in text  # 7 as Adam, and 4 read before


def test_dtypes_are_told_where_they_differ() -> None:
    made = member(rules.keras_momentum, 8, 8)
    tensors = (made.tensors[0], made.tensors[1].bfloat16())
    mixed = Member(made.rule, tensors, (), 0, made.flags)
    text = explained("SGD", ("a", made), ("b", mixed))
    assert "launches: 2" in text
    assert "bfloat16: accum" in text or "bfloat16: momentum" in text


def test_without_variables_it_says_what_to_do() -> None:
    expected = "Adam: nothing is built yet. Call build(model) or take a step."
    assert explained("Adam") == expected


def test_a_gradient_of_another_dtype_counts_its_own_bytes() -> None:
    made = member(rules.gradient_descent, 1000)
    text = explained("SGD", ("a", made), gradient=torch.bfloat16)
    assert "10.0 kB" in text
    assert "bfloat16: delta" in text


def test_a_device_without_kernels_and_measurement_is_told() -> None:
    keep_bandwidth(Bandwidth(1e9, 2, "2026-01-31"))
    made = Rule.of(rules.gradient_descent)
    there = Member(made, (torch.empty(1000, device="meta"),), (), 0)
    here = member(rules.gradient_descent, 1000)
    text = explained("SGD", ("here", here), ("there", there))
    assert "variables: 2, launches: 2, 24.0 kB, ?" in text
    assert "The bandwidth of meta is not known.\n" in text
    assert "Expected at 1.0 GB/s" in text


def test_a_gpu_is_told_how_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    with FakeTensorMode():
        there = torch.empty(1000, device="cuda:1")
    made = Member(Rule.of(rules.gradient_descent), (there,), (), 0)
    advice = "of cuda:1 is not known; say `thalweg bench --device cuda:1`.\n"
    assert advice in explained("SGD", ("a", made))
    keep_bandwidth(Bandwidth(3e12, 0, "2026-01-31"), "Some GPU")
    text = explained("SGD", ("a", made))
    assert "Expected at 3000.0 GB/s, measured on 2026-01-31; a call's" in text


def test_short_times_are_told_in_nanoseconds() -> None:
    keep_bandwidth(Bandwidth(1e9, 2, "2026-01-31"))
    text = explained("SGD", ("a", member(rules.gradient_descent, 4)))
    assert text.splitlines()[0] == "SGD: variables: 1, launches: 1, 48 B, 48.0 ns"


def test_touched_rows_cost_by_the_row() -> None:
    keep_bandwidth(Bandwidth(1e9, 2, "2026-01-31"))
    made = member(rules.gradient_descent, 4)
    wide = Member(made.rule, (torch.ones(10, 100),), (), 0, made.flags)
    parts = [
        Part("a", made, torch.float32),
        Part("b", wide, torch.bfloat16, "sum"),
    ]
    head, _, _, _, whole, rows, _, _, _, kernel = explain("SGD", parts).splitlines()
    assert head == "SGD: variables: 2, launches: 2, 48 B, 48.0 ns, and touched rows"
    assert whole.split()[5:] == ["48", "B", "48.0", "ns"]
    assert " ".join(rows.split()[5:]) == "1.0 kB a row 1.00 µs a row"
    assert "interpreter, touched rows" in kernel
    assert parts[1].key.mode == "sum"
    assert (parts[0].is_compiled, parts[1].is_compiled) == (True, True)


def test_rows_of_a_rule_that_reduces_a_part_of_them_are_interpreted() -> None:
    def share(var: Any, grad: Any, *, rate: float) -> Any:
        return var - rate * grad / grad.sum(-1, keepdim=True)

    for shape, is_compiled in (((4, 3), True), ((4, 3, 2), False)):
        made = Member(Rule.of(share), (torch.ones(shape),), (), 0)
        part = Part("a", made, torch.float32, "sum")
        assert part.is_compiled == is_compiled
        assert Part("a", made, torch.float32).is_compiled
