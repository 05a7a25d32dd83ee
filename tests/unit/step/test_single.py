"""A launch on one variable: what it repeats, and what it looks at anew."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg import rules
from thalweg.compiler import Rule
from thalweg.step import launch_dense, single
from thalweg.step.single import launcher_of

MOMENTUM = Rule.of(rules.momentum)
NUMBERS = (0.5, 0.5)
LAUNCHER = launcher_of(MOMENTUM, {"use_nesterov": False})


def tensors_of(size: int = 4) -> list[Any]:
    return [torch.ones(size), torch.zeros(size), torch.ones(size)]


@pytest.fixture(autouse=True)
def launched() -> None:
    """Tensors like these are known."""
    assert LAUNCHER.launch(tensors_of(), NUMBERS)


def test_a_known_launch_is_repeated_for_any_numbers() -> None:
    for size in (1, 7, 5000):
        assert LAUNCHER.launch(tensors_of(size), NUMBERS)
        for lr in (0.5, 0.25):
            tensors = tensors_of(size)
            assert LAUNCHER.again(tensors, (lr, 0.5))
            assert torch.equal(tensors[0], torch.full((size,), 1 - lr))
            assert torch.equal(tensors[1], torch.ones(size))


def test_version_counters_rise() -> None:
    tensors = tensors_of()
    LAUNCHER.again(tensors, NUMBERS)
    assert [t._version for t in tensors] == [1, 1, 0]


def test_variables_and_views_reach_what_they_stand_for() -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    view = tw.state.as_variable(parameter)
    accum = tw.Variable(torch.zeros(4))
    LAUNCHER.launch([parameter, accum, torch.ones(4)], NUMBERS)
    accum.assign(torch.zeros(4))
    parameter.data = torch.full((4,), 3.0)
    assert LAUNCHER.again([view, accum, torch.ones(4)], NUMBERS)
    assert parameter.tolist() == [2.5] * 4
    assert accum.tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("another shape", torch.ones(2, 2)),
        ("gaps", torch.ones(8)[::2]),
        ("another dtype", torch.ones(4, dtype=torch.float64)),
        ("sparse", torch.ones(4).to_sparse()),
        ("no memory", torch.ones(4, device="meta")),
        ("negated", torch._neg_view(torch.ones(4))),  # pyright: ignore[reportPrivateImportUsage] - no public way to a contiguous one
        ("no tensor", 1.0),
    ],
)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_what_needs_a_closer_look_is_left_alone(
    name: str, wrong: Any, position: int
) -> None:
    tensors = tensors_of()
    tensors[position] = wrong
    assert not LAUNCHER.again(tensors, NUMBERS), name
    others = [t for i, t in enumerate(tensors) if i != position]
    assert all(t._version == 0 for t in others)


def test_a_transformed_tensor_is_left_alone() -> None:
    seen: list[bool] = []

    def inside(grad: torch.Tensor) -> torch.Tensor:
        tensors = [torch.ones(4), torch.zeros(4), grad]
        seen.append(LAUNCHER.again(tensors, NUMBERS))
        return grad

    torch.func.vmap(inside)(torch.ones(2, 4))
    assert seen == [False]


def test_no_elements_are_left_alone() -> None:
    assert not LAUNCHER.again(tensors_of(0), NUMBERS)
    assert LAUNCHER.launch(tensors_of(0), NUMBERS)


def test_flags_are_told_apart_by_name() -> None:
    rule = Rule.of(_two_flags)
    for flags in ({"a": True, "b": False}, {"b": True, "a": False}):
        for _ in range(2):
            var = torch.zeros(1)
            launch_dense(rule, flags, [var, torch.ones(1)], {"lr": 1.0})
            assert var.item() == (1.0 if flags["a"] else 10.0)


def _two_flags(var: Any, grad: Any, *, lr: Any, a: bool, b: bool) -> Any:
    new = var
    if a:
        new = new + lr * grad
    if b:
        new = new + 10 * lr * grad
    return new


def test_a_rule_that_needs_the_shape_has_no_single_launch() -> None:
    def shaped(var: Any, grad: Any, *, lr: Any) -> Any:
        return var - lr * grad / var.shape[0]

    rule, var = Rule.of(shaped), torch.ones(2)
    for _ in range(2):
        assert not launcher_of(rule, {}).launch([var, torch.ones(2)], (1.0,))
    launch_dense(rule, {}, [var, torch.ones(2)], {"lr": 1.0})
    assert var.tolist() == [0.5, 0.5]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single, "_MOST_KNOWN", 2)
    monkeypatch.setattr(LAUNCHER, "_known", {})
    for size in range(1, 8):
        assert LAUNCHER.launch(tensors_of(size), NUMBERS)
        assert LAUNCHER.again(tensors_of(size), NUMBERS)
        assert len(LAUNCHER._known) <= 2


def test_threads_do_not_share_tables() -> None:
    tensors = [tensors_of(64) for _ in range(4)]
    start = threading.Barrier(4)

    def work(own: list[Any], lr: float) -> None:
        start.wait()
        for _ in range(50):
            launch_dense(
                MOMENTUM, {"use_nesterov": False}, own, {"lr": lr, "momentum": 0.0}
            )

    threads = [
        threading.Thread(target=work, args=(own, float(i)))
        for i, own in enumerate(tensors)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [t[0][0].item() for t in tensors] == [1.0, -49.0, -99.0, -149.0]


def test_kinds_of_tensors_take_turns() -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    kinds: list[list[Any]] = [
        tensors_of(),
        tensors_of(7),
        [tw.Variable(torch.ones(4)), tw.Variable(torch.zeros(4)), torch.ones(4)],
        [tw.state.as_variable(parameter), torch.zeros(4), torch.ones(4)],
        [parameter, torch.zeros(4), torch.ones(4)],
    ]
    for tensors in kinds:
        LAUNCHER.launch([tw.state.handle_of(t) for t in tensors], NUMBERS)
    for tensors in 3 * kinds:
        with torch.no_grad():
            tensors[0].fill_(1.0)
            tensors[1].fill_(0.0)
        assert LAUNCHER.again(tensors, NUMBERS)
        assert set(tensors[0].tolist()) == {0.5}


def test_a_view_whose_original_moved_is_not_written() -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    view, accum = tw.state.as_variable(parameter), tw.Variable(torch.zeros(4))
    own = tw.Variable(torch.ones(4))
    LAUNCHER.launch([own, accum, torch.ones(4)], NUMBERS)
    LAUNCHER.launch([parameter, accum, torch.ones(4)], NUMBERS)
    assert LAUNCHER.again([own, accum, torch.ones(4)], NUMBERS)
    before = view.tolist()
    parameter.data = torch.full((4,), 3.0)
    accum.assign(torch.zeros(4))
    assert LAUNCHER.again([view, accum, torch.ones(4)], NUMBERS)
    assert (parameter.tolist(), view.tolist()) == ([2.5] * 4, before)


def test_a_kind_is_remembered_once() -> None:
    for _ in range(20):
        assert LAUNCHER.launch(tensors_of(11), NUMBERS)
    assert len(LAUNCHER._known[torch.Size([11])]) == 1
    doubles = [t.double() for t in tensors_of(11)]
    assert LAUNCHER.launch(doubles, NUMBERS)
    assert LAUNCHER.again(doubles, NUMBERS)


def test_many_kinds_of_one_shape_leave_room_for_a_new_one() -> None:
    dtypes = torch.float32, torch.float64, torch.bfloat16
    for kind in itertools.product(dtypes, repeat=3):
        tensors = [torch.ones(13, dtype=dtype) for dtype in kind]
        assert LAUNCHER.launch(tensors, NUMBERS)
        assert LAUNCHER.again(tensors, NUMBERS)
    assert len(LAUNCHER._known[torch.Size([13])]) < 3**3
