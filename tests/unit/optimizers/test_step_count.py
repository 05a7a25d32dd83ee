"""Steps that a device counts; the CPU stands for it, under Triton's interpreter."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import thalweg as tw
from tests.codegen.triton_runs import interpreting
from thalweg import schedules
from thalweg.state import IndexedSlices
from thalweg.step.device_clock import DeviceClock
from thalweg.step.row_updates import RowUpdate

SHAPES = ((3, 4), (5,))
ROOMS = [
    *("step.plan", "step.device_group", "step.device_rows", "optimizers.step_count")
]


@contextmanager
def device() -> Iterator[None]:
    """In this scope the CPU counts as a device with kernels of Triton."""
    with interpreting(), np.errstate(all="ignore"), pytest.MonkeyPatch.context() as m:
        for room in ROOMS:
            m.setattr(f"thalweg.{room}.has_device_kernels", lambda device: True)
        m.setattr("thalweg.step.plan._groups", lambda *_, **__: [])
        has_kernel: Any = RowUpdate.has_kernel  # asked without a device by the host
        m.setattr(
            RowUpdate, "has_kernel", lambda u, *on: bool(on) and has_kernel(u, *on)
        )
        m.setitem(DeviceClock.__init__.__kwdefaults__, "horizon", 32)
        yield


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Switches on and off that a step is being captured."""

    def switch(value: bool) -> None:
        for room in ("step.device_clock", "optimizers.step_count"):
            monkeypatch.setattr(f"thalweg.{room}.is_capturing", lambda device: value)

    return switch


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was read back of the clock's count and verdicts."""
    seen: list[str] = []
    read, allows = DeviceClock.read, DeviceClock.allows_rest

    def reading(self: DeviceClock) -> int:
        seen.append("read")
        return read(self)

    def allowing(self: DeviceClock) -> bool:
        seen.append("allows")
        return allows(self)

    monkeypatch.setattr(DeviceClock, "read", reading)
    monkeypatch.setattr(DeviceClock, "allows_rest", allowing)
    return seen


def gradients(step: int, bad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    found = [torch.randn(shape, generator=generator) for shape in SHAPES]
    if bad:
        found[1][2] = torch.inf
    return found


def variables() -> list[tw.Variable]:
    return [tw.Variable(torch.ones(shape)) for shape in SHAPES]


def train(
    optimizer: tw.Optimizer, held: list[tw.Variable], bad: tuple[bool, ...]
) -> None:
    for step, is_bad in enumerate(bad):
        given = gradients(step, is_bad)
        optimizer.apply_gradients(zip(given, held, strict=True))


def agree(ours: list[tw.Variable], theirs: list[tw.Variable]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(torch.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in pairs)


def clock_of(optimizer: tw.Optimizer) -> DeviceClock:
    clock = optimizer._clock
    assert clock is not None
    return clock


RATE = schedules.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"learning_rate": RATE},
    {"learning_rate": 0.1, "decay": 0.25, "global_clipnorm": 0.5},
    {"learning_rate": RATE, "use_ema": True, "clipvalue": 0.5, "clipnorm": 1.0},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_device_leaves_steps_out_and_goes_on_with_the_schedule(
    options: dict[str, Any], waits: list[str]
) -> None:
    here, there = (tw.optimizers.Adam(**options, nonfinite="skip") for _ in range(2))
    expected, found = variables(), variables()
    bad = (False, True, False, True, True, False)
    train(here, expected, bad)
    with device():
        train(there, found, bad)
        assert there.iterations.item() == 3
        assert there.last_step_applied
        assert waits == []
        assert clock_of(there).decides
        train(there, found, (True,))
        assert not there.last_step_applied
    train(here, expected, (True,))
    assert agree(found, expected)


def test_the_host_counts_until_a_capture(capture: Callable[[bool], None]) -> None:
    here, there = (tw.optimizers.SGD(RATE, momentum=0.5) for _ in range(2))
    expected, found = variables(), variables()
    train(here, expected, (False,) * 5)
    with device():
        train(there, found, (False,) * 2)
        assert not clock_of(there).is_ahead
        count = there.iterations
        capture(True)
        there.apply_gradients(zip(gradients(2), found, strict=True))
        capture(False)
        assert clock_of(there).is_ahead
        assert there.iterations is count
        assert count.item() == 3
        for step in (3, 4):
            there.apply_gradients(zip(gradients(step), found, strict=True))
    assert count.item() == 5
    assert agree(found, expected)


def test_what_somebody_else_writes_is_followed() -> None:
    here, there = (tw.optimizers.SGD(RATE, nonfinite="skip") for _ in range(2))
    expected, found = variables(), variables()
    train(here, expected, (False,))
    here.iterations.assign(7)
    train(here, expected, (False,))
    with device():
        train(there, found, (False,))
        there.iterations.assign(7)
        train(there, found, (False,))
    assert there.iterations.item() == 8
    assert agree(found, expected)


def test_another_schedule_makes_other_numbers() -> None:
    other = schedules.PolynomialDecay(0.5, decay_steps=10)
    here, there = (tw.optimizers.SGD(RATE, nonfinite="skip") for _ in range(2))
    expected, found = variables(), variables()
    train(here, expected, (False, True))
    here.learning_rate = other
    train(here, expected, (False, False))
    with device():
        train(there, found, (False, True))
        count = clock_of(there).iterations
        there.learning_rate = other
        train(there, found, (False, False))
        assert clock_of(there).iterations.data_ptr() == count.data_ptr()
    assert there.iterations.item() == 3
    assert agree(found, expected)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_copies_count_for_themselves(copied: Callable[[Any], Any]) -> None:
    optimizer, held = tw.optimizers.Adam(0.1, nonfinite="skip"), variables()
    with device():
        train(optimizer, held, (False, True))
        other_held, other = copied((held, optimizer))
        train(other, other_held, (False,))
        train(optimizer, held, (False, False))
    assert (optimizer.iterations.item(), other.iterations.item()) == (3, 2)


def test_states_follow_on_the_device(capture: Callable[[bool], None]) -> None:
    reference, optimizer = (tw.optimizers.Nadam(0.1) for _ in range(2))
    expected, held = variables(), variables()
    train(reference, expected, (False,) * 5)
    with device():
        train(optimizer, held, (False,) * 2)
        cache = optimizer.state_variables()["momentum_cache"]
        capture(True)
        optimizer.apply_gradients(zip(gradients(2), held, strict=True))
        capture(False)
        assert clock_of(optimizer).states["momentum_cache"].item() == cache.item()
        for step in (3, 4):
            optimizer.apply_gradients(zip(gradients(step), held, strict=True))
    assert cache.item() == pytest.approx(reference.state_variables()["momentum_cache"])
    assert agree(held, expected)


def test_states_wait_where_a_step_is_left_out() -> None:
    options: dict[str, Any] = {"ema_overwrite_frequency": 2, "use_ema": True}
    reference = tw.optimizers.Nadam(0.1, **options)
    optimizer = tw.optimizers.Nadam(0.1, nonfinite="skip", **options)
    expected, held = variables(), variables()
    for step in (0, 2, 5):
        reference.apply_gradients(zip(gradients(step), expected, strict=True))
    with device():
        train(optimizer, held, (False, True, False, True, True, False))
        assert clock_of(optimizer).decides
    assert optimizer.iterations.item() == 3
    assert agree(held, expected)


def test_a_restored_state_is_followed() -> None:
    reference, optimizer = (tw.optimizers.Nadam(0.1) for _ in range(2))
    expected, held = variables(), variables()
    for one, own in ((reference, expected), (optimizer, held)):
        with device():
            train(one, own, (False,))
            one.state_variables()["momentum_cache"].assign(0.25)
            if one is optimizer:
                one._settings.nonfinite = "skip"  # the device counts from here on
            train(one, own, (False, False))
    assert clock_of(optimizer).decides
    assert agree(held, expected)


def slices(step: int, bad: bool) -> IndexedSlices:
    values = gradients(step)[0][:2]
    if bad:
        values[0, 1] = torch.nan
    return IndexedSlices(values, torch.tensor([step % 3, 1]), SHAPES[0])


@pytest.mark.parametrize("has_dense", [True, False])
def test_rows_follow_the_device(has_dense: bool, waits: list[str]) -> None:
    here, there = (tw.optimizers.Adagrad(RATE, nonfinite="skip") for _ in range(2))
    expected, found = variables(), variables()
    bad = (False, False, True, False, True)

    def run(optimizer: tw.Optimizer, held: list[tw.Variable]) -> None:
        for step, is_bad in enumerate(bad):
            pairs: list[Any] = [(slices(step, is_bad), held[0])]
            if has_dense:
                pairs.append((gradients(step)[1], held[1]))
            optimizer.apply_gradients(pairs)

    run(here, expected)
    with device():
        run(there, found)
        assert waits == []
        assert not there.last_step_applied
    assert there.iterations.item() == 3
    assert agree(found, expected)


def test_rows_without_a_kernel_wait_for_the_verdict(waits: list[str]) -> None:
    here, there = (tw.optimizers.Adam(0.1, nonfinite="skip") for _ in range(2))
    # No kernel of a device takes rows that do not lie in one piece.
    expected, found = (torch.nn.Parameter(torch.ones(4, 3).t()) for _ in range(2))
    bad = (False, True, False)
    for step, is_bad in enumerate(bad):
        here.apply_gradients([(slices(step, is_bad), expected)])
    with device():
        for step, is_bad in enumerate(bad):
            there.apply_gradients([(slices(step, is_bad), found)])
    assert "allows" in waits
    assert there.iterations.item() == 2
    assert agree([found], [expected])
