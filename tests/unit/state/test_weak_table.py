"""Tables keyed by the identity of objects they do not keep alive."""

from __future__ import annotations

import copy
import gc
import pickle

import torch
from torch.testing._internal.two_tensor import TwoTensor

from thalweg.state.weak_table import WeakTable


def test_tensors_are_keys_by_identity() -> None:
    one, two = torch.ones(2), torch.ones(2)
    table: WeakTable[str] = WeakTable()
    table.set(one, "one")
    assert table.get(one) == "one"
    assert table.get(two) is None
    table.set(one, "uno")
    assert (table.get(one), len(table)) == ("uno", 1)


def test_keys_are_found_among_many_objects() -> None:
    table: WeakTable[str] = WeakTable()
    objects = [torch.zeros(1) for _ in range(6)]
    for place in (4, 1):
        table.set(objects[place], "value")
    found = table.keys_among(objects)
    assert len(found) == 2
    assert found[0] is objects[1]
    assert found[1] is objects[4]
    wrapping = TwoTensor(torch.zeros(1), torch.zeros(1))
    table.set(wrapping, "value")
    assert len(table.keys_among([*objects, wrapping])) == 3
    assert table.keys_among([]) == []


def test_entries_leave_with_their_object() -> None:
    table: WeakTable[int] = WeakTable()
    keys = [torch.ones(1) for _ in range(10)]
    for position in range(10):
        table.set(keys[position], position)
    del keys[3:]
    gc.collect()
    assert len(table) == 3


def test_entries_of_cycles_leave_too() -> None:
    table: WeakTable[int] = WeakTable()
    key = torch.ones(1)
    key.itself = key  # pyright: ignore[reportAttributeAccessIssue]
    table.set(key, 1)
    del key
    gc.collect()
    assert len(table) == 0


def test_a_new_object_of_an_old_id_is_unknown() -> None:
    table: WeakTable[int] = WeakTable()
    for number in range(200):
        key = torch.ones(1)
        assert table.get(key) is None
        table.set(key, number)
        assert table.get(key) == number
        del key


def test_replacing_does_not_lose_the_younger_entry() -> None:
    table: WeakTable[int] = WeakTable()
    key = torch.ones(1)
    table.set(key, 1)
    table.set(key, 2)
    gc.collect()
    assert table.get(key) == 2


def test_discard() -> None:
    table: WeakTable[int] = WeakTable()
    key, other = torch.ones(1), torch.ones(1)
    table.set(key, 1)
    table.discard(other)
    assert table.get(key) == 1
    table.discard(key)
    assert table.get(key) is None


def test_a_value_may_be_false() -> None:
    table: WeakTable[int] = WeakTable()
    key = torch.ones(1)
    table.set(key, 0)
    assert table.get(key) == 0
    table.discard(key)
    assert len(table) == 0


def test_the_table_may_die_before_its_keys() -> None:
    table: WeakTable[int] = WeakTable()
    key = torch.ones(1)
    table.set(key, 1)
    del table
    gc.collect()
    del key


def test_wrappers_of_tensors_can_still_be_swapped() -> None:
    table: WeakTable[str] = WeakTable()
    one = TwoTensor(torch.ones(2), torch.ones(2))
    two = TwoTensor(torch.zeros(2), torch.zeros(2))
    assert table.get(one) is None
    table.set(one, "one")
    assert (table.get(one), table.get(two)) == ("one", None)
    torch.utils.swap_tensors(one, two)
    table.discard(two)
    assert len(table) == 0


def test_copies_of_wrappers_have_an_identity_of_their_own() -> None:
    table: WeakTable[str] = WeakTable()
    one = TwoTensor(torch.ones(2), torch.ones(2))
    table.set(one, "one")
    anchor = vars(one)["_thalweg_anchor"]
    for copied in (copy.deepcopy(anchor), pickle.loads(pickle.dumps(anchor))):
        assert copied is not anchor
    del one, anchor
    gc.collect()
    assert len(table) == 0
