"""Questions to many tensors: the fast way and the slow way answer alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thalweg.compiler.build import build
from thalweg.step import bulk
from thalweg.step.bulk import Addresses, Apart, Holders, Places, Writes
from thalweg.step.overlaps import extent


@pytest.fixture(params=["fast", "slow"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "slow":
        monkeypatch.setattr(bulk, "_calls", lambda: None)
    elif bulk._calls() is None:
        # Where C can be compiled, a skip would hide that every step asks in Python.
        assert build("int thalweg_any(void) { return 0; }") is None
        pytest.skip("there is no compiler")
    return request.param


@pytest.fixture
def tensors() -> list[torch.Tensor]:
    return [
        torch.nn.Parameter(torch.zeros(3)),
        torch.zeros(4, 5).T,
        torch.zeros(6)[2:],
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(2, dtype=torch.bfloat16),
    ]


@pytest.mark.parametrize("kind", [list, tuple])
def test_addresses_are_those_that_torch_tells(
    tensors: list[torch.Tensor], kind: type
) -> None:
    room = Addresses(len(tensors))
    expected = [tensor.data_ptr() for tensor in tensors]
    assert room.read(kind(tensors)).tolist() == expected
    assert room.read(kind(tensors[::-1])).tolist() == expected[::-1]


def test_no_tensors_are_none() -> None:
    assert Addresses(0).read([]).tolist() == []
    assert Places([]).are_kept()
    assert Holders([]).hold_the_same()
    Writes([]).count()


def _replace_data(tensor: torch.Tensor) -> None:
    tensor.data = tensor.data.clone()


def _grow(tensor: torch.Tensor) -> None:
    tensor.data.resize_(10_000)


def _share(tensor: torch.Tensor) -> None:
    tensor.share_memory_()


@pytest.mark.parametrize("move", [_replace_data, _grow, _share])
def test_a_tensor_that_was_moved_is_noticed(
    tensors: list[torch.Tensor], move: Any
) -> None:
    places = Places(tensors)
    assert places.are_kept()
    move(tensors[0])
    assert not places.are_kept()


def test_a_write_in_place_moves_nothing(tensors: list[torch.Tensor]) -> None:
    places = Places(iter(tensors))
    for tensor in tensors:
        tensor.data.add_(1)
    assert places.are_kept()


@pytest.fixture
def states() -> list[dict[str, Any]]:
    return [{"m": torch.zeros(1), "step": 3.0}, {}, {"m": torch.zeros(1)}]


def test_dicts_hold_the_same(states: list[dict[str, Any]]) -> None:
    holders = Holders(states)
    states[0]["m"].add_(1)
    assert holders.hold_the_same()


@pytest.mark.parametrize("change", ["replaced", "added", "removed", "emptied"])
def test_a_dict_that_changed_is_noticed(
    states: list[dict[str, Any]], change: str
) -> None:
    holders = Holders(states)
    if change == "replaced":
        states[2]["m"] = torch.zeros(1)
    elif change == "added":
        states[1]["v"] = torch.zeros(1)
    elif change == "removed":
        del states[2]["m"]
    else:
        for state in states:
            state.clear()
    assert not holders.hold_the_same()


def test_every_write_is_counted(tensors: list[torch.Tensor]) -> None:
    writes = Writes(tensors)
    before = [tensor._version for tensor in tensors]
    writes.count()
    writes.count()
    assert [tensor._version for tensor in tensors] == [n + 2 for n in before]


def test_a_backward_pass_notices_a_write() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    loss = (weight * weight).sum()
    Writes([weight]).count()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tensors_of_inference_mode_have_no_count_and_do_no_harm() -> None:
    with torch.inference_mode():
        tensor = torch.zeros(2)
        Writes([tensor]).count()
    Writes([tensor]).count()
    assert tensor.is_inference()


def test_swapped_tensors_are_noticed() -> None:
    # Nothing here holds on to what a parameter's object stands for.
    weight = torch.nn.Parameter(torch.zeros(3))
    places = Places([weight])
    torch.utils.swap_tensors(weight, torch.nn.Parameter(torch.ones(3)))
    assert not places.are_kept()


def test_objects_laid_out_in_another_way_are_asked_by_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bulk, "_OFFSETS", (32,))
    assert bulk._offset([torch.zeros(2)]) is None


def test_the_first_questions_may_come_in_inference_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensor = torch.zeros(2)
    with torch.inference_mode():
        assert Places([tensor]).are_kept()
        bulk_calls = getattr(bulk._calls, "__wrapped__", bulk._calls)
        monkeypatch.setattr(bulk, "_calls", bulk_calls)
        assert Places([tensor]).are_kept()


def test_another_number_of_tensors_is_not_read_past_the_end() -> None:
    room = Addresses(3)
    with pytest.raises(ValueError, match="broadcast"):
        room.read([torch.zeros(1), torch.zeros(1)])


def _apart(read: list[torch.Tensor], written: list[torch.Tensor]) -> Apart:
    room = Addresses(len(read))
    sizes = [tensor.nbytes for tensor in read]
    apart = Apart(room, sizes, map(extent, written))
    room.read(read)
    return apart


def test_what_touches_a_span_is_found_wherever_it_lies() -> None:
    memory = torch.zeros(12)
    own = [memory[2:4], memory[4:6], memory[8:10]]
    pieces = [(begin, end) for begin in range(12) for end in range(begin, 13)]
    for begin, end in pieces:
        touches = any(begin < stop and start < end for start, stop in _STRETCHES)
        apart = _apart([torch.ones(1), memory[begin:end]], own)
        is_touched = touches and begin < end
        assert bool(apart) is not is_touched, (begin, end)
        assert apart.touched() == [1] * is_touched


_STRETCHES = ((2, 6), (8, 10))


def test_what_was_found_apart_may_move_into_a_span() -> None:
    own, room = torch.zeros(4), Addresses(1)
    apart = Apart(room, [8], [extent(own)])
    for other, expected in [(torch.ones(2), True), (own[1:3], False)] * 2:
        room.read([other])
        assert bool(apart) is bool(apart) is expected


def test_elements_without_memory_are_found_and_none_need_none() -> None:
    freed = torch.ones(3)
    freed.untyped_storage().resize_(0)
    apart = _apart([torch.zeros(0), freed], [torch.zeros(5)])
    assert not apart
    assert apart.touched() == [1]
    assert _apart([torch.zeros(0)], [torch.zeros(5)])
    assert _apart([torch.zeros(3)], [torch.zeros(0), torch.zeros(6)[::2]])
    assert _apart([], [torch.zeros(1)])
    assert _apart([torch.zeros(2)], [])
