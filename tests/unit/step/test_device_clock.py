"""A count of steps that lives where the variables are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from thalweg import schedules
from thalweg.step import STEP
from thalweg.step.device_clock import DeviceClock, clock_in_force

CPU = torch.device("cpu")


def test_numbers_are_those_of_the_schedule() -> None:
    rate = schedules.ExponentialDecay(0.1, decay_steps=3, decay_rate=0.7)
    numbers = {"learning_rate": lambda n: [rate(n), 2 * rate(n)]}
    clock = DeviceClock(CPU, 4, 2, numbers, horizon=50)
    for step in range(4, 20):
        columns = clock.columns()
        assert columns[STEP].tolist() == [step + 1.0] * 2
        assert columns["learning_rate"].tolist() == [rate(step), 2 * rate(step)]
        clock.advance()
    assert clock.read() == 20


def test_a_step_that_is_not_taken_does_not_count() -> None:
    clock = DeviceClock(CPU, 0, 1, {}, horizon=4)
    for taken in (True, False, True):
        clock.advance(torch.tensor(taken))
    assert clock.iterations.item() == 2


def test_there_are_always_numbers_left() -> None:
    clock = DeviceClock(CPU, 0, 1, {"rate": lambda n: [float(n)]}, horizon=10)
    for _ in range(57):
        clock.advance()
    assert clock.columns()["rate"].item() == 57.0
    for step in (58, 64, 1000, 3):
        clock.follow(step)
        assert clock.columns()["rate"].item() == step
        assert clock.columns()[STEP].item() == step + 1


def test_tables_stay_where_a_captured_step_knows_them() -> None:
    clock = DeviceClock(CPU, 0, 1, {"rate": lambda n: [float(n)]}, horizon=10)
    before = [t.data_ptr() for t in (clock.iterations, *clock._tables.values())]
    clock.follow(1000)
    after = [t.data_ptr() for t in (clock.iterations, *clock._tables.values())]
    assert before == after


def test_beyond_the_horizon_the_last_number_holds() -> None:
    clock = DeviceClock(CPU, 0, 1, {"rate": lambda n: [float(n)]}, horizon=10)
    clock.iterations.fill_(500)  # as replays do, which the host does not see
    assert clock.columns()["rate"].item() == 9.0
    assert clock.columns()[STEP].item() == 501.0
    assert clock.read() == 500
    assert clock.columns()["rate"].item() == 500.0


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    def switch(value: bool) -> None:
        name = "thalweg.step.device_clock.is_capturing"
        monkeypatch.setattr(name, lambda device: value)

    return switch


def test_the_device_counts_from_the_first_capture_on(
    capture: Callable[[bool], None],
) -> None:
    clock = DeviceClock(CPU, 0, 1, {"rate": lambda n: [float(n)]}, horizon=10)
    for count in range(3):
        assert clock.begin(count) == {}
        clock.finish()
    assert clock.iterations.item() == 3
    capture(True)
    assert clock.begin(3)["rate"].item() == 3.0
    clock.finish()
    capture(False)
    assert clock.is_ahead
    assert clock.begin(0)["rate"].item() == 4.0
    clock.finish()
    assert clock.read() == 5


def test_a_capture_needs_a_count_that_the_device_has_seen(
    capture: Callable[[bool], None],
) -> None:
    clock = DeviceClock(CPU, 0, 1, {})
    capture(True)
    with pytest.raises(RuntimeError, match="iterations became 7"):
        clock.begin(7)
    assert not clock.is_ahead
    assert STEP in clock.begin(0)


def test_the_device_counts_where_it_decides() -> None:
    clock = DeviceClock(CPU, 0, 1, {}, decides=True, horizon=10)
    for taken in (True, False, True):
        assert STEP in clock.begin(0)
        clock.finish(torch.tensor(taken))
    assert clock.read() == 2


def test_numbers_are_made_when_a_capture_is_near(
    capture: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    near = [False]
    name = "thalweg.step.device_clock._may_be_captured"
    monkeypatch.setattr(name, lambda device: near[0])
    asked: list[int] = []

    def numbers(step: int) -> list[float]:
        asked.append(step)
        return [float(step)]

    clock = DeviceClock(CPU, 0, 1, {"rate": numbers}, horizon=10)
    for count in range(12):
        assert clock.begin(count) == {}
        clock.finish()
    assert asked == []
    assert clock._tables == {}  # nor is memory taken for them
    capture(True)
    with pytest.raises(RuntimeError, match=r"torch\.cuda\.Stream"):
        clock.begin(12)
    capture(False)
    near[0] = True
    clock.begin(12)
    clock.finish()
    assert asked == list(range(12, 22))
    capture(True)
    assert clock.begin(13)["rate"].item() == 13.0
    assert clock.is_captured


def test_a_clock_that_decides_has_few_numbers_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = "thalweg.step.device_clock"
    monkeypatch.setattr(f"{module}._may_be_captured", lambda device: False)
    monkeypatch.setattr(f"{module}._SOON", 4)
    rates = {"rate": lambda n: [float(n)]}
    clock = DeviceClock(CPU, 0, 1, rates, decides=True, horizon=10)
    assert clock._tables["rate"].flatten().tolist() == [0, 1, 2, 3]
    for count in range(11):
        assert clock.begin(0)["rate"].item() == count
        clock.finish()
    monkeypatch.setattr(f"{module}._may_be_captured", lambda device: True)
    assert clock.begin(0)["rate"].item() == 11
    assert clock._tables["rate"].flatten().tolist() == list(range(11, 21))


def test_a_count_goes_on_in_another_clock() -> None:
    first = DeviceClock(CPU, 3, 1, {}, decides=True)
    second = DeviceClock(CPU, first.iterations, 1, {"rate": lambda n: [n / 2]})
    assert second.is_ahead
    assert not second.decides
    assert second.begin(0)["rate"].item() == 1.5
    second.finish()
    assert first.iterations.item() == 4


def test_rows_are_updated_in_a_step_of_the_clock() -> None:
    clock = DeviceClock(CPU, 2, 1, {}, decides=True)
    seen: list[object] = []

    def update_rows() -> None:
        assert clock_in_force() is clock
        seen.append(clock.scalars[STEP].item())
        clock.applies = torch.tensor(False)
        assert not clock.allows_rest()

    clock.run(update_rows, 0)
    assert seen == [3.0]
    assert clock_in_force() is None
    assert clock.has_rows_left
    assert clock.iterations.item() == 2
    assert clock.applies is None
    assert clock.was_applied is not None
    assert not clock.was_applied


def test_a_step_that_fails_is_forgotten() -> None:
    clock = DeviceClock(CPU, 2, 1, {}, decides=True)

    def fail() -> None:
        clock.applies = torch.tensor(True)
        raise KeyError

    with pytest.raises(KeyError):
        clock.run(fail, 0)
    assert (clock.applies, clock.scalars) == (None, {})
    assert clock.iterations.item() == 2
