"""What a device finds out, and when the host hears of it."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

import thalweg as tw
from tests.unit.step.pretended_device import DEVICE, PretendedDevice
from thalweg.step import device_checks
from thalweg.step.device_checks import (
    LateCheck,
    LateErrors,
    errors_in_force,
    listening,
    note_nonfinite,
)


def check() -> LateCheck:
    return LateCheck(DEVICE, row_9)


def row_9(places: list[int]) -> Exception:
    return IndexError(f"row 9 of {places}")


def test_an_error_is_told_once(device: PretendedDevice) -> None:
    late, verdicts = check(), torch.tensor([True, False]).to(DEVICE)
    with device.no_waiting():
        late.refuse_known()
        late.note(verdicts[0])
        late.refuse_known()
        late.note(verdicts[1])
        late.note(verdicts[0])
        with pytest.raises(IndexError, match="row 9"):
            late.refuse_known()
        late.note(verdicts[0])
        late.refuse_known()
    late.refuse()


def test_all_are_asked_where_the_host_reads(device: PretendedDevice) -> None:
    del device
    errors = LateErrors()
    for kind in ("first", "second"):
        errors.note(kind, torch.tensor(False).to(DEVICE), row_9)
    for _ in range(2):
        with pytest.raises(IndexError, match="row 9"):
            errors.refuse()
    errors.refuse()


def test_errors_are_told_to_their_owner(device: PretendedDevice) -> None:
    mine, others = LateErrors(), LateErrors()
    wrong = torch.tensor(False).to(DEVICE)
    with device.no_waiting():
        mine.note("rows", wrong, row_9)
        others.refuse_known()
        with pytest.raises(IndexError):
            mine.refuse_known()
        mine.refuse_known()
    copy.deepcopy(mine).refuse()


def test_what_is_noted_while_a_copy_is_under_way_is_told_later(
    device: PretendedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, verdicts = check(), torch.tensor([True, False]).to(DEVICE)
    is_there = [True]
    monkeypatch.setattr(torch.cuda.Event, "query", lambda _: is_there[0])
    with device.no_waiting():
        late.note(verdicts[0])
        is_there[0] = False
        late.note(verdicts[1])  # no copy begins: one is under way
        late.refuse_known()
        is_there[0] = True
        late.refuse_known()  # the copy tells of the first; another one begins
        with pytest.raises(IndexError):
            late.refuse_known()


def test_places_are_told(device: PretendedDevice) -> None:
    errors, verdicts = LateErrors(), torch.tensor([True, False, True]).to(DEVICE)
    with device.no_waiting():
        errors.note("rows", verdicts, row_9)
        errors.note("rows", verdicts.flip(0), row_9)
        with pytest.raises(IndexError, match=r"row 9 of \[1\]"):
            errors.refuse_known()


def test_variables_are_named_while_they_live(
    device: PretendedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = LateErrors()
    variables = [tw.Variable(torch.ones(2).to(DEVICE), name=n) for n in ("a", "b")]
    verdicts = torch.tensor([True, False]).to(DEVICE)
    monkeypatch.setattr(listening, "errors", errors)
    with device.no_waiting():
        note_nonfinite(variables, verdicts)
        note_nonfinite(variables[:1], verdicts[1:])
    with pytest.raises(FloatingPointError, match="in that of b"):
        errors.refuse_known()
    variables.clear()
    with pytest.raises(FloatingPointError, match="in that of one that is no more"):
        errors.refuse_known()


def test_settled_checks_are_forgotten(
    device: PretendedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    del device
    monkeypatch.setattr(device_checks, "_MOST_CHECKS", 3)
    errors, verdicts = LateErrors(), torch.tensor([True, False]).to(DEVICE)
    for number in range(6):
        errors.note(number, verdicts[0 if number != 1 else 1], row_9)
    assert len(errors._checks) <= 4
    with pytest.raises(IndexError):
        errors.refuse_known()


def test_other_threads_may_note_while_errors_are_told() -> None:
    errors, right = LateErrors(), torch.tensor(True)

    def note() -> None:
        for number in range(60):
            errors.note(number, right, row_9)

    threads = [threading.Thread(target=note) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        errors.refuse_known()
        errors.refuse()
    for thread in threads:
        thread.join()


def test_threads_have_errors_of_their_own_outside_of_steps() -> None:
    found: list[LateErrors] = []
    thread = threading.Thread(target=lambda: found.append(errors_in_force()))
    thread.start()
    thread.join()
    assert errors_in_force() is errors_in_force() is not found[0]


def test_nobody_asks_in_a_capture(device: PretendedDevice) -> None:
    late, wrong = check(), torch.tensor(False).to(DEVICE)
    with device.graph() as graph:
        late.note(wrong)
        late.refuse_known()
    late.refuse()
    graph.replay()
    with device.no_waiting():
        late.refuse_known()  # nothing has come back yet: a copy begins
        with pytest.raises(IndexError, match="row 9"):
            late.refuse_known()
    graph.replay()
    with pytest.raises(IndexError, match="row 9"):
        late.refuse()


def test_what_is_not_noted_is_not_asked(device: PretendedDevice) -> None:
    late = check()
    with device.no_waiting():
        late.refuse()
