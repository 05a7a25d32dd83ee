"""Sparse gradients of updates that read all rows: here, and on a GPU not there."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

import thalweg as tw
from tests.unit.optimizers.test_no_waiting import close, train, variables
from tests.unit.step.pretended_device import (
    DEVICE,
    PretendedDevice,
)
from thalweg.compiler.interpret import Interpreter
from thalweg.optimizers.sparse_replay import SparseReplay


@pytest.mark.parametrize(("policy", "kind"), [("exact", "mixed"), ("keras", "rows")])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nadam", {"use_ema": True, "ema_momentum": 0.5}),
        ("adam", {"nonfinite": "skip", "low_precision_copy": "bfloat16"}),
        ("adam", {"nonfinite": "error", "weight_decay": 0.1, "use_ema": True}),
    ],
)
def test_what_reads_all_rows_waits_for_nothing(
    name: str, options: dict[str, Any], policy: str, kind: str, device: PretendedDevice
) -> None:
    make: Any = partial(type(tw.optimizers.get(name)), **options, sparse_update=policy)
    here, there = make(), make()
    expected, found = variables("cpu"), variables(DEVICE)
    bad = (1, 3) if options.get("nonfinite") == "skip" else ()
    train(here, expected, kind, 5, bad=bad)
    train(there, found, kind, 5, device.no_waiting, bad)
    assert int(there.iterations) == int(here.iterations)
    assert close(found, expected)
    for slot in there.get_slot_names():
        ours, theirs = (
            [o.get_slot(v, slot) for v in held[: 1 if kind == "rows" else 2]]
            for o, held in ((there, found), (here, expected))
        )
        assert close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "options"),
    [("lamb", {}), ("adam", {"sparse_update": "exact", "weight_decay": 0.1})],
)
def test_on_the_cpu_the_plan_takes_them_too(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    make: Any = partial(type(tw.optimizers.get(name)), **options)
    generator = torch.Generator().manual_seed(3)
    starts = [torch.randn(7, 3, generator=generator) for _ in range(2)]
    tables, alike = (
        [tw.Variable(start.clone(), name=f"t{i}") for i, start in enumerate(starts)]
        for _ in range(2)
    )
    sparse, dense = make(), make()
    monkeypatch.setattr(Interpreter, "run", None)  # a kernel, and nothing by hand
    for _ in range(3):
        rows = torch.randint(7, (5,), generator=generator)
        values = torch.randn(5, 3, generator=generator)
        slices = tw.IndexedSlices(values, rows, (7, 3))
        other = torch.randn(7, 3, generator=generator)
        sparse.apply_gradients([(slices, tables[0]), (other, tables[1])])
        dense.apply_gradients([(slices.to_dense(), alike[0]), (other, alike[1])])
    assert all(map(torch.equal, tables, alike))


def test_a_step_of_both_kinds_is_not_repeated_without_its_rows() -> None:
    """Where the plan has rows of one variable, and rows of another are launched."""
    table = tw.Variable(torch.ones(4, 2), name="t")
    rows = tw.IndexedSlices(torch.ones(1, 2), torch.tensor([1]), (4, 2))
    assert not SparseReplay.can_repeat([(rows, table)], [])


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("held", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("is_strided", [False, True])
def test_duplicates_are_added_up_as_by_updates_of_touched_rows(
    held: torch.dtype, given: torch.dtype, *, is_strided: bool
) -> None:
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(200, 3, generator=generator).to(given)
    rows = torch.randint(20, (200,), generator=generator)
    found = []
    for policy, strided in (("rows", False), ("rows", is_strided), ("exact", False)):
        table = torch.zeros(3, 20, dtype=held).t() if strided else torch.zeros(20, 3)
        parameter = torch.nn.Parameter(table.to(held))
        optimizer = tw.optimizers.SGD(1.0, sparse_update=policy)
        slices = tw.IndexedSlices(values, rows, (20, 3))
        optimizer.apply_gradients([(slices, parameter)])
        found.append(parameter.detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_drop_in_adds_duplicates_of_halves_in_float32() -> None:
    values = torch.tensor([[1.0], [2.0**-8], [-1.0]], dtype=torch.bfloat16)
    found = []
    for policy in ("rows", "exact"):
        table = torch.nn.Parameter(torch.zeros(2, 1, dtype=torch.bfloat16))
        table.grad = torch.sparse_coo_tensor(
            torch.tensor([[1, 1, 1]]), values, (2, 1), check_invariants=True
        )
        tw.optim.SGD([table], lr=1.0, sparse_update=policy).step()
        found.append(table.flatten().tolist())
    assert found == [[0.0, -(2.0**-8)]] * 2
