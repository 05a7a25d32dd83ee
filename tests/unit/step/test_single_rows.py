"""A launch on some rows of one variable: what it repeats, and what it leaves alone."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg import rules
from thalweg.compiler import Rule, compilation
from thalweg.compiler.build import find_compiler
from thalweg.state import IndexedSlices
from thalweg.step import single_rows
from thalweg.step.single_rows import RowLauncher, row_launcher_of

MOMENTUM = Rule.of(rules.momentum)
FLAGS = (("use_nesterov", False),)
NUMBERS = (0.5, 0.5)
needs_compiler = pytest.mark.skipif(
    find_compiler() is None, reason="needs a C compiler"
)


def tensors_of(
    indices: Any = (1, 3, 1), rows: int = 4, dtype: torch.dtype = torch.float32
) -> list[Any]:
    """Variable, slot, gradient, indices."""
    shape = (len(indices), 2)
    tensors = torch.ones(rows, 2), torch.zeros(rows, 2), torch.ones(shape)
    return [*(t.to(dtype) for t in tensors), torch.tensor(indices)]


def known(*likes: list[Any]) -> RowLauncher:
    """A launcher that has seen tensors like these."""
    launcher = RowLauncher(MOMENTUM, FLAGS)
    for var, accum, grad, indices in likes:
        launcher.launch([var, accum], IndexedSlices(grad, indices), NUMBERS)
    return launcher


@needs_compiler
def test_a_known_launch_is_repeated_for_any_rows_and_numbers() -> None:
    launcher = known(tensors_of())
    for indices in ([1, 3, 1], [0], [2] * 50):
        for lr in (0.5, 0.25):
            own, others = tensors_of(indices), tensors_of(indices)
            assert launcher.again(own, (lr, 0.5))
            slices = IndexedSlices(*others[2:])
            RowLauncher(MOMENTUM, FLAGS).launch(others[:2], slices, (lr, 0.5))
            assert torch.equal(own[0], others[0])
            assert torch.equal(own[1], others[1])
            assert [t._version for t in own] == [1, 1, 0, 0]


@needs_compiler
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("another shape", torch.ones(5, 2)),
        ("other axes", torch.ones(8)),
        ("gaps", torch.ones(4, 4)[:, ::2]),
        ("another dtype", torch.ones(4, 2, dtype=torch.float64)),
        ("sparse", torch.ones(4, 2).to_sparse()),
        ("no memory", torch.ones(4, 2, device="meta")),
        ("no tensor", 1.0),
        ("nothing", None),
    ],
)
@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_what_needs_a_closer_look_is_left_alone(
    name: str, wrong: Any, position: int
) -> None:
    launcher, tensors = known(tensors_of()), tensors_of()
    tensors[position] = wrong
    assert not launcher.again(tensors, NUMBERS), name
    for number, expected in enumerate(tensors_of()):
        if number != position:
            assert torch.equal(tensors[number], expected)
            assert tensors[number]._version == 0


@needs_compiler
def test_wrong_indices_and_shared_memory_are_left_alone() -> None:
    launcher = known(tensors_of())
    wrong = [tensors_of([1, row]) for row in (-1, 4)]
    short = [*tensors_of()[:3], torch.tensor([1])]
    empty = tensors_of([])
    empty[3] = empty[3].long()
    whole = torch.ones(10, 2)
    shared = [whole[:4], whole[3:7], *tensors_of()[2:]]
    read = [whole[:4], torch.zeros(4, 2), whole[3:6], tensors_of()[3]]
    for tensors in (*wrong, short, empty, shared, read):
        before = [t.clone() for t in tensors]
        assert not launcher.again(tensors, NUMBERS)
        assert all(map(torch.equal, tensors, before))


@needs_compiler
def test_kinds_are_kept_side_by_side_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(single_rows, "_MOST_KNOWN", 3)
    wide = tensors_of(dtype=torch.float64)
    launcher = known(wide, *(tensors_of(rows=rows) for rows in (4, 5, 6)))
    for rows in (4, 5, 6):
        assert launcher.again(tensors_of(rows=rows), NUMBERS)
    assert launcher.again(tensors_of(dtype=torch.float64), NUMBERS)
    var, accum, *slices = tensors_of(rows=7)
    launcher.launch([var, accum], IndexedSlices(*slices), NUMBERS)
    assert launcher.again(tensors_of(rows=7), NUMBERS)
    assert not launcher.again(tensors_of(rows=4), NUMBERS)


@needs_compiler
def test_variables_and_views_reach_what_they_stand_for() -> None:
    parameter, accum = (
        torch.nn.Parameter(torch.ones(4, 2)),
        tw.Variable([[0.0] * 2] * 4),
    )
    view = tw.state.as_variable(parameter)
    *_, grad, indices = tensors_of([2])
    launcher = known([parameter, accum, grad, indices])
    assert launcher.again([view, accum, grad, indices], NUMBERS)
    assert parameter[2].tolist() == [1 - 0.5 - 0.75] * 2


@needs_compiler
def test_each_thread_and_each_copy_learns_by_itself() -> None:
    launcher = known(tensors_of())
    assert not copy.deepcopy(launcher).again(tensors_of(), NUMBERS)
    found: list[bool] = []
    thread = threading.Thread(
        target=lambda: found.append(launcher.again(tensors_of(), NUMBERS))
    )
    thread.start()
    thread.join()
    assert found == [False]


def test_without_a_compiler_nothing_is_recognized(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("THALWEG_COMPILER", "0")
    compilation.clear()
    own = tensors_of()
    launcher = known(own)
    assert own[0][:, 0].tolist() == [1.0, -0.25, 1.0, 0.5]
    assert not launcher.again(tensors_of(), NUMBERS)
    compilation.clear()


def test_a_rule_has_one_launcher_for_its_flags() -> None:
    launcher = row_launcher_of(MOMENTUM, {"use_nesterov": True})
    assert launcher is row_launcher_of(MOMENTUM, {"use_nesterov": True})
    assert launcher is not row_launcher_of(MOMENTUM, {"use_nesterov": False})
