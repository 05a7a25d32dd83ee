"""Sparse gradients of updates that read all rows, on a GPU that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import thalweg as tw
from tests.unit.optimizers.test_no_waiting import close, train, variables
from tests.unit.step.pretended_device import (
    DEVICE,
    PretendedDevice,
    pretended_device,
)


@pytest.fixture(scope="module")
def device() -> Iterator[PretendedDevice]:
    with pretended_device() as found:
        yield found


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
