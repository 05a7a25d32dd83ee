"""Indices out of range: refused at once, or undone by the device and told later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import thalweg as tw
from thalweg.raw_ops import indices as module
from thalweg.raw_ops.indices import check_deferred, checked_rows, refuse_outside
from thalweg.step.batch import inside_step

TABLE = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


@pytest.fixture(autouse=True)
def nothing_deferred() -> Iterator[None]:
    yield
    module._deferred.clear()


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
