"""Indices out of range: refused at once, or undone by the device and told later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import thalweg as tw
from tests.unit.step.pretended_device import DEVICE, pretended_device
from thalweg.raw_ops import door
from thalweg.raw_ops import indices as module
from thalweg.raw_ops.indices import check_deferred, checked_rows, refuse_outside
from thalweg.step.batch import inside_step

TABLE = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


@pytest.fixture(autouse=True)
def nothing_deferred() -> Iterator[None]:
    yield
    module._deferred.clear()
    module._untold.clear()


def add_one(table: torch.Tensor, indices: Any, offset: Any = 1.0) -> None:
    """What an accelerator does: nothing is read by the host."""
    with module._undone_if_outside("Op", torch.tensor(indices), [table]) as safe:
        table.index_put_((safe,), torch.tensor(offset), accumulate=True)


@pytest.mark.parametrize("check", [None, True, False])
@pytest.mark.parametrize("outside", [-1, 3, 2**31])
def test_the_cpu_refuses_at_once(check: bool | None, outside: int) -> None:
    table = tw.Variable(TABLE)
    for op in (tw.raw_ops.ResourceScatterAdd, tw.raw_ops.ResourceScatterUpdate):
        with (
            inside_step(),
            pytest.raises(ValueError, match=f"Index {outside} at offset 1"),
        ):
            op(
                resource=table,
                indices=[0, outside],
                updates=1.0,
                check_indices=check,
            )
    assert table.tolist() == TABLE


def test_all_indices_are_looked_at() -> None:
    refuse_outside("Op", torch.tensor([[0, 1], [2, 2]]), 3)
    refuse_outside("Op", torch.zeros(0, dtype=torch.int64), 0)
    with pytest.raises(ValueError, match=r"Index 9 at offset 2 .* has 3 rows"):
        refuse_outside("Op", torch.tensor([[0, 1], [9, -1]], dtype=torch.int32), 3)


def test_a_device_writes_rows_that_are_there() -> None:
    table = torch.tensor(TABLE)
    add_one(table, [2, 2, 0])
    assert table.tolist() == [[1.0, 2.0], [2.0, 3.0], [6.0, 7.0]]
    check_deferred()


@pytest.mark.parametrize("outside", [-1, 3])
def test_a_device_puts_everything_back_and_tells_later(outside: int) -> None:
    table = torch.tensor(TABLE)
    add_one(table, [2, 0, outside, outside])
    add_one(table, [1])
    assert table.tolist() == [[0.0, 1.0], [3.0, 4.0], [4.0, 5.0]]
    with pytest.raises(ValueError, match=f"Op: Index {outside} at offset 2"):
        check_deferred()
    check_deferred()


def test_special_numbers_are_put_back_bit_by_bit() -> None:
    numbers = [float("nan"), -0.0, float("inf")]
    table = torch.tensor(numbers)
    add_one(table, [0, 1, 2, 7])
    assert torch.equal(table.view(torch.int32), torch.tensor(numbers).view(torch.int32))


def test_what_is_not_known_yet_is_not_waited_for() -> None:
    add_one(torch.tensor(TABLE), [5])
    check_deferred(wait=False)
    with pytest.raises(ValueError, match="Index 5 at offset 0"):
        check_deferred()


def found(index: int, offset: int = 0) -> torch.Tensor:
    """What a device wrote."""
    return torch.tensor([offset, index, module._MARK])


class Event:
    """Stands for an event of a device, on which all has happened."""

    def __init__(self) -> None:
        self.stream: object = None

    def record(self, stream: object = None) -> None:
        self.stream = stream

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """Wait for nothing."""


def test_what_nobody_tells_does_not_hide_what_is_told() -> None:
    add_one(torch.tensor(TABLE), [5])
    told = module._Deferred("Told", 3, found(9), Event())  # pyright: ignore[reportArgumentType]
    module._deferred.append(told)
    with pytest.raises(ValueError, match="Told: Index 9"):
        check_deferred(wait=False)
    check_deferred(wait=False)
    with pytest.raises(ValueError, match="Op: Index 5"):
        check_deferred()


ROW_OPS: dict[str, Any] = {
    "ResourceSparseApplyAdagrad": lambda table, rows, indices: {
        "var": table,
        "accum": torch.ones_like(table),
        "lr": 0.5,
        "grad": rows,
        "indices": indices,
    },
    "ResourceScatterAdd": lambda table, rows, indices: {
        "resource": table,
        "updates": rows,
        "indices": indices,
    },
}


@pytest.mark.parametrize("name", ROW_OPS)
def test_a_call_that_is_not_checked_does_not_wait(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A real device is no mode of dispatch, and brings no tracing with it.
    monkeypatch.setattr(door, "is_traced", lambda: False)
    op = getattr(tw.raw_ops, name)
    with pretended_device() as device:
        table = torch.zeros(6, 4).to(DEVICE)
        rows = torch.ones(3, 4).to(DEVICE)
        given = ROW_OPS[name](table, rows, torch.tensor([1, 4, 1]).to(DEVICE))
        op(**given, check_indices=False)
        before = device.look(table)
        with device.no_waiting():
            op(**given, check_indices=False)
        after = device.look(table)
        assert not torch.equal(after[1], before[1])
        wrong = {**given, "indices": torch.tensor([1, 6, 1]).to(DEVICE)}
        with device.no_waiting():
            op(**wrong, check_indices=False)
        assert torch.equal(device.look(table), after)
        with pytest.raises(ValueError, match=f"{name}: Index 6 at offset 1"):
            check_deferred()


def test_what_replays_find_is_told_whenever_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door, "is_traced", lambda: False)
    with pretended_device() as device:
        table, rows = torch.zeros(6, 4).to(DEVICE), torch.ones(2, 4).to(DEVICE)
        indices = torch.tensor([1, 4]).to(DEVICE)
        given = ROW_OPS["ResourceScatterAdd"](table, rows, indices)
        tw.raw_ops.ResourceScatterAdd(**given, check_indices=False)
        with device.graph() as graph:
            tw.raw_ops.ResourceScatterAdd(**given, check_indices=False)
        graph.replay()
        check_deferred()
        for wrong in (6, 9):
            indices[1] = wrong
            graph.replay()
            check_deferred(wait=False)
            with pytest.raises(ValueError, match=f"Index {wrong} at offset 1"):
                check_deferred()
            check_deferred()
        indices[1] = 4
        graph.replay()
        check_deferred()
        assert device.look(table)[:, 0].tolist() == [0, 3, 0, 0, 3, 0]


def test_a_graph_that_never_ran_has_found_nothing() -> None:
    memory = torch.tensor([0, 9, 0])
    module._untold.append(module._Deferred("Op", 3, memory, is_captured=True))
    check_deferred()
    memory.copy_(found(9))
    with pytest.raises(ValueError, match="Op: Index 9"):
        check_deferred()


def test_an_event_is_recorded_where_the_indices_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pretended_device():
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(
            torch.cuda, "current_stream", lambda device=None: f"stream of {device}"
        )
        copy, event = module._on_its_way(torch.tensor([-1, 0]).to(DEVICE))
        assert isinstance(event, Event)
        assert event.stream == f"stream of {DEVICE}"
        assert copy.tolist() == [-1, 0]


def test_the_default_depends_on_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an accelerator, for which a tensor of another kind stands in."""

    class Elsewhere:
        is_cpu = False

        def __init__(self, indices: list[int]) -> None:
            self.tensor = torch.tensor(indices)

        def numel(self) -> int:
            return self.tensor.numel()

    checked: list[bool] = []
    monkeypatch.setattr(module, "refuse_outside", lambda *_: checked.append(True))
    undone = module._undone_if_outside

    def unwrapped(op: str, indices: Any, tensors: Any) -> Any:
        checked.append(False)
        return undone(op, indices.tensor, tensors)

    monkeypatch.setattr(module, "_undone_if_outside", unwrapped)
    table, indices = torch.tensor(TABLE), Elsewhere([0])
    for inside, wanted in ((False, None), (True, None), (True, True), (False, False)):
        if inside:
            with inside_step(), checked_rows("Op", indices, [table], wanted):  # pyright: ignore[reportArgumentType]
                pass
        else:
            with checked_rows("Op", indices, [table], wanted):  # pyright: ignore[reportArgumentType]
                pass
    assert checked == [True, False, True, False]
    empty = Elsewhere([])
    with checked_rows("Op", empty, [table], False) as safe:  # pyright: ignore[reportArgumentType]
        assert safe is empty


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_variable_without_rows_is_refused_without_indices_too(
    dtype: torch.dtype,
) -> None:
    nothing = torch.zeros(0, dtype=dtype)
    number = torch.tensor(1.0)
    with pytest.raises(ValueError, match="a variable with rows"):
        tw.raw_ops.ResourceScatterAdd(
            resource=number, indices=nothing, updates=torch.zeros(0)
        )
    with pytest.raises(ValueError, match="a variable with rows"):
        tw.raw_ops.ResourceSparseApplyMomentum(
            var=number,
            accum=torch.tensor(0.0),
            lr=1.0,
            grad=torch.zeros(0),
            indices=nothing,
            momentum=0.0,
        )
    assert number.item() == 1.0


@pytest.mark.parametrize("index", [2**70, -(2**63) - 1])
def test_an_index_beyond_int64_is_named_so(index: int) -> None:
    table = torch.ones(3, 1)
    with pytest.raises(TypeError, match=r"expected int32 or int64; .* is larger"):
        tw.raw_ops.ResourceScatterAdd(
            resource=table, indices=[0, index], updates=torch.ones(2, 1)
        )
    assert table.unique().tolist() == [1.0]
